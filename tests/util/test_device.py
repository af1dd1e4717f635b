"""Which device is taken, what is said about it, and what to do where it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from diffvocsep.util import device as device_module
from diffvocsep.util.device import choose_device, resolve_device, torchrun_env
from diffvocsep.util.errors import UserError


def test_the_device_and_the_reason_are_said(monkeypatch, capsys):
    monkeypatch.setattr(device_module, "nvidia_gpu", lambda: False)
    for available in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(available, "is_available", lambda: False)
    choose_device("auto")
    assert capsys.readouterr().out == "device: cpu, for torch finds no GPU here\n"
    choose_device("cpu")
    assert capsys.readouterr().out == "device: cpu, as asked for\n"
    monkeypatch.setenv("RANK", "1")
    choose_device("cpu")
    assert capsys.readouterr().out == "", "one of several processes is enough"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use it")
@pytest.mark.parametrize(
    "built_for, words", [(None, "is for CPUs only"), ("13.0", "made for CUDA 13.0, cannot use it")]
)
def test_a_gpu_that_torch_cannot_use_is_not_passed_over_in_silence(monkeypatch, capsys, built_for, words):
    monkeypatch.setattr(device_module, "nvidia_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    choose_device("auto")
    line = capsys.readouterr().out
    assert words in line and "this computer has an NVIDIA GPU" in line and line.count("\n") == 1
    assert line.endswith(f"{device_module.install_command()}\n")
    with pytest.raises(UserError) as error:
        resolve_device("cuda")
    assert words in str(error.value) and str(error.value).endswith(device_module.install_command())


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("script, found", [("echo 'GPU 0: NVIDIA'", True), ("echo GPU; exit 9", False), ("", False)])
def test_nvidia_s_driver_is_asked(monkeypatch, tmp_path, script, found):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not device_module.nvidia_gpu()
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert device_module.nvidia_gpu() == found


@pytest.mark.parametrize("capability, index", [("6.1", "cu126"), ("9.0", "cu126"), ("12.0", "cu128"), ("", "cu126"),
                                               ("[N/A]", "cu126"), ("8.6\n12.0", "cu128")])  # fmt: skip
def test_a_gpu_without_kernels_is_told_which_torch_has_them(monkeypatch, capability, index):
    """It can be seen, and has memory; the first computation fails."""

    class Unreadable:
        def __add__(self, other: int) -> None:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    for name, value in {"is_available": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch, "ones", lambda *_, device: Unreadable())
    monkeypatch.setattr(device_module, "nvidia_smi", lambda *_: capability)
    for name in ("cuda", "auto"):
        with pytest.raises(UserError, match="'cuda' cannot be used here .*no kernel image.* --device cpu") as error:
            resolve_device(name)
        assert str(error.value).endswith(
            f"has no kernels for it; get one that has with: {device_module.PIP_INSTALL}{index}"
        )
    for readme in ("README.md", "README.ko.md"):
        text = (Path(__file__).parents[2] / readme).read_text(encoding="utf-8")
        assert f"{device_module.PIP_INSTALL}cu126" in text and f"`{index}`" in text


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_more_processes_than_gpus_are_told_how_many_can_be(monkeypatch, name):
    def refuse(*_: int, device: torch.device) -> None:
        raise RuntimeError("CUDA error: invalid device ordinal") if device.index > 1 else AssertionError(device)

    for function, value in {"is_available": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, function, lambda value=value: value)
    monkeypatch.setattr(torch, "ones", refuse)
    for variable, number in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(variable, number)
    with pytest.raises(UserError, match="invalid device ordinal.*--nproc_per_node=2 or less") as error:
        resolve_device(name)
    assert "auto" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(UserError, match="device 'cuda' cannot be used here"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["vulkan", "maia", "hpu", "nonsense"])
def test_what_torch_says_at_length_is_one_short_sentence(name):
    with pytest.raises(UserError) as error:
        resolve_device(name)
    assert str(error.value).startswith(f"device '{name}' cannot be used here (")
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


@pytest.mark.parametrize("name, advice", [("auto", "use --device cpu"), ("cuda", "use --device auto or --device cpu")])
def test_a_full_gpu_is_not_advised_to_whoever_has_just_tried_it(monkeypatch, name, advice):
    def refuse(*_: int, device: torch.device) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    for function, value in {"is_available": True, "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, function, lambda value=value: value)
    monkeypatch.setattr(torch, "ones", refuse)
    with pytest.raises(UserError) as error:
        resolve_device(name)
    assert str(error.value).endswith(f"; {advice}") and "out of memory" in str(error.value)


def test_a_world_without_a_rank_is_none(monkeypatch):
    """Some clusters set WORLD_SIZE; torchrun sets both."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert torchrun_env() == (0, 0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert torchrun_env() == (1, 1, 2)
