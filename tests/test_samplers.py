"""Samplers against diffusers, against DDIM's formulas written out, and against the exact flow of a Gaussian."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from diffvocsep.diffusion import Diffusion
from diffvocsep.samplers import ddim, ddpm, dpmpp, sample, timestep_schedule
from diffvocsep.util.errors import UserError

THEIR_NAME = {"epsilon": "epsilon", "v": "v_prediction", "x_0": "sample"}


def make_diffusion(**changes) -> Diffusion:
    options = dict(
        timesteps=1000,
        beta_schedule="linear",
        beta_start=1e-4,
        beta_end=0.02,
        zero_terminal_snr=False,
        prediction_type="x_0",
        terminal_share=0.0,
    )
    return Diffusion(**options | changes)


def network(x_t: Tensor, t: int) -> Tensor:
    """A fixed nonlinear function in the place of a network."""
    return torch.tanh(1.3 * x_t + math.sin(0.01 * t)) + 0.2 * torch.cos(3 * x_t)


def denoiser(diffusion: Diffusion) -> Callable[[Tensor, int], Tensor]:
    def denoise(x_t: Tensor, t: int) -> Tensor:
        index = torch.full((len(x_t),), t)
        return diffusion.predict_x_start(network(x_t, t), x_t, index, mixture=torch.zeros_like(x_t))

    return denoise


def gaussian_noise(seed: int, shape: tuple[int, ...] = (2, 2, 8, 8)) -> Callable[[int], Tensor]:
    """Step noise in the order in which diffusers draws it from a generator with this seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(shape, generator=generator, dtype=torch.float64)


def no_noise(step: int) -> Tensor:
    raise AssertionError("noise was drawn where none is needed")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def run_diffusers(scheduler, diffusion: Diffusion, steps: int, x_T: Tensor, **step_options) -> tuple[Tensor, list[int]]:
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    scheduler.set_timesteps(steps)
    schedule = scheduler.timesteps.tolist()
    x_t = x_T
    for t in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, int(t)), t, x_t, return_dict=False, **step_options)[0]
    return x_t, schedule


# Every prediction type on a schedule where 1 / sqrt(alphas_cumprod) stays below 1e3, and the two that do not divide
# by it on the schedule with no signal at the end.
CASES = [("epsilon", False), ("v", False), ("x_0", False), ("v", True), ("x_0", True)]


@pytest.mark.parametrize(("prediction_type", "zero_terminal_snr"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_ddpm_equals_diffusers(prediction_type, zero_terminal_snr, steps):
    diffusion = make_diffusion(
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        beta_schedule="cosine" if zero_terminal_snr else "linear",
    )
    x_T = gaussian_noise(1)(0)
    scheduler = DDPMScheduler(
        prediction_type=THEIR_NAME[prediction_type], clip_sample=False, timestep_spacing="trailing"
    )
    expected, schedule = run_diffusers(scheduler, diffusion, steps, x_T, generator=torch.Generator().manual_seed(5))
    assert timestep_schedule(1000, steps) == schedule
    actual = ddpm(denoiser(diffusion), x_T, diffusion.alphas_cumprod, schedule, gaussian_noise(5))
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(("prediction_type", "zero_terminal_snr"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_diffusers_where_steps_divide_timesteps(prediction_type, zero_terminal_snr, steps, eta):
    diffusion = make_diffusion(prediction_type=prediction_type, zero_terminal_snr=zero_terminal_snr)
    x_T = gaussian_noise(1)(0)
    scheduler = DDIMScheduler(
        prediction_type=THEIR_NAME[prediction_type], clip_sample=False, timestep_spacing="trailing"
    )
    expected, schedule = run_diffusers(
        scheduler, diffusion, steps, x_T, eta=eta, generator=torch.Generator().manual_seed(5)
    )
    actual = ddim(denoiser(diffusion), x_T, diffusion.alphas_cumprod, schedule, gaussian_noise(5), eta)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("start", [999, 500])
def test_ddim_follows_the_paper_for_any_number_of_steps(eta, start):
    diffusion = make_diffusion(prediction_type="v")
    schedule = timestep_schedule(start + 1, 7)
    x_T = gaussian_noise(1)(0).numpy()
    draw = gaussian_noise(5)

    x = x_T  # Song et al. 2021, eq. 12 and 16, down to alpha = 1; the network gives v
    alphas = [*diffusion.alphas_cumprod.numpy()[schedule], 1.0]
    for step, t in enumerate(schedule):
        alpha_t, alpha_s = alphas[step], alphas[step + 1]
        v = network(torch.from_numpy(x), t).numpy()
        epsilon = np.sqrt(alpha_t) * v + np.sqrt(1 - alpha_t) * x
        f = (x - np.sqrt(1 - alpha_t) * epsilon) / np.sqrt(alpha_t)
        sigma = eta * np.sqrt((1 - alpha_s) / (1 - alpha_t)) * np.sqrt(1 - alpha_t / alpha_s)
        noise = draw(step).numpy() if eta > 0 and alpha_s < 1 else 0.0
        x = np.sqrt(alpha_s) * f + np.sqrt(1 - alpha_s - sigma**2) * epsilon + sigma * noise

    actual = ddim(
        denoiser(diffusion), torch.from_numpy(x_T), diffusion.alphas_cumprod, schedule, gaussian_noise(5), eta
    )
    assert relative_error(actual, torch.from_numpy(x)) < 1e-9


@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"),
    [("epsilon", "linear"), ("v", "linear"), ("x_0", "linear"), ("v", "cosine"), ("x_0", "cosine")],
)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
def test_dpmpp_equals_diffusers(prediction_type, beta_schedule, steps):
    diffusion = make_diffusion(prediction_type=prediction_type, beta_schedule=beta_schedule)
    x_T = gaussian_noise(1)(0)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type=THEIR_NAME[prediction_type],
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
    )
    expected, schedule = run_diffusers(scheduler, diffusion, steps, x_T)
    assert timestep_schedule(1000, steps) == schedule
    actual = dpmpp(denoiser(diffusion), x_T, diffusion.alphas_cumprod, schedule)
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("steps", [1, 3, 9, 1000])
def test_ddim_with_eta_one_is_ddpm(steps):
    diffusion = make_diffusion(zero_terminal_snr=True, beta_schedule="cosine", prediction_type="v")
    schedule = timestep_schedule(1000, steps)
    arguments = denoiser(diffusion), gaussian_noise(1)(0), diffusion.alphas_cumprod, schedule
    assert relative_error(ddim(*arguments, gaussian_noise(5), 1.0), ddpm(*arguments, gaussian_noise(5))) < 1e-6


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_one_step_from_noise_is_the_denoiser(sampler):
    diffusion = make_diffusion(zero_terminal_snr=True, beta_schedule="cosine", prediction_type="v")
    x_T = gaussian_noise(1)(0)
    denoise = denoiser(diffusion)
    schedule = timestep_schedule(1000, 1)
    x_0 = sample(sampler, denoise, x_T, diffusion.alphas_cumprod, schedule, no_noise, eta=1.0)
    assert torch.equal(x_0, denoise(x_T, 999))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("steps", [2, 3, 20, 1000])
def test_zero_terminal_snr_is_the_limit_of_a_small_one(sampler, steps):
    diffusion = make_diffusion(zero_terminal_snr=True, prediction_type="v")
    nearly = diffusion.alphas_cumprod.clone()
    nearly[-1] = 1e-300  # lambda = -345: dpmpp's correction on the second step fades only as 1 / lambda
    schedule = timestep_schedule(1000, steps)

    def run(alphas_cumprod: Tensor) -> Tensor:
        return sample(
            sampler, denoiser(diffusion), gaussian_noise(1)(0), alphas_cumprod, schedule, gaussian_noise(5), eta=0.5
        )

    assert relative_error(run(nearly), run(diffusion.alphas_cumprod)) < (1e-2 if sampler == "dpmpp" else 1e-9)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_samplers_are_finite_where_the_first_beta_is_zero(sampler):
    diffusion = make_diffusion(timesteps=50, zero_terminal_snr=True, beta_start=0.0, prediction_type="v")
    assert diffusion.alphas_cumprod[0] == 1
    schedule = timestep_schedule(50, 50)
    x_0 = sample(
        sampler, denoiser(diffusion), gaussian_noise(1)(0), diffusion.alphas_cumprod, schedule, gaussian_noise(5), 0.5
    )
    assert x_0.isfinite().all()


def test_deterministic_samplers_draw_no_noise_and_keep_the_dtype():
    diffusion = make_diffusion(prediction_type="v")
    x_T = gaussian_noise(1)(0).float()
    for sampler in ["ddim", "dpmpp"]:
        schedule = timestep_schedule(1000, 5)
        x_0 = sample(sampler, denoiser(diffusion), x_T, diffusion.alphas_cumprod, schedule, no_noise, eta=0.0)
        assert x_0.dtype == torch.float32


# x_0 ~ N(MEAN, STD^2): denoiser and flow are known exactly.
MEAN, STD = 1.0, 0.5


def gaussian_denoise(alphas_cumprod: Tensor, x_t: Tensor, t: int) -> Tensor:
    """E[x_0 | x_t]."""
    ac = alphas_cumprod[t].item()
    return MEAN + math.sqrt(ac) * STD**2 / (ac * STD**2 + 1 - ac) * (x_t - math.sqrt(ac) * MEAN)


def gaussian_flow(x_t: Tensor, ac_t: float, ac_s: float) -> Tensor:
    """x_s of the probability flow from x_t, which keeps (x_t - mean) / std of the marginal at t.

    It exists for zero terminal SNR too: there x_T has mean 0 and std 1.
    """

    def std(ac: float) -> float:
        return math.sqrt(ac * STD**2 + 1 - ac)

    return math.sqrt(ac_s) * MEAN + std(ac_s) * (x_t - math.sqrt(ac_t) * MEAN) / std(ac_t)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpmpp", 0.0)])
def test_samples_have_the_mean_and_std_of_a_gaussian(sampler, eta, zero_terminal_snr):
    diffusion = make_diffusion(zero_terminal_snr=zero_terminal_snr)
    noise = gaussian_noise(3, shape=(1, 1, 128, 128))  # standard errors 0.4 % of the mean and 0.6 % of the std
    denoise = partial(gaussian_denoise, diffusion.alphas_cumprod)
    x_0 = sample(sampler, denoise, noise(-1), diffusion.alphas_cumprod, timestep_schedule(1000, 1000), noise, eta)
    assert x_0.mean().item() == pytest.approx(MEAN, rel=0.02)
    assert x_0.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp", 2)])
def test_error_of_the_flow_falls_with_the_order_of_the_sampler(sampler, order):
    # The order is a statement about small steps in lambda = log(alpha / sigma), so the noise levels are evenly spaced
    # in a bounded lambda. (With the usual schedules the steps in lambda are unbounded at both ends, infinite at zero
    # SNR.) The last step is the exact E[x_0 | x_t] at lambda = 4, for the samplers and the reference alike.
    alphas_cumprod = torch.sigmoid(2 * torch.linspace(4, -4, 1025, dtype=torch.float64))
    denoise = partial(gaussian_denoise, alphas_cumprod)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    exact = denoise(gaussian_flow(x_T, alphas_cumprod[-1].item(), alphas_cumprod[0].item()), 0)
    counts = [64, 128, 256, 512]
    errors = []
    for steps in counts:
        schedule = list(range(1024, -1, -1024 // steps))
        errors.append(relative_error(sample(sampler, denoise, x_T, alphas_cumprod, schedule, no_noise, eta=0.0), exact))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.parametrize("beta_schedule", ["linear", "cosine"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_deterministic_samplers_reach_the_exact_flow_on_the_usual_schedules(beta_schedule, zero_terminal_snr):
    diffusion = make_diffusion(timesteps=1024, beta_schedule=beta_schedule, zero_terminal_snr=zero_terminal_snr)
    denoise = partial(gaussian_denoise, diffusion.alphas_cumprod)
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)
    exact = gaussian_flow(x_T, diffusion.alphas_cumprod[-1].item(), 1.0)

    def error(sampler: str, steps: int) -> float:
        schedule = timestep_schedule(1024, steps)
        x_0 = sample(sampler, denoise, x_T, diffusion.alphas_cumprod, schedule, no_noise, eta=0.0)
        return relative_error(x_0, exact)

    counts = [32, 64, 128, 256]
    ddim_errors = [error("ddim", steps) for steps in counts]
    assert -np.polyfit(np.log(counts), np.log(ddim_errors), 1)[0] == pytest.approx(1, abs=0.1), ddim_errors
    assert all(error("dpmpp", steps) < ddim_error / 5 for steps, ddim_error in zip(counts, ddim_errors, strict=True))


def test_schedule_equals_diffusers_trailing_spacing():
    for timesteps in [10, 100, 1000]:
        for steps in [1, 2, 3, 5, 6, 9, 10]:
            scheduler = DDIMScheduler(num_train_timesteps=timesteps, timestep_spacing="trailing")
            scheduler.set_timesteps(steps)
            assert timestep_schedule(timesteps, steps) == scheduler.timesteps.tolist()


def test_schedule_has_all_its_steps_and_starts_where_it_says():
    for timesteps in range(1, 41):
        for steps in range(1, timesteps + 1):
            schedule = timestep_schedule(timesteps, steps)
            assert len(schedule) == steps and schedule[0] == timesteps - 1 and schedule[-1] >= 0
            assert all(t > s for t, s in itertools.pairwise(schedule))
        assert schedule == list(range(timesteps - 1, -1, -1))


@pytest.mark.parametrize("steps", [0, 501])
def test_impossible_schedules_are_refused(steps):
    with pytest.raises(UserError, match=f"ddim_steps is {steps}.*1 to 500"):
        timestep_schedule(500, steps)


def test_unknown_sampler_and_eta_are_refused():
    arguments = network, torch.zeros(1, 1, 1, 1), make_diffusion().alphas_cumprod, [999, 499], no_noise
    with pytest.raises(UserError, match="sampler is 'euler'"):
        sample("euler", *arguments, eta=0.0)
    with pytest.raises(UserError, match="eta is 1.5"):
        sample("ddim", *arguments, eta=1.5)
