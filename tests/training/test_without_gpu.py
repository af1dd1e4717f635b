"""What a GPU would tell at once, told without one: tensors on the wrong device, float16, what torch.compile traces."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from trainers import make, tiny

from diffvocsep.separator import Separator
from diffvocsep.training.objective import Objective
from diffvocsep.unet import UNet

CUDA = torch.device("cuda:0")
ELSEWHERE = "found two different devices"


@pytest.fixture
def fake_cuda(monkeypatch) -> FakeTensorMode:
    """Tensors on a GPU that hold no numbers; other tensors may be brought in, on the CPU."""
    monkeypatch.setattr(UNet, "to", lambda model, *_: model)  # fake weights cannot be moved, but made there
    return FakeTensorMode(allow_non_fake_inputs=True)


def test_the_stand_in_sees_a_wrong_device_and_a_wait_for_the_gpu(fake_cuda):
    real = torch.ones(2)
    with fake_cuda:
        there = torch.ones(2, device=CUDA)
        for here in (real, torch.ones(2)):
            with pytest.raises(RuntimeError, match=ELSEWHERE):
                there + here
        with pytest.raises(DataDependentOutputException):
            there.tolist()


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(["diffusion.prediction_type=v", "diffusion.sampler=ddpm"], marks=pytest.mark.slow),
        ["separation.subtract=mask", "diffusion.eta=1", "audio.bandwidth=3000"],
        pytest.param(
            ["audio.representation=magnitude", "separation.subtract=normalized", "diffusion.sampler=dpmpp"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_everything_is_on_the_gpu_and_nothing_waits_for_it(fake_cuda, tmp_path, channels, how):
    config = tiny(
        tmp_path, f"audio.channels={channels}", "diffusion.ddim_steps=3", "diffusion.samples=2", "model.attention=[2]",
        "model.attention_heads=2", *how,
    )  # fmt: skip
    objective, separator = Objective(config), Separator(UNet(config), config, CUDA)
    with fake_cuda:
        with CUDA:
            separator.denoiser.model = UNet(config)
            batch = {side: torch.randn(2, channels, 4000) for side in ("vocals", "accompaniment")}
            batch |= {"source_rate": torch.full((2,), 8000.0), "level_db": torch.zeros(2)}
            uniform, noise = torch.rand(2, 2), torch.randn(2, *objective.shape())
            mixture = torch.randn(2, channels, 257, 64, dtype=torch.complex64)
        terms = objective(separator.model, batch, uniform, noise)
        statistics = separator.frontend.representation.statistics(mixture[:1])
        vocals = separator.vocals(mixture, statistics, [0, 32], separator.frontend.bins, config)
    assert {value.device for value in (*terms.values(), vocals)} == {CUDA}
    assert vocals.shape == mixture.shape


@pytest.mark.slow
def test_float16_with_its_scaler_trains_as_float32_does(tmp_path):
    """The path of older GPUs. The loss is scaled by 65536, the gradients scaled back before they are clipped."""
    plain, half = (make(tmp_path, f"train.amp={amp}", "train.max_steps=8") for amp in ("none", "fp16"))
    assert half.dtype == torch.float16
    for one, other in zip(plain.steps(), half.steps(), strict=True):
        expected, terms = plain.optimize(one), half.optimize(other)
        for name, rtol in (("loss", 1e-3), ("gradient_norm", 1e-2)):  # of float16 a rounding is up to 5e-4
            torch.testing.assert_close(terms[name], expected[name], rtol=rtol, atol=0)
    assert (half.progress.step, half.progress.skipped, half.scaler.get_scale()) == (8, 0, 65536.0)


@pytest.mark.slow
def test_the_network_is_traced_as_one_graph_and_trains_alike(tmp_path, monkeypatch):
    """What torch.compile sees of it; the kernels are torch's own, for others take minutes to build."""
    plain, compile_ = make(tmp_path), torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="eager", fullgraph=True))
    traced = make(tmp_path, "train.compile=true")
    assert isinstance(traced.network, torch._dynamo.OptimizedModule)
    for _, one, other in zip(range(2), plain.steps(), traced.steps(), strict=False):
        terms = traced.optimize(other)
        for name, value in plain.optimize(one).items():
            torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)
