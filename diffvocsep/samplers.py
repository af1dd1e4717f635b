"""Samplers: from x_T at the first timestep of a schedule down to x_0.

Every sampler asks `denoise(x_t, t)` for the network's x_0 and walks down the timesteps of `schedule`. The last step
goes to sigma = 0, where DDPM, DDIM and first-order DPM-Solver++ all reduce to x_0 itself; so one step from pure noise
is exactly `denoise(x_T, T - 1)`. Step sizes are arbitrary: only `alphas_cumprod` at both ends of a step counts.
All take the same arguments, so that `registry.SAMPLERS` can name any of them; a new one is a function like `ddim`. Its
line there says when it adds noise, which it draws from `noise`.

Scalars are Python floats (float64) and tensors `(B, C, F, T)` keep their dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from .registry import SAMPLERS, load
from .util.errors import UserError

Denoise = Callable[[Tensor, int], Tensor]  # (x_t, t) -> x_0
Noise = Callable[[int], Tensor]  # index of the step, 0 the noisiest -> standard normal noise


def timestep_schedule(timesteps: int, steps: int) -> list[int]:
    """`steps` falling timesteps with "trailing" spacing (Lin et al. 2023, table 2).

    The first is always T - 1, so sampling begins at the noise level it says it begins at.

    Args:
        timesteps: T of the noise schedule.
        steps: how often the network is called, 1 .. T.

    Raises:
        UserError: there are not that many timesteps.
    """
    if not 1 <= steps <= timesteps:
        raise UserError(f"ddim_steps is {steps}: sampling over {timesteps} timesteps takes 1 to {timesteps} steps.")
    return [round(timesteps * left / steps) - 1 for left in range(steps, 0, -1)]


def ddpm(
    denoise: Denoise, x_T: Tensor, alphas_cumprod: Tensor, schedule: Sequence[int], noise: Noise, eta: float = 1.0
) -> Tensor:
    """x_0 by ancestral sampling from q(x_s | x_t, x_0) (Ho et al. 2020, eq. 6 and 7). `eta` is not read.

    One step from t to s takes the products of all its alphas and betas, hence any step size.
    """
    signal_power = alphas_cumprod.tolist()
    x_t = x_T
    for step, (t, s) in enumerate(pairwise(schedule)):
        ac_t, ac_s = signal_power[t], signal_power[s]
        alpha = ac_t / ac_s
        x_0_share = math.sqrt(ac_s) * (1 - alpha) / (1 - ac_t)
        x_t_share = math.sqrt(alpha) * (1 - ac_s) / (1 - ac_t)
        std = math.sqrt((1 - alpha) * (1 - ac_s) / (1 - ac_t))
        x_t = x_0_share * denoise(x_t, t) + x_t_share * x_t + std * noise(step)
    return denoise(x_t, schedule[-1])


def ddim(
    denoise: Denoise, x_T: Tensor, alphas_cumprod: Tensor, schedule: Sequence[int], noise: Noise, eta: float
) -> Tensor:
    """x_0 by DDIM (Song et al. 2021, eq. 12 and 16).

    `eta` is the share of fresh noise: 0 is deterministic and never calls `noise`, 1 is DDPM.

    Raises:
        UserError: `eta` outside 0 .. 1.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}: choose a number from 0 (deterministic) to 1 (as noisy as DDPM).")
    signal_power = alphas_cumprod.tolist()
    x_t = x_T
    for step, (t, s) in enumerate(pairwise(schedule)):
        ac_t, ac_s = signal_power[t], signal_power[s]
        std = eta * math.sqrt((1 - ac_s) / (1 - ac_t) * (1 - ac_t / ac_s))
        kept = math.sqrt(max(1 - ac_s - std**2, 0.0))  # rounding may fall below 0 at eta 1
        x_0 = denoise(x_t, t)
        predicted_noise = (x_t - math.sqrt(ac_t) * x_0) / math.sqrt(1 - ac_t)
        x_t = math.sqrt(ac_s) * x_0 + kept * predicted_noise
        if std > 0:
            x_t = x_t + std * noise(step)
    return denoise(x_t, schedule[-1])


def dpmpp(
    denoise: Denoise,
    x_T: Tensor,
    alphas_cumprod: Tensor,
    schedule: Sequence[int],
    noise: Noise | None = None,
    eta: float = 0.0,
) -> Tensor:
    """x_0 by DPM-Solver++(2M) with data prediction (Lu et al. 2022, Algorithm 2). Deterministic: `noise` and `eta` are
    not read.

    A step from t to s solves the flow for x_0 linear in lambda = log(alpha / sigma), with the slope taken from the
    step before; the first step has none and is first order. The factor alpha_s (1 - exp(-h)) is written as
    alpha_s - alpha_t sigma_s / sigma_t, which stays finite at zero terminal SNR (lambda = -inf): there the first step
    is alpha_s x_0 + sigma_s x_T, and the second, with a slope over an infinite stretch, is first order again.
    """
    signal_power = alphas_cumprod.tolist()
    x_t, previous = x_T, None
    for t, s in pairwise(schedule):
        ac_t, ac_s = signal_power[t], signal_power[s]
        x_0 = denoise(x_t, t)
        data = x_0
        if previous is not None and ac_s < 1:  # a step to lambda = +inf is first order too
            previous_x_0, previous_ac = previous
            ratio = (_lambda(ac_s) - _lambda(ac_t)) / (_lambda(ac_t) - _lambda(previous_ac))
            data = x_0 + ratio / 2 * (x_0 - previous_x_0)
        shrink = math.sqrt((1 - ac_s) / (1 - ac_t))
        x_t = shrink * x_t + (math.sqrt(ac_s) - shrink * math.sqrt(ac_t)) * data
        previous = x_0, ac_t
    return denoise(x_t, schedule[-1])


def sample(
    sampler: str,
    denoise: Denoise,
    x_T: Tensor,
    alphas_cumprod: Tensor,
    schedule: Sequence[int],
    noise: Noise,
    eta: float,
) -> Tensor:
    """x_0 by the sampler of that name in `registry.SAMPLERS`.

    Raises:
        UserError: unknown sampler, or `eta` outside 0 .. 1.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"sampler is {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    return load(SAMPLERS[sampler].path)(denoise, x_T, alphas_cumprod, schedule, noise, eta)


def _lambda(ac: float) -> float:
    """Half the log SNR, log(alpha / sigma), for alphas_cumprod below 1."""
    return 0.5 * math.log(ac / (1 - ac)) if ac > 0 else -math.inf
