"""Several processes under torchrun: they train as one would with all their items, and die together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny import RATE, random_unet, song, tiny_config
from trainers import ROOT, flat, start, tiny

import inference
from diffvocsep.audio import read, write
from diffvocsep.checkpoint import load_checkpoint, save_checkpoint
from diffvocsep.config import save_config, to_dict
from diffvocsep.training.run_folder import FolderLock

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen:
    """train.py as two processes, in `folder`."""
    save_config(tiny(folder), folder / "tiny.yaml")
    command = [
        sys.executable,
        *TORCHRUN,
        str(ROOT / "train.py"),
        "--config",
        "tiny.yaml",
        "--device",
        "cpu",
        *arguments,
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=ENVIRONMENT,
    )


def wait_for(process: subprocess.Popen, beginning: str) -> str:
    """What is said up to a line with that beginning."""
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(beginning):
            return "".join(said)
    raise AssertionError(process.communicate())


def kill(process: subprocess.Popen, rank: str) -> list[psutil.Process]:
    """Kill one of two processes; returns both."""
    workers = {child.environ().get("RANK"): child for child in psutil.Process(process.pid).children()}
    assert workers.keys() - {None} == {"0", "1"}
    workers[rank].kill()
    return [workers["0"], workers["1"]]


def gone(worker: psutil.Process) -> bool:
    """Whether it can do nothing any more, though torchrun may not have noticed."""
    try:
        return worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


SHARES = ["train.refine_share=0.5", "train.consistency_share=0.5"]
REFINE = ["train.parts=refine", "model.refine_rank=2", "train.refine_share=1", "diffusion.ddim_steps=2"]


@pytest.mark.parametrize(
    "steps, compiled, more", [(20, "false", []), (3, "true", []), (6, "false", SHARES), (6, "false", REFINE)]
)
@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path, steps, compiled, more):
    """In float64, with two batches a step: losses, gradients, weights and their average agree to 1e-6 over 20 steps;
    and over a few where both processes call what torch.compile has traced, where a share of the items have a twin and
    a share see their own guess, or where only the weights that refine guesses are trained."""
    results = []
    for batch, launch, compile_ in (("2", TORCHRUN, compiled), ("4", [], "false")):
        result = tmp_path / f"{batch}.pt"
        command = [sys.executable, *launch, str(ROOT / "tests" / "ranks.py"), str(tmp_path / batch), batch, str(result),
                   f"train.max_steps={steps}", f"train.compile={compile_}", *more]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, timeout=600)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(result))
    two, one = map(flat, results)
    assert two.keys() == one.keys() and len(results[0]["steps"]) == steps
    assert any(
        torch.is_tensor(value) and value.abs().max() > 1e-3 for name, value in one.items() if "gradients" in name
    )
    for name, value in one.items():
        assert not torch.is_tensor(value) or value.dtype == torch.float64, name
        torch.testing.assert_close(
            two[name], value, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
def test_a_dead_process_ends_the_run_and_one_alone_goes_on(tmp_path):
    process = torchrun(tmp_path, "train.max_steps=100000", "train.val_every_steps=4", "train.steps_per_epoch=1000")
    said = wait_for(process, "step 4:")
    killed = time.monotonic()
    workers = kill(process, rank="1")
    out, error = process.communicate(timeout=120)
    assert time.monotonic() - killed < 60 and process.returncode == 1
    assert not any(psutil.pid_exists(child.pid) for child in workers)
    last = tmp_path / "ck" / "last.pt"
    state = load_checkpoint(last)
    assert state["step"] >= 4 and state["samples"] == 2 * 2 * state["step"]
    assert f"another process of this run was lost after step {state['step']} " in error
    assert said.count("training on 2 x cpu") == 1 and len(list((tmp_path / "tb").iterdir())) == 1

    end = state["step"] + 2
    alone = start(tmp_path, f"train.max_steps={end}")
    out, error = alone.communicate(timeout=300)
    assert alone.returncode == 0 and f"last.pt at step {end - 2}" in out, error
    state = load_checkpoint(last)
    assert state["step"] == end and state["samples"] == 4 * (end - 2) + 2 * 2
    assert len(list((tmp_path / "tb").iterdir())) == 1

    again = torchrun(tmp_path, f"train.max_steps={end + 1}", "diffusion.beta_end=0.03")
    out, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert error.count("note: diffusion.beta_end = 0.03 is ignored") == 1
    assert out.count(f"step {end + 1}: median SDR") == 1, "the first validates alone"
    assert load_checkpoint(last)["samples"] == 4 * (end - 2) + 2 * 2 + 4


@pytest.mark.parametrize("ending, code, said", [("print('done') or 3", 3, "done"), ("fail()", 2, "")])
def test_a_process_of_torchrun_leaves_with_its_code_whatever_would_come_then(ending, code, said):
    """torch 2.11 with gloo was seen to abort while Python takes itself down."""
    script = (
        "import atexit, os, sys; from diffvocsep.util.cli import main; from diffvocsep.util.errors import UserError\n"
        "def fail(): raise UserError('no such song')\n"
        f"atexit.register(os.abort); main(lambda: {ending})"
    )
    for extra in ({"TORCHELASTIC_RUN_ID": "x"}, {}):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | extra, cwd=ROOT
        )
        assert (done.returncode == code) == bool(extra) and said in done.stdout
        assert ("error: no such song" in done.stderr) == (code == 2)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
def test_the_first_process_dead_ends_the_run_with_what_it_saved(tmp_path):
    """It alone writes; the others leave its files as they were."""
    process = torchrun(tmp_path, "train.max_steps=100000", "train.val_every_steps=4", "train.steps_per_epoch=1000")
    wait_for(process, "step 8:")
    killed = time.monotonic()
    first, _ = kill(process, rank="0")
    while not gone(first):
        time.sleep(0.001)
    last = tmp_path / "ck" / "last.pt"
    left, written = last.read_bytes(), last.stat().st_mtime_ns
    process.communicate(timeout=120)
    assert time.monotonic() - killed < 60 and process.returncode == 1
    assert last.read_bytes() == left and last.stat().st_mtime_ns == written
    state = load_checkpoint(last)
    assert state["step"] >= 4 and state["samples"] == 2 * 2 * state["step"]


@pytest.mark.slow
def test_a_polite_kill_stops_all_after_the_same_step(tmp_path):
    process = torchrun(tmp_path, "train.max_steps=100000", "train.val_every_steps=2", "train.steps_per_epoch=100000")
    wait_for(process, "step 2:")
    process.send_signal(signal.SIGTERM)  # torchrun passes it on, like Ctrl-C
    out, error = process.communicate(timeout=120)
    state = load_checkpoint(tmp_path / "ck" / "last.pt")
    assert out.count("stopping after this step") == 1, error
    assert f"stopped at step {state['step']}; the same command" in out and "was lost" not in error


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9")
def test_processes_whose_torchrun_was_killed_save_and_end(tmp_path):
    """Nobody would know that they still train."""
    process = torchrun(tmp_path, "train.max_steps=100000", "train.val_every_steps=4", "train.steps_per_epoch=100000")
    wait_for(process, "step 4:")
    workers = [child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()]
    assert len(workers) == 2
    process.kill()
    out, error = process.communicate(timeout=15)  # to the end of all that hold the pipes
    assert all(map(gone, workers)) and "Traceback" not in error
    state = load_checkpoint(tmp_path / "ck" / "last.pt")
    assert f"stopped at step {state['step']}; the same command" in out, error


@pytest.mark.slow
def test_a_folder_that_another_training_holds_is_refused_in_one_sentence(tmp_path):
    with FolderLock(tmp_path / "ck"):
        _, error = torchrun(tmp_path).communicate(timeout=120)
    said = [line for line in error.splitlines() if line.startswith(("error:", "interrupted"))]
    assert len(said) == 1 and "another training writes into" in said[0]


@pytest.fixture
def command(tmp_path) -> list[str]:
    """What inference.py is called with: a folder of three songs and what is none."""
    config, songs = tiny_config(), tmp_path / "songs"
    songs.mkdir()
    for i in range(3):
        write(songs / f"{i}.wav", 0.3 * song(0.6, seed=i), RATE)
    (songs / "3.wav").write_bytes(b"no audio")
    save_checkpoint(tmp_path / "m.pt", {"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 1})
    return ["--model_path", str(tmp_path / "m.pt"), "--device", "cpu", "--no-progress", "--input", str(songs),
            "--output", str(tmp_path / "out")]  # fmt: skip


def assert_each_song_once(folder: Path, out: str) -> None:
    said = sorted(line.split(" -> ")[0] for line in out.splitlines())
    assert said == sorted(["device: cpu, as asked for", *(str(folder / "songs" / f"{i}.wav") for i in range(3))])
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{i}_vocals.wav" for i in range(3)]
    assert all(read(path)[0].any() for path in (folder / "out").iterdir())


def test_each_process_takes_its_share_of_the_songs(tmp_path, command, monkeypatch, capsys):
    """One after the other, in this process, each with what torchrun would tell it."""
    monkeypatch.setattr(
        "diffvocsep.training.backends.wait_for_all_processes", lambda: None
    )  # where they wait for each other
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        inference.run(command)
    out, error = capsys.readouterr()
    assert_each_song_once(tmp_path, out)
    assert "3.wav" in error


@pytest.mark.slow
def test_songs_of_a_folder_are_shared(tmp_path, command):
    program = [sys.executable, *TORCHRUN, str(ROOT / "inference.py"), *command]
    done = subprocess.run(program, capture_output=True, text=True, encoding="utf-8", env=ENVIRONMENT, timeout=300)
    assert done.returncode == 1 and "3.wav" in done.stderr, "torchrun's code for a process that failed"
    assert_each_song_once(tmp_path, done.stdout)
