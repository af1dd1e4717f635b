"""TPU training, on the CPU: needs an environment with requirements-tpu.txt, and is skipped elsewhere (see .ci/run)."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trainers import CPU, ROOT, flat, tiny

os.environ.setdefault("PJRT_DEVICE", "CPU")  # before torch_xla is imported
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
if "TRAIN_PYTHON" in os.environ:  # where CI must have it
    import torch_xla
else:
    torch_xla = pytest.importorskip("torch_xla")

from diffvocsep import checkpoint
from diffvocsep.config import save_config
from diffvocsep.training.trainer import Trainer
from diffvocsep.training.xla import XLA, compilations
from diffvocsep.util.errors import UserError

TRAIN_PYTHON = os.environ.get("TRAIN_PYTHON", sys.executable)  # in CI that of train.py, with another torch than here
SMALL = ("model.channels_mult=[1,1,1]", "train.max_steps=10", "train.val_every_steps=5", "train.steps_per_epoch=5")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    torch_xla.device()  # before the first backward pass, or autograd will not know of it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def on_tpu(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    config = tiny(folder, *SMALL, *overrides)
    return Trainer(config, XLA(config.train), resume)


def on_cpu(folder: Path, *overrides: str, resume: str = "none") -> Trainer:
    return Trainer(tiny(folder, *SMALL, *overrides), CPU, resume)


def assert_close(one: dict, other: dict, tolerance: float) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if torch.is_tensor(value):
            assert (value.cpu() - other[name].cpu()).abs().max() <= tolerance * max(1.0, float(value.abs().max())), name


def test_losses_and_gradients_are_those_of_the_cpu(tmp_path, monkeypatch):
    """Ten steps in float32 with SGD, to 1e-4; the head disturbed, for where it is zero most gradients are, and all
    items made of guesses, for without any the network's mark of them has no gradient."""
    seen = []
    for make in (on_cpu, on_tpu):
        trainer = make(tmp_path, "train.refine_share=1", "diffusion.terminal_share=0",
                       "train.consistency_share=0.5")  # fmt: skip
        weight = trainer.model.head[-1].weight
        with torch.no_grad():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight.device)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.02)
        steps = []
        for batches in trainer.steps():
            terms = trainer.optimize(batches)
            gradients = {name: p.grad.cpu().clone() for name, p in trainer.model.named_parameters()}
            steps.append({"terms": {name: value.cpu() for name, value in terms.items()}, "gradients": gradients})
        seen.append(dict(enumerate(steps)))
    assert len(seen[0]) == 10 and all(g.any() for g in seen[0][5]["gradients"].values())
    assert_close(*seen, 1e-4)


SHARES = ["train.refine_share=0.5", "train.consistency_share=0.5"]
REFINE = ["model.refine_rank=2", "train.parts=refine", "train.refine_share=1", "diffusion.ddim_steps=2"]


@pytest.mark.parametrize("options", [["train.amp=none"], ["train.amp=bf16"], SHARES, REFINE], ids=str)
def test_a_run_compiles_nothing_after_its_first_steps_and_says_so(tmp_path, options):
    trainer = on_tpu(tmp_path, *options)
    assert trainer.run() == 0
    (path,) = tmp_path.glob("tb/*/history.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    counts = [int(float(row["compilations"])) for row in rows if row["compilations"]]
    assert len(counts) == 10 and len(set(counts[1:])) == 1, counts
    assert counts[-1] == compilations() > 0
    assert [int(row["step"]) for row in rows if row["sdr_median"]] == [5, 10]


def test_checkpoints_go_from_the_cpu_to_the_tpu_and_back(tmp_path):
    """6 steps here, 2 there, 2 here are 10 steps here; a checkpoint is one of plain CPU tensors."""
    whole = on_cpu(tmp_path / "whole")
    assert whole.run() == 0
    for make, steps, resume in ((on_cpu, 6, "none"), (on_tpu, 8, "auto"), (on_cpu, 10, "auto")):
        trainer = make(tmp_path / "parts", f"train.max_steps={steps}", resume=resume)
        trainer.schedule.steps = 10  # of the learning rate
        for batches in trainer.steps():
            trainer.optimize(batches)
            if trainer.progress.step == steps:
                break
        trainer.save("last.pt")
        state = checkpoint.load_checkpoint(tmp_path / "parts" / "ck" / "last.pt")
        assert state["step"] == steps and state["samples"] == 2 * steps
    ours, theirs = whole.state(), trainer.state()
    for part in ("model", "ema"):
        assert_close(ours[part], theirs[part], 1e-3)  # the optimizer makes much of gradients that are nearly zero


def test_what_xla_cannot_do_is_said(tmp_path):
    for setting in ("train.amp=fp16", "train.compile=true"):
        with pytest.raises(UserError, match=r"on a TPU train\.amp must be auto"):
            on_tpu(tmp_path, setting)


def process(folder: Path, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    save_config(tiny(folder, *SMALL), folder / "tiny.yaml")
    python = TRAIN_PYTHON if script == "train.py" else sys.executable
    return subprocess.Popen(
        [python, str(ROOT / script), "--config", "tiny.yaml", *arguments], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment,
    )  # fmt: skip


def test_train_tpu_py_in_bf16_hears_ctrl_c_and_train_py_goes_on_and_back(tmp_path):
    """Through torch_xla.launch, as on a TPU VM; in CI each trainer has its own torch."""
    tpu = process(tmp_path, "train_tpu.py", "train.amp=auto", "train.max_steps=1000", "train.steps_per_epoch=1000")
    for line in tpu.stdout:
        if line.startswith("step 5:"):
            break
    os.killpg(tpu.pid, signal.SIGINT)
    out, error = tpu.communicate(timeout=300)
    assert tpu.returncode == 130 and "stopped at step" in out, error
    (started,) = tmp_path.glob("tb/*/run.json")
    (start,) = json.loads(started.read_text(encoding="utf-8"))
    assert "train_tpu.py --config tiny.yaml train.amp=auto" in start["command"], "not that of a spawned process"
    step = checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")["step"]
    cpu = process(tmp_path, "train.py", "--device", "cpu", f"train.max_steps={step + 1}")
    out, error = cpu.communicate(timeout=300)
    assert cpu.returncode == 0 and f"last.pt at step {step}" in out, error
    state = checkpoint.load_checkpoint(tmp_path / "ck" / "last.pt")
    ours, theirs = checkpoint.versions()["torch"], state["versions"]["torch"]
    assert (ours == theirs) == (sys.executable == TRAIN_PYTHON), f"{ours} here, {theirs} in train.py"
    back = on_tpu(tmp_path, f"train.max_steps={step + 2}", resume="auto")
    assert_close(state["model"], back.model.state_dict(), 0.0)
    assert_close(state["optimizer"]["state"], back.optimizer.state_dict()["state"], 0.0)
    back.optimize(next(back.steps()))
    assert back.progress.step == step + 2 and back.progress.skipped == 0


def test_two_replicas_are_one_process_with_twice_the_batch(tmp_path):
    """Two XLA devices, with an all-reduce between them, go on for six steps with what one CPU with twice their batch
    began, and it goes on with theirs: the weights are those that it gets alone, but for what Muon makes of rounding
    errors in gradients that are nearly zero."""
    settings = ("model.frequency_linear=0", "train.accumulate=2", "train.grad_clip=0.05", "train.val_seconds=0.5")
    trained = {}
    for folder in (tmp_path / "one", tmp_path / "two"):
        for steps in (2, 8, 10):
            if folder.name == "two" and steps == 8:
                replicas = process(folder, "train_tpu.py", *settings, "train.max_steps=8", CPU_NUM_DEVICES="2")
                out, error = replicas.communicate(timeout=600)
                assert replicas.returncode == 0, error
            else:
                trained[folder.name] = on_cpu(
                    folder, *settings, "train.batch_size=4", f"train.max_steps={steps}", resume="auto"
                )
                assert trained[folder.name].run() == 0
            state = checkpoint.load_checkpoint(folder / "ck" / "last.pt")
            assert (state["step"], state["samples"]) == (steps, 8 * steps)
            trained[folder.name, steps] = state
    for steps in (8, 10):
        for part in ("model", "ema"):
            assert_close(trained["one", steps][part], trained["two", steps][part], 3e-4)
    moved = [(trained["one", 8]["model"][name] - w).abs().max() for name, w in trained["one", 2]["model"].items()]
    assert max(moved) > 5e-3, "far more than the tolerance"

    assert "training on 2 x XLA on CPU" in out and "last.pt at step 2" in out
    assert out.count("step 5: median SDR") == out.count("step 8: median SDR") == 1, "the first validates alone"
    (path,) = (tmp_path / "two").glob("tb/*/history.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    counts = [int(float(row["compilations"])) for row in rows if row["compilations"]]
    assert len(counts) == 6 and len(set(counts[2:])) == 1, counts


def test_what_only_the_first_replica_meets_ends_all(tmp_path):
    """The other one would wait for its next sum for ever."""
    (tmp_path / "ck").write_text("no folder", encoding="utf-8")
    replicas = process(tmp_path, "train_tpu.py", CPU_NUM_DEVICES="2")
    _, error = replicas.communicate(timeout=300)
    assert replicas.returncode == 1 and "error: nothing can be written" in error and "Traceback" not in error, error


def test_without_a_tpu_nothing_is_trained_unless_asked_for():
    environment = {name: value for name, value in os.environ.items() if name != "PJRT_DEVICE"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_tpu.py")], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "error: no TPU was found" in done.stderr and "Traceback" not in done.stderr
