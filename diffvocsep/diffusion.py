"""The diffusion process: noise schedules, the forward process q(x_t | x_0), and what the network predicts.

Notation: `alphas_cumprod[t]` is the share of signal power left at timestep t (written alpha-bar in Ho et al. 2020), so

    x_t = sqrt(alphas_cumprod[t]) * x_0 + sqrt(1 - alphas_cumprod[t]) * noise,    noise ~ N(0, 1),

with t = 0 the cleanest of T timesteps and t = T - 1 the noisiest, which texts here call t = T, as papers do.
SNR(t) = alphas_cumprod / (1 - alphas_cumprod).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from .config import DiffusionConfig
from .util.device import Constant
from .util.errors import UserError

BetaSchedule = Literal["linear", "cosine"]
PredictionType = Literal["epsilon", "v", "x_0", "residual"]

# Below this signal power, x_0 from predicted noise multiplies the network's error by more than 1 / sqrt(1e-6) = 1000.
# The linear schedule of Ho et al. ends at 4e-5 and passes, the cosine schedule ends at 2e-9 and does not.
MIN_SIGNAL_POWER = 1e-6
# Sampling starts from noise alone. A network that was trained to find more of the signal there than this, of its power,
# would look for it in vain (Lin et al. 2023, section 2).
MAX_SIGNAL_POWER = 1e-2


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
        terminal_share: float,
    ) -> None:
        """Build the tables.

        Raises:
            UserError: an unknown name, a number outside its range, or a schedule that ends before its last timestep.
        """
        _require_one_of("prediction_type", prediction_type, get_args(PredictionType))
        if not 0 <= terminal_share <= 1:
            raise UserError(f"terminal_share is {terminal_share}: choose a share from 0 to 1.")
        self.timesteps = timesteps
        self.prediction_type = prediction_type
        self.terminal_share = terminal_share

        betas = make_betas(beta_schedule, timesteps, beta_start, beta_end)
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if not self.alphas_cumprod[-1] < self.alphas_cumprod[0]:
            raise UserError(f"with beta_start {beta_start} and beta_end {beta_end} no noise is added: set both higher.")
        if zero_terminal_snr:
            self.alphas_cumprod = rescale_zero_terminal_snr(self.alphas_cumprod)
        if not (self.alphas_cumprod[:-1] > 0).all():  # samplers divide by it
            raise UserError(
                f"with beta_start {beta_start}, beta_end {beta_end} and {timesteps} timesteps nothing of the signal is "
                "left well before the last timestep: set beta_end lower."
            )
        signal, sigma = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()
        self._signal, self._sigma = Constant(signal), Constant(sigma)
        self._over_signal = Constant(_reciprocal(signal))

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Diffusion:
        """The process that the `diffusion` section describes."""
        names = ("timesteps", "beta_schedule", "beta_start", "beta_end", "zero_terminal_snr", "prediction_type")
        return cls(**{name: getattr(config, name) for name in (*names, "terminal_share")})

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t, a sample of q(x_t | x_0) (Ho et al. 2020, eq. 4)."""
        return _at(self._signal, t, x_start) * x_start + _at(self._sigma, t, x_start) * noise

    def predict_noise(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise of which `q_sample` would make `x_t` from `x_start`. Errors of x_start grow by signal / sigma."""
        return (x_t - _at(self._signal, t, x_t) * x_start) / _at(self._sigma, t, x_t)

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

        Numbers from `1 - terminal_share` on go to T - 1, where sampling starts, and on which few steps lean most; the
        rest are spread evenly over 0 .. T - 1.
        """
        evenly_spread = 1 - self.terminal_share
        t = (uniform * self.timesteps / evenly_spread).floor()
        terminal = torch.full_like(t, self.timesteps - 1)
        return torch.where(uniform < evenly_spread, t, terminal).clamp(max=self.timesteps - 1).long()

    def require_samplable(self) -> None:
        """Refuse to sample if x_0 cannot be computed at T - 1, where sampling starts, or if that is no pure noise.

        Raises:
            UserError: `alphas_cumprod` is above 1e-2 there, or epsilon is predicted and it is below 1e-6.
        """
        start = self.timesteps - 1
        signal_power = self.alphas_cumprod[start].item()
        if signal_power > MAX_SIGNAL_POWER:
            raise UserError(
                f"the noise schedule leaves {signal_power:.1%} of the signal's power at its last timestep, but "
                "sampling starts from noise alone: use zero_terminal_snr true, more timesteps or a higher beta_end."
            )
        if self.prediction_type == "epsilon" and signal_power < MIN_SIGNAL_POWER:
            raise UserError(
                f"prediction_type epsilon cannot start sampling at timestep {start}, because x_0 cannot be recovered "
                f"from (almost) pure noise by subtracting noise (alphas_cumprod is {signal_power:.1e} there): use "
                "prediction_type v, x_0 or residual, or train with beta_schedule linear and zero_terminal_snr false."
            )


def _at(table: Constant, t: Tensor, like: Tensor) -> Tensor:
    """Entries `(B, 1, 1, 1)` of a table `(T,)` in the dtype and on the device of `like`."""
    return table.on(like.device, like.dtype)[t].view(-1, *[1] * (like.ndim - 1))


def _reciprocal(table: Tensor) -> Tensor:
    return torch.where(table > 0, 1 / table, 0)


def _require_one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key} is {value!r}: choose one of {', '.join(choices)}.")
