"""Noise schedules, targets and loss weights, against diffusers and against the formulas written out."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr as diffusers_rescale

from diffvocsep.config import DiffusionConfig
from diffvocsep.diffusion import Diffusion, make_betas, rescale_zero_terminal_snr
from diffvocsep.util.errors import UserError

PREDICTION_TYPES = ["epsilon", "v", "x_0", "residual"]


def make_diffusion(**changes) -> Diffusion:
    options = dict(
        timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        zero_terminal_snr=False,
        prediction_type="v",
        terminal_share=0.0,
    )
    return Diffusion(**options | changes)


def tensors(count: int, batch: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 2, 5, 3, generator=generator, dtype=dtype) for _ in range(count)]


def diffusers_scheduler(diffusion: Diffusion) -> DDPMScheduler:
    scheduler = DDPMScheduler(num_train_timesteps=diffusion.timesteps)
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    return scheduler


@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
@pytest.mark.parametrize("timesteps", [2, 50, 1000])
def test_betas_equal_diffusers(ours, theirs, timesteps):
    reference = DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=theirs).betas.double()
    betas = make_betas(ours, timesteps, 1e-4, 0.02)
    assert betas.dtype == torch.float64
    torch.testing.assert_close(betas, reference, rtol=2e-6, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rescale_equals_diffusers_and_ends_at_zero(schedule):
    betas = make_betas(schedule, 1000, 1e-4, 0.02)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    rescaled = rescale_zero_terminal_snr(alphas_cumprod)
    reference = torch.cumprod(1 - diffusers_rescale(betas), dim=0)
    torch.testing.assert_close(rescaled, reference, rtol=1e-10, atol=1e-15)
    assert rescaled[-1] == 0
    assert rescaled[0].item() == pytest.approx(alphas_cumprod[0].item(), rel=1e-14)
    assert (rescaled.diff() < 0).all()


def test_q_sample_and_v_target_equal_diffusers():
    diffusion = make_diffusion()
    scheduler = diffusers_scheduler(diffusion)
    x_start, noise, mixture = tensors(3)
    t = torch.tensor([0, 1, 500, 999])
    x_t = diffusion.q_sample(x_start, t, noise)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_start, noise, t), rtol=1e-12, atol=1e-14)
    v = diffusion.target(x_start, noise, t, mixture)
    torch.testing.assert_close(v, scheduler.get_velocity(x_start, noise, t), rtol=1e-12, atol=1e-14)


def test_targets_of_the_other_types():
    x_start, noise, mixture = tensors(3)
    t = torch.tensor([0, 1, 500, 999])
    expected = {"epsilon": noise, "x_0": x_start, "residual": mixture - x_start}
    for prediction_type, value in expected.items():
        target = make_diffusion(prediction_type=prediction_type).target(x_start, noise, t, mixture)
        assert torch.equal(target, value)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_target_and_predict_x_start_are_inverse(prediction_type, zero_terminal_snr):
    diffusion = make_diffusion(prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr)
    x_start, noise, mixture = tensors(3)
    last = 998 if zero_terminal_snr and prediction_type == "epsilon" else 999  # undefined at 999
    t = torch.tensor([0, 1, 500, last])
    x_t = diffusion.q_sample(x_start, t, noise)
    output = diffusion.target(x_start, noise, t, mixture)
    torch.testing.assert_close(diffusion.predict_x_start(output, x_t, t, mixture), x_start, rtol=1e-9, atol=1e-11)


def test_predictions_are_finite_where_they_are_undefined():
    diffusion = make_diffusion(prediction_type="epsilon", zero_terminal_snr=True, beta_start=0.0)
    assert diffusion.alphas_cumprod[0] == 1 and diffusion.alphas_cumprod[-1] == 0
    x_t, output, mixture = tensors(3, batch=2)
    t = torch.tensor([0, 999])
    x_start = diffusion.predict_x_start(output, x_t, t, mixture)
    assert torch.equal(x_start[0], x_t[0])
    assert torch.equal(x_start[1], torch.zeros_like(x_start[1]))


def test_float32_comes_from_float64_tables():
    diffusion = make_diffusion()
    x_start, noise = tensors(2, batch=1)
    t = torch.tensor([0])  # 1 - alphas_cumprod[0] = 1e-4 would lose three digits in float32
    exact = diffusion.q_sample(torch.zeros_like(x_start), t, noise)
    x_t = diffusion.q_sample(torch.zeros_like(x_start).float(), t, noise.float())
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t.double(), exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_results_stay_on_the_device_of_the_tensors(prediction_type):
    # "meta" tensors have a device and no values, and refuse to meet a CPU tensor, as those on a GPU do.
    diffusion = make_diffusion(prediction_type=prediction_type, terminal_share=0.5)
    x_start, noise, mixture = (tensor.to("meta") for tensor in tensors(3))
    t = diffusion.sample_timesteps(torch.rand(4, device="meta"))
    x_t = diffusion.q_sample(x_start, t, noise)
    output = diffusion.target(x_start, noise, t, mixture)
    results = [x_t, output, diffusion.predict_x_start(output, x_t, t, mixture)]
    assert all(result.is_meta for result in [t, *results])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_sample_timesteps_gives_the_terminal_share_and_spreads_the_rest(share):
    timesteps, count = 50, 100_000
    diffusion = make_diffusion(timesteps=timesteps, terminal_share=share)
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # every part of [0, 1) equally often
    t = diffusion.sample_timesteps(uniform)
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=timesteps)
    assert len(counts) == timesteps
    evenly = (1 - share) * count / timesteps
    assert (counts[:-1] - evenly).abs().max() <= 1
    assert counts[-1].item() == pytest.approx(share * count + evenly, abs=2)


@pytest.mark.parametrize("share", [0.0, 0.04, 0.1, 1.0])  # at 0.04 and 0.1, rounding would reach T
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_timesteps_stays_in_range_at_the_ends(share, dtype):
    zero = torch.tensor(0.0, dtype=dtype)
    edges = torch.tensor([1 - share, 1.0], dtype=dtype)
    uniform = torch.stack([zero, *torch.nextafter(edges, zero)])
    t = make_diffusion(timesteps=10, terminal_share=share).sample_timesteps(uniform)
    assert t.tolist() == [9 if share == 1 else 0, 9, 9]


def test_check_refuses_epsilon_from_pure_noise_only():
    with pytest.raises(UserError, match="cannot be recovered.*v, x_0 or residual.*linear"):
        make_diffusion(prediction_type="epsilon", zero_terminal_snr=True).require_samplable()
    with pytest.raises(UserError, match="cannot be recovered"):
        make_diffusion(prediction_type="epsilon", beta_schedule="cosine").require_samplable()
    make_diffusion(prediction_type="epsilon").require_samplable()
    for prediction_type in ["v", "x_0", "residual"]:
        make_diffusion(prediction_type=prediction_type, zero_terminal_snr=True).require_samplable()


@pytest.mark.parametrize("ending", [{"timesteps": 100}, {"beta_start": 1e-5, "beta_end": 1e-4}])
def test_a_schedule_that_ends_far_from_noise_cannot_be_sampled(ending):
    """A network that is trained with it looks for the signal that is left (Lin et al. 2023, section 2)."""
    with pytest.raises(UserError, match="of the signal's power at its last timestep"):
        make_diffusion(**ending).require_samplable()
    make_diffusion(**ending, zero_terminal_snr=True).require_samplable()


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_schedule_that_adds_no_noise_is_refused(zero_terminal_snr):
    with pytest.raises(UserError, match="no noise is added: set both higher"):
        make_diffusion(beta_start=1e-20, beta_end=1e-18, zero_terminal_snr=zero_terminal_snr)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": 1}, "timesteps is 1"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'.*linear, cosine"),
        ({"beta_start": 0.03}, "beta_start 0.03"),
        ({"beta_end": 1.0}, "beta_end 1.0"),
        ({"beta_start": 0.0, "beta_end": 0.0}, "beta_end > 0"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"terminal_share": 1.5}, "terminal_share is 1.5"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_diffusion(**changes)


def test_a_config_gives_its_process():
    diffusion = Diffusion.from_config(DiffusionConfig(timesteps=300, terminal_share=0.4, beta_schedule="linear"))
    assert diffusion.timesteps == len(diffusion.alphas_cumprod) == 300 and diffusion.terminal_share == 0.4
    assert diffusion.alphas_cumprod[0] == pytest.approx(1 - 1e-4) and diffusion.alphas_cumprod[-1] == 0


def test_a_schedule_that_ends_early_is_refused():
    with pytest.raises(UserError, match=r"beta_end.*lower"):
        make_diffusion(beta_end=0.95)
