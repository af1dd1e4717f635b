"""The benchmark of a training step: its arithmetic, and that it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from trainers import CPU, TINY

from benchmarks import train_step


def test_operations_are_counted_and_times_are_medians(monkeypatch):
    layer = nn.Linear(3, 5, bias=False)
    x = torch.randn(7, 3)
    assert train_step.flops(lambda: layer(x)) == 2 * 7 * 3 * 5
    clock = iter([0, 9, 0, 9, 0, 1, 0, 5, 0, 2])  # two that do not count, then 1, 5 and 2 s
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(clock))
    assert train_step.seconds(lambda: None, CPU, 0.1) == 2


def test_what_is_kept_for_the_backward_pass_is_counted():
    x = torch.randn(2**20, requires_grad=True)
    assert train_step.memory(lambda: x.exp().sum(), CPU) == pytest.approx(4 * 2**20 / 2**30, rel=0.01)


def test_it_prints_a_table_of_ours_and_of_diffusers(monkeypatch, capsys):
    monkeypatch.setattr(train_step, "SHAPES", ((8, 16, 16),))
    options = ["--device", "cpu", "--seconds", "0.001", "--no-compile", "--only", "float32"]
    assert train_step.run([*options, *TINY.split(), "model.base_channels=8"]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    names = [line[0].strip() for line in lines]
    assert names[0] == "batch of 2 x 0.5 s" and names[2] == "limit: a 3x3 convolution, float32"
    assert names[3:6] == ["ours, network alone: float32", "diffusers, network alone: float32",
                          "ours, training step without data: float32"]  # fmt: skip
    assert len(lines) == 2 + 1 + 2 * 3
    for line in lines[3:]:
        step, audio, count, rate = (float(cell) for cell in line[1:5])
        assert abs(audio - step) <= 1 and count >= 0 and rate >= 0 and line[5].strip().endswith("%")  # 1 s of audio
