"""What differs between devices, and what must not: shown without them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from trainers import CPU, assert_same_run, at_step, make, run, tiny

import diffvocsep.training.trainer as trainer_module
import train
from diffvocsep.checkpoint import load_checkpoint
from diffvocsep.config import save_config
from diffvocsep.data.loader import prefetch, with_noise
from diffvocsep.training.backends import Backend, Distributed, find_backend
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.device import amp_dtype, channels_last, resolve_device
from diffvocsep.util.errors import UserError
from diffvocsep.util.rng import normal


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- several processes, with a stand-in for what averages ------------------------------------------------------------


class Replica(Backend):
    """One of several threads that average over a meeting point: what a TPU's all-reduce does."""

    def __init__(self, rank: int, world_size: int, meeting: threading.Barrier, table: dict) -> None:
        super().__init__(CPU)
        self.rank, self.world_size, self.meeting, self.table = rank, world_size, meeting, table

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        self.meeting.wait(60)
        self.table[self.rank] = values.clone()
        self.meeting.wait(60)
        return torch.cat([self.table[rank] for rank in range(self.world_size)])

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return self.gather(values[None]).mean(0)

    def reduce_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.copy_(self.mean(parameter.grad))

    def barrier(self) -> None:
        self.meeting.wait(60)


def test_replicas_reduce_before_they_clip_and_one_writes(tmp_path):
    """Clipped mean gradients of two replicas are those of one process with all the items, and only one writes."""
    settings = ["train.grad_clip=0.05", "train.max_steps=3"]
    one = run(tmp_path / "one", "train.batch_size=4", *settings)
    meeting, table, ended = threading.Barrier(2), {}, {}

    def train(rank: int) -> None:
        ended[rank] = trainer = Trainer(
            tiny(tmp_path / f"rank {rank}", *settings), Replica(rank, 2, meeting, table), "none"
        )
        assert trainer.run() == 0

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "rank 0" / "ck" / "best.pt").exists() and not (tmp_path / "rank 1").exists()
    assert ended[0].progress.samples == ended[1].progress.samples == one.progress.samples == 12
    for name, tensor in one.model.state_dict().items():
        for trainer in ended.values():
            torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-3, atol=2e-5)


def test_where_the_first_process_refuses_the_others_have_no_traceback():
    class Second(Backend):
        rank, world_size, said = 1, 2, "[gloo/pair.cc:547] Connection closed by peer"
        is_process_lost = Distributed.is_process_lost

        def barrier(self) -> None:
            raise RuntimeError(self.said)

    with pytest.raises(ConnectionError, match="the first process of this run has ended"), Second(CPU).main_first():
        pytest.fail("there is nothing to find")
    Second.said = "a shape is wrong"
    with pytest.raises(RuntimeError, match="a shape is wrong"), Second(CPU).main_first():
        pytest.fail("there is nothing to find")


def test_ctrl_c_in_the_validation_stops_all_where_it_can_be_made_up_for(tmp_path, monkeypatch):
    """The first process alone hears it here: one more step, and nobody would know of the validation that is due."""
    meeting, table, trainers, codes = threading.Barrier(2), {}, {}, {}
    monkeypatch.setattr(trainer_module, "validate", lambda *_: setattr(trainers[0].interruption, "requested", True))

    def train(rank: int) -> None:
        trainers[rank] = Trainer(tiny(tmp_path), Replica(rank, 2, meeting, table), "none")
        codes[rank] = trainers[rank].run()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = load_checkpoint(tmp_path / "ck" / "last.pt")
    assert codes == {0: 130, 1: 130} and (state["step"], state["validated"]) == (2, 0)
    assert trainers[1].progress.step == 2


def test_torchrun_is_seen_and_mps_is_not_shared(monkeypatch):
    assert type(find_backend("cpu")) is Backend
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes cannot share 'mps'; start train.py without torchrun"):
        Distributed(torch.device("mps"))


def test_train_py_leaves_no_process_group_behind(tmp_path, monkeypatch):
    """NCCL would complain at exit."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    monkeypatch.setattr("diffvocsep.training.backends.find_backend", lambda name: Distributed(CPU))
    save_config(tiny(tmp_path, "train.max_steps=1"), tmp_path / "tiny.yaml")
    assert train.run(["--config", str(tmp_path / "tiny.yaml")]) == 0
    assert not torch.distributed.is_initialized()


# ---- what a device gets ----------------------------------------------------------------------------------------------


def test_memory_layout_and_optimizer_follow_the_device(monkeypatch):
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    assert channels_last(None, cuda, None) and channels_last(None, CPU, bf16) and not channels_last(None, CPU, None)
    assert channels_last(True, CPU, None) and not channels_last(False, cuda, bf16)
    assert not channels_last(True, torch.device("xla"), bf16)
    asked, precision = {}, torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.optim, "AdamW", lambda _, lr, **options: asked.update(options))
    Backend(CPU).optimizer("adamw", [], 0.1, 0.2)
    assert asked == {"weight_decay": 0.2, "fused": None} and torch.get_float32_matmul_precision() == precision
    try:
        Backend(cuda).optimizer("adamw", [], 0.1, 0.2)
        assert asked["fused"] is True and torch.get_float32_matmul_precision() == "high", "TF32"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_auto_is_bf16_where_the_hardware_has_it_and_fp16_on_other_gpus(monkeypatch):
    asked = []
    for kind, name, computed, otherwise in (
        ("cuda", "torch.cuda.is_bf16_supported", torch.bfloat16, torch.float16),
        ("cpu", "torch.cpu._is_avx512_bf16_supported", torch.bfloat16, None),
    ):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        for there, expected in ((True, computed), (False, otherwise)):
            monkeypatch.setattr(name, lambda there=there, **options: asked.append(options) or there)
            assert amp_dtype("auto", torch.device(kind)) == expected
    assert asked[0] == {"including_emulation": False}, "emulated, it is slower than float32"
    assert amp_dtype("auto", torch.device("mps")) is None
    assert amp_dtype("none", torch.device("cuda")) is None and amp_dtype("bf16", CPU) == torch.bfloat16


def test_a_checkpoint_from_a_gpu_goes_on_with_this_device_s_optimizer(tmp_path):
    run(tmp_path, "train.max_steps=2", "train.optimizer=adamw")
    path = tmp_path / "ck" / "last.pt"
    state = load_checkpoint(path)
    state["optimizer"]["param_groups"][0]["fused"] = True
    torch.save(state, path)
    (group,) = make(tmp_path, "train.optimizer=adamw", resume="auto").optimizer.param_groups
    assert group["fused"] is None


class Fused(Backend):
    """As on CUDA, one kernel for all weights."""

    def optimizer(
        self, name: str, parameters: Iterable[torch.Tensor], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)


@pytest.mark.parametrize("before", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_checkpoint_of_another_memory_layout_goes_on_in_this_one(tmp_path, before):
    """One kernel for all reads weights, gradients and moments side by side, whatever layout they claim to have."""
    after = "false" if before == "true" else "true"
    run(tmp_path, f"train.channels_last={before}", "train.max_steps=2", "train.optimizer=adamw", "train.lr=0.002")
    weights, overrides = [], (f"train.channels_last={after}", "train.max_steps=4", "train.optimizer=adamw")
    for where in (Backend(CPU), Fused(CPU)):
        trainer = Trainer(tiny(tmp_path, *overrides, "train.lr=0.002"), where, "auto")
        for batches in trainer.steps():
            for parameter, moments in trainer.optimizer.state.items():
                assert {moments[name].stride() for name in ("exp_avg", "exp_avg_sq")} == {parameter.stride()}
            trainer.optimize(batches)
        state = trainer.model.state_dict()
        assert all(trainer.ema[name].stride() == tensor.stride() for name, tensor in state.items())
        weight = state["down.0.blocks.0.conv1.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last) == (after == "true")
        weights.append(state)
    for name, tensor in weights[0].items():
        assert (weights[1][name] - tensor).abs().max() < 2e-4, name  # a tenth of train.lr


def test_the_moments_of_muon_take_the_layout_of_the_weights(tmp_path):
    run(tmp_path, "train.channels_last=false", "train.max_steps=2")
    trainer = make(tmp_path, "train.channels_last=true", "train.max_steps=3", resume="auto")
    kernels = 0
    for parameter, moments in trainer.optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        kernels += parameter.ndim == 4 and not parameter.is_contiguous()
    assert kernels > 10
    assert trainer.run() == 0


class FakeMPS(TorchFunctionMode):
    """Everything that is asked of MPS happens on the CPU, but for what MPS does not have, float64, or gets wrong."""

    used = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def map_(value):
            if isinstance(value, torch.device | str) and str(value) == "mps":
                if (kwargs or {}).get("non_blocking"):
                    raise RuntimeError("on MPS such a copy may read what has been freed meanwhile (pytorch 139550)")
                FakeMPS.used += 1
                tensors = [a for a in args if isinstance(a, torch.Tensor)]
                asked = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.dtype)]
                dtypes = asked or [tensor.dtype for tensor in tensors]
                if torch.float64 in dtypes or torch.complex128 in dtypes:
                    raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
                return CPU
            return value

        if function is torch.device:
            return function(*args, **(kwargs or {}))
        return function(*map(map_, args), **{name: map_(value) for name, value in (kwargs or {}).items()})


def test_training_and_separation_on_a_stand_in_for_mps(tmp_path, monkeypatch):
    """Real hardware has not been seen; this shows that nothing is asked of it in float64, and nothing by name."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "diffvocsep.training.backends.prefetch", lambda items, device: iter(items)
    )  # the stand-in knows this thread only
    with FakeMPS():
        assert resolve_device("auto") == torch.device("mps")
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(1, dtype=torch.float64).to("mps")
        with pytest.raises(RuntimeError, match="139550"):
            torch.zeros(1).to("mps", non_blocking=True)
        trainer = Trainer(tiny(tmp_path, "data.cache=device", "train.max_steps=2"), torch.device("mps"), "none")
        assert trainer.run() == 0
    assert FakeMPS.used > 20
    assert_same_run(trainer, run(tmp_path / "cpu", "data.cache=device", "train.max_steps=2"))


# ---- the stream ------------------------------------------------------------------------------------------------------


def test_what_is_made_ahead_is_the_same_and_errors_come_in_their_place():
    def items() -> Iterator[int]:
        yield from range(5)
        raise UserError("no more songs")

    stream, seen = prefetch(items()), []
    with pytest.raises(UserError, match="no more songs"):
        seen.extend(iter(lambda: next(stream), None))
    assert seen == [0, 1, 2, 3, 4]
    assert list(prefetch(iter(range(9)))) == list(range(9))
    before = threading.active_count()
    endless = prefetch(iter(lambda: 1, 0))
    assert next(endless) == 1 and threading.active_count() == before + 1
    endless.close()
    assert threading.active_count() == before


def test_one_item_is_made_while_the_one_before_is_used():
    begun = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        begun.set()
        yield 2

    stream = prefetch(items())
    assert next(stream) == 1 and begun.wait(30)
    stream.close()


def test_noise_is_a_function_of_the_index_whatever_thread_draws_it():
    indices = torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(13)
    batches = list(with_noise(iter({"index": part} for part in indices), (2, 30, 7), seed=3))
    for part, batch in zip(indices, batches, strict=True):
        for i, noise in zip(part.tolist(), batch["noise"], strict=True):
            assert torch.equal(noise, normal((2, 30, 7), 3, "noise", i)), i


def test_the_thread_that_makes_them_is_on_the_gpu_of_its_process(monkeypatch):
    """A thread begins on the first GPU; all processes of torchrun would take memory there."""
    seen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.append((threading.current_thread().name, device)))
    assert list(prefetch(iter([1]), torch.device("cuda", 3))) == list(prefetch(iter([1]), CPU)) == [1]
    assert seen == [("prefetch_0", torch.device("cuda", 3))]


def test_under_another_batch_size_the_stream_goes_on_where_it_was(tmp_path):
    run(tmp_path, "train.max_steps=3")
    resumed = make(tmp_path, "train.batch_size=5", resume="auto")
    (batch,) = next(resumed.steps())
    assert batch["index"].tolist() == [6, 7, 8, 9, 10] and len(resumed.segments) == 6 + 3 * 5
    resumed.optimize([batch])
    assert resumed.state()["samples"] == 11

    path = tmp_path / "ck" / "last.pt"
    state = load_checkpoint(path)
    del state["samples"]  # of an older version
    torch.save(state, path)
    assert make(tmp_path, "train.batch_size=5", resume="auto").progress.samples == 6


def test_a_run_that_is_killed_before_its_first_validation_keeps_its_folder(tmp_path, monkeypatch):
    def crash():
        raise RuntimeError("power cut")

    short = "train.max_steps=2"
    with monkeypatch.context() as patch:
        at_step(patch, 1, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path, short).run()
    state = load_checkpoint(tmp_path / "ck" / "last.pt")
    assert state["step"] == 0
    again = make(tmp_path, short, resume="auto")
    assert again.progress.run_id == state["run_id"] and again.run() == 0
    assert [path.name for path in (tmp_path / "tb").iterdir()] == [state["run_id"]]
    assert_same_run(again, run(tmp_path / "undisturbed", short))


def test_where_nothing_was_learnt_another_network_may_begin(tmp_path):
    make(tmp_path).save("last.pt")
    assert make(tmp_path, "model.base_channels=8", resume="auto").progress.step == 0


def test_a_thread_hears_what_the_main_thread_was_told(tmp_path):
    """As in a process of torch_xla, where training is not in the main thread."""
    program = (
        "import signal, threading, time; from diffvocsep.util.interrupt import Interruption, install_handlers\n"
        "install_handlers(); heard = []\n"
        "def train():\n with Interruption(heard.append) as it:\n  ready.set()\n"
        "  while not it.requested: time.sleep(0.01)\n"
        "ready = threading.Event(); thread = threading.Thread(target=train); thread.start(); ready.wait()\n"
        "signal.raise_signal(signal.SIGINT); thread.join(); print(heard)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "stopping after this step" in done.stdout, done.stderr
