"""The diffusion process: noise schedules, the forward process q(x_t | x_0), prediction targets and loss weights.

Notation: `alphas_cumprod[t]` is the share of signal power left at timestep t (written alpha-bar in Ho et al. 2020), so

    x_t = sqrt(alphas_cumprod[t]) * x_0 + sqrt(1 - alphas_cumprod[t]) * noise,    noise ~ N(0, 1),

with t = 0 the cleanest of T timesteps and t = T - 1 the noisiest. SNR(t) = alphas_cumprod / (1 - alphas_cumprod).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .config import DiffusionConfig
from .util.device import Table
from .util.errors import UserError

BetaSchedule = Literal["linear", "cosine"]
PredictionType = Literal["epsilon", "v", "x_0", "residual"]
LossWeighting = Literal["none", "min_snr"]

# Below this signal power, x_0 from predicted noise multiplies the network's error by more than 1 / sqrt(1e-6) = 1000.
# The linear schedule of Ho et al. ends at 4e-5 and passes, the cosine schedule ends at 2e-9 and does not.
MIN_SIGNAL_POWER = 1e-6


def make_betas(schedule: BetaSchedule, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Noise variances of the single forward steps, float64 `(T,)`.

    `linear` rises from `beta_start` to `beta_end` (Ho et al. 2020, section 4). `cosine` ignores both and follows
    Nichol & Dhariwal 2021, eq. 17, with offset 0.008 and betas clipped at 0.999.

    Raises:
        UserError: unknown schedule, fewer than 2 timesteps, or betas outside 0 <= beta_start <= beta_end < 1.
    """
    _require_one_of("beta_schedule", schedule, get_args(BetaSchedule))
    if timesteps < 2:
        raise UserError(f"timesteps is {timesteps}, but a noise schedule needs at least 2.")
    if schedule == "linear":
        if not 0 <= beta_start <= beta_end < 1 or beta_end == 0:
            raise UserError(
                f"beta_start {beta_start} and beta_end {beta_end} must satisfy 0 <= beta_start <= beta_end < 1 "
                "and beta_end > 0: the defaults are 0.0001 and 0.02."
            )
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    time = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
    signal_power = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - signal_power[1:] / signal_power[:-1]).clamp(max=0.999)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) `(T,)` so that x_{T-1} is pure noise (Lin et al. 2023, Algorithm 1).

    The first value stays and the last becomes exactly 0.
    """
    signal = alphas_cumprod.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


class Diffusion:
    """Forward process and training targets for one noise schedule.

    Tables are float64 on the CPU; results take the dtype and device of the tensors that come in.
    `x_start`, `x_t`, `noise`, `mixture` and `output` are `(B, C, F, T)`; `t` is int64 `(B,)`, 0 .. T - 1.

    Attributes:
        alphas_cumprod: float64 `(T,)`, falling; the last is exactly 0 with `zero_terminal_snr`.
    """

    def __init__(
        self,
        *,
        timesteps: int,
        beta_schedule: BetaSchedule,
        beta_start: float,
        beta_end: float,
        zero_terminal_snr: bool,
        prediction_type: PredictionType,
        loss_weighting: LossWeighting,
        min_snr_gamma: float,
        terminal_share: float,
        start: int | None = None,
    ) -> None:
        """Build the tables. `start` is the timestep where sampling starts, T - 1 if not given.

        Raises:
            UserError: an unknown name, a number outside its range, or a schedule that ends before its last timestep.
        """
        _require_one_of("prediction_type", prediction_type, get_args(PredictionType))
        _require_one_of("loss_weighting", loss_weighting, get_args(LossWeighting))
        if not 0 <= terminal_share <= 1:
            raise UserError(f"terminal_share is {terminal_share}: choose a share from 0 to 1.")
        if min_snr_gamma <= 0:
            raise UserError(f"min_snr_gamma is {min_snr_gamma}: choose a number above 0, usually 5.")
        self.timesteps = timesteps
        self.prediction_type = prediction_type
        self.terminal_share = terminal_share
        self.start = timesteps - 1 if start is None else start

        betas = make_betas(beta_schedule, timesteps, beta_start, beta_end)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if zero_terminal_snr:
            self.alphas_cumprod = rescale_zero_terminal_snr(self.alphas_cumprod)
        if not (self.alphas_cumprod[:-1] > 0).all():  # samplers divide by it
            raise UserError(
                f"with beta_start {beta_start}, beta_end {beta_end} and {timesteps} timesteps nothing of the signal is "
                "left well before the last timestep: set beta_end lower."
            )
        signal, sigma = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        self._signal, self._sigma = Table(signal), Table(sigma)
        self._over_signal = Table(_reciprocal(signal))
        self._weights = Table(self._make_weights(loss_weighting, min_snr_gamma))

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Diffusion:
        """The process that the `diffusion` section describes."""
        names = ("timesteps", "beta_schedule", "beta_start", "beta_end", "zero_terminal_snr", "prediction_type")
        names += ("loss_weighting", "min_snr_gamma", "terminal_share")
        start = config.start_step if config.start == "mixture" else None
        return cls(**{name: getattr(config, name) for name in names}, start=start)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, a sample of q(x_t | x_0) (Ho et al. 2020, eq. 4)."""
        return _at(self._signal, t, x_start) * x_start + _at(self._sigma, t, x_start) * noise

    def target(self, x_start: Tensor, noise: Tensor, t: Tensor, mixture: Tensor) -> Tensor:
        """What the network should output at x_t.

        epsilon: the noise (Ho et al. 2020). v: sqrt(ac) noise - sqrt(1 - ac) x_0 (Salimans & Ho 2022, appendix D).
        x_0: x_0. residual: mixture - x_0, so that silence is the answer where nothing has to be removed.
        """
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v":
            return _at(self._signal, t, x_start) * noise - _at(self._sigma, t, x_start) * x_start
        return x_start if self.prediction_type == "x_0" else mixture - x_start

    def predict_x_start(self, output: Tensor, x_t: Tensor, t: Tensor, mixture: Tensor) -> Tensor:
        """The x_0 that a network output stands for: the inverse of `target`.

        With epsilon prediction, x_0 is undefined where alphas_cumprod is 0; it is set to 0 there.
        """
        if self.prediction_type == "epsilon":
            return (x_t - _at(self._sigma, t, x_t) * output) * _at(self._over_signal, t, x_t)
        if self.prediction_type == "v":
            return _at(self._signal, t, x_t) * x_t - _at(self._sigma, t, x_t) * output
        return output if self.prediction_type == "x_0" else mixture - output

    def sample_timesteps(self, uniform: Tensor) -> Tensor:
        """Training timesteps `(B,)` from one uniform number in [0, 1) per item.

        Numbers from `1 - terminal_share` on go to the timestep where sampling starts, T - 1 from noise, on which few
        steps lean most; the rest are spread evenly over 0 .. T - 1.
        """
        evenly_spread = 1 - self.terminal_share
        t = (uniform * self.timesteps / evenly_spread).floor()
        terminal = torch.full_like(t, self.start)
        return torch.where(uniform < evenly_spread, t, terminal).clamp(max=self.timesteps - 1).long()

    def loss_weight(self, t: Tensor) -> Tensor:
        """Weights `(B,)`, float32, of the items' losses.

        `none` is 1. `min_snr` is Hang et al. 2023, section 3.4, for the prediction type: min(SNR, gamma) on the error
        of x_0 (and of the residual, which is the same error), over SNR for epsilon and over SNR + 1 for v.

        That weight is about 0 at T - 1 for all types but epsilon. A `terminal_share` above 0 asks for the timestep
        where sampling starts to be learned, so it then has weight 1 (for the few items drawn there evenly as well).
        """
        return self._weights.on(t.device, torch.float32)[t]

    def check(self, start: int) -> None:
        """Refuse to sample from timestep `start` (T - 1 for pure noise) if x_0 cannot be told there.

        Raises:
            UserError: `start` is not a timestep, or epsilon is predicted where `alphas_cumprod` is below 1e-6.
        """
        if not 0 <= start < self.timesteps:
            raise UserError(f"start_step is {start}: choose a timestep from 0 to {self.timesteps - 1}.")
        signal_power = self.alphas_cumprod[start].item()
        if self.prediction_type == "epsilon" and signal_power < MIN_SIGNAL_POWER:
            raise UserError(
                f"prediction_type epsilon cannot start sampling at timestep {start}, because x_0 cannot be recovered "
                f"from (almost) pure noise by subtracting noise (alphas_cumprod is {signal_power:.1e} there): use "
                "prediction_type v, x_0 or residual, or start from the mixture at a smaller start_step, or train with "
                "beta_schedule linear and zero_terminal_snr false."
            )

    def _make_weights(self, loss_weighting: LossWeighting, gamma: float) -> Tensor:
        weights = torch.ones_like(self.alphas_cumprod)
        if loss_weighting == "min_snr":
            snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
            if self.prediction_type == "epsilon":
                weights = (gamma / snr).clamp(max=1)  # min(SNR, gamma) / SNR, and its limit 1 at SNR = 0
            elif self.prediction_type == "v":
                weights = snr.clamp(max=gamma) / (snr + 1)
            else:
                weights = snr.clamp(max=gamma)
            if self.terminal_share > 0:
                weights[self.start] = 1
        return weights


def _at(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """Entries `(B, 1, 1, 1)` of a table `(T,)` in the dtype and on the device of `like`."""
    return table.on(like.device, like.dtype)[t].view(-1, *[1] * (like.ndim - 1))


def _reciprocal(table: Tensor) -> Tensor:
    return torch.where(table > 0, 1 / table, 0)


def _require_one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(choices)}.")
