"""The benchmarks of a training step: their arithmetic on a clock of our own, and that they run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from trainers import CPU, TINY

from benchmarks import data, train_step

MPS = torch.device("mps")
SMALL = ["--device", "cpu", "--rounds", "1", *TINY.split(), "model.base_channels=8"]


class Clock:
    """Time passes only when somebody works."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.waits = 0.0, 0
        monkeypatch.setattr(train_step.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.accelerator, "synchronize", self.wait)

    def work(self, *seconds: float):
        """A step that takes so long, call by call."""
        left = iter(seconds)

        def step() -> None:
            self.now += next(left)

        return step

    def wait(self, device: torch.device) -> None:
        assert device.type == "mps"
        self.waits += 1


def printed(capsys) -> list[list[str]]:
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_operations_of_a_convolution_are_counted_forward_and_backward():
    layer, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.randn(2, 3, 8, 6, requires_grad=True)
    forward = 2 * (2 * 8 * 6) * 5 * (3 * 3 * 3)  # multiply and add, for every output value, over all it sees
    assert train_step.flops(lambda: layer(x)) == forward
    assert train_step.flops(lambda: layer(x).sum().backward()) == 3 * forward  # also for the input and for the weight


@pytest.mark.parametrize("layout", train_step.LAYOUTS)
def test_the_limits_know_their_operations(layout, monkeypatch):
    monkeypatch.setattr(train_step, "BATCH", 2)
    work = train_step.convolution((4, 6, 5), train_step.LAYOUTS[layout], CPU, None)
    assert work.flop == train_step.flops(work.step) == 2 * (2 * 6 * 5) * 4 * (9 * 4)
    assert work.step().is_contiguous(memory_format=train_step.LAYOUTS[layout])
    product = train_step.matrix_product(8, CPU, torch.bfloat16)
    assert product.flop == train_step.flops(product.step) == 2 * 8**3 and product.step().dtype == torch.bfloat16


def test_steps_take_turns_so_that_a_busy_machine_slows_all_alike(monkeypatch):
    clock = Clock(monkeypatch)
    busy = [50, 30, 1, 4, 2]  # the first two rounds do not count
    steps = {"one": clock.work(*busy), "other": clock.work(*(1.5 * slow for slow in busy))}
    times = train_step.in_turn(steps, CPU, 3)
    assert times["one"].tolist() == [1, 4, 2] and times["other"].tolist() == [1.5, 6, 3]
    assert clock.waits == 0  # a CPU has nothing to wait for
    row = train_step.cells(train_step.Work(lambda: None, 12e9), times["other"], 3.0, times["one"], [])
    assert row[1:3] == ["1000.00 (500.00 .. 2000.00)", "1.50 (1.50 .. 1.50)"]


def test_an_accelerator_is_waited_for_once_after_many_calls(monkeypatch):
    clock = Clock(monkeypatch)
    batch, _, calls = train_step.sizes(MPS)
    assert calls > 10 and batch > train_step.sizes(CPU)[0]
    assert train_step.seconds(clock.work(*[2.0] * calls), MPS) == 2 and clock.waits == 2
    data.on(MPS, {"index": torch.arange(3)})
    assert clock.waits == 3


def test_a_row_says_milliseconds_rates_and_shares():
    times, work = np.array([2.0, 4.0, 3.0]), train_step.Work(lambda: None, 12e9, 0.5)  # 6, 3 and 4 GFLOP/s
    limits = [np.array([12e9, 12e9, 12e9]), np.array([60e9, 6e9, 16e9])]  # shares of the latter: 10, 50 and 25 %
    assert train_step.cells(work, times, 12.0, np.array([1.0, 1.0, 3.0]), limits) == [
        "3000.0", "250.00 (166.67 .. 333.33)", "2.00 (1.00 .. 4.00)", "12.0", "4.0", "33%", "25%", "0.50"]  # fmt: skip


def test_the_fastest_is_that_of_the_highest_rate_not_of_the_shortest_time(monkeypatch):
    clock = Clock(monkeypatch)
    works = [train_step.Work(clock.work(*[took] * 9), flop) for took, flop in ((1, 10), (4, 50), (9, 60))]
    assert train_step.fastest(works, CPU).flop == 50


def test_what_is_kept_for_the_backward_pass_is_counted():
    x = torch.randn(2**20, requires_grad=True)
    assert train_step.memory(lambda: x.exp().sum(), CPU) == pytest.approx(4 * 2**20 / 2**30, rel=0.01)


@pytest.fixture
def small(monkeypatch):
    """Limits that take no time, a compiler that leaves all as it is; what was compiled."""
    monkeypatch.setattr(train_step, "SHAPES", ((8, 16, 16),))
    monkeypatch.setattr(train_step, "SIZES", (16,))
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(type(model).__name__) or model)
    compiled: list[str] = []
    return compiled


def test_it_prints_a_table_of_ours_and_of_diffusers(small, capsys):
    assert train_step.run([*SMALL, "--only", "float32", "--layout", "channels_last"]) == 0
    head, _, convolution, product, *lines = printed(capsys)
    assert head == ["batch of 2 x 0.5 s, 1 rounds", *train_step.COLUMNS]
    assert convolution[0] == "limit, a 3x3 convolution: float32" and convolution[6] == product[7] == "100%"
    whos = ("ours, network alone", "diffusers, network alone", "ours, training step without data")
    ways = ("float32, channels_last", "float32, channels_last, compile")
    assert [line[0] for line in lines] == [f"{who}: {way}" for way in ways for who in whos]
    assert sorted(small) == ["DiffusersUNet", "UNet"]
    for line in lines:
        step, audio, gflop, rate = float(line[1]), float(line[2].split()[0]), float(line[4]), float(line[5])
        assert audio == pytest.approx(step, abs=0.1)  # 1 s of audio
        assert rate * step / 1e3 == pytest.approx(gflop, abs=0.1 * step / 1e3 + 0.1)
        assert (line[8] == "-") == ("compile" in line[0])
    assert {line[3] for line in lines[::3]} == {"1.00 (1.00 .. 1.00)"}
    network, theirs, training = (float(line[4]) for line in lines[:3])
    assert theirs != network and 0 < network < training < 1.6 * network, "Muon's products come on top"


@pytest.mark.parametrize("fast", [False, True])
def test_what_is_measured_is_what_the_hardware_has_or_what_was_asked_for(fast, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(train_step, "fast_bf16", lambda device: fast)
    monkeypatch.setattr(train_step, "measure", lambda _, __, name, ways, *rest: seen.append((name, ways)) or {})
    every = [("contiguous", False), ("contiguous", True), ("channels_last", False), ("channels_last", True)]
    assert train_step.run(SMALL) == 0
    assert seen == [(name, every) for name in (["float32", "bf16"] if fast else ["float32"])]
    assert train_step.run([*SMALL, "--only", "bf16", "--layout", "channels_last", "--no-compile"]) == 0
    assert seen[-1] == ("bf16", [("channels_last", False)])


@pytest.mark.slow
def test_rows_of_bf16_are_computed_in_bf16(small, monkeypatch, capsys):
    seen, autocast = set(), train_step.autocast
    monkeypatch.setattr(train_step, "autocast", lambda device, dtype: seen.add(dtype) or autocast(device, dtype))
    assert train_step.run([*SMALL, "--only", "bf16", "--layout", "contiguous", "--no-compile"]) == 0
    names = [line[0] for line in printed(capsys)][4:]
    assert len(names) == 3 and all(name.endswith(": bf16") for name in names)
    assert seen == {torch.bfloat16} and not small


def test_a_step_that_is_measured_is_one_batch(tmp_path):
    assert train_step.settings(None, ["train.accumulate=4"], str(tmp_path)).train.accumulate == 1
