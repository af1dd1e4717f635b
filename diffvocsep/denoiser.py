"""The denoiser computes x_0 from the network's output, by the formulas of `Diffusion.predict_x_start`.

Training and every sampler call the network through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .diffusion import Diffusion
from .util.device import autocast


class Denoiser:
    """`denoiser(x_t, x_mixture, t, guessed)` -> x_0, whatever the network predicts (`diffusion.prediction_type`).

    Args:
        model: the network, `(x_t, x_mixture, t, guessed) -> (B, C, F, T)`; see `make_network`.
        dtype: autocast type in which the network computes, None for its own; what comes out is float32.
    """

    def __init__(self, model: nn.Module, diffusion: Diffusion, dtype: torch.dtype | None = None) -> None:
        self.model, self.diffusion, self.dtype = model, diffusion, dtype

    def __call__(self, x_t: Tensor, x_mixture: Tensor, t: Tensor, guessed: Tensor | None = None) -> Tensor:
        """x_0 `(B, C, F, T)`, from x_t and the represented mixture, likewise.

        Args:
            t: timesteps, int64 `(B,)`.
            guessed: `(B,)`, 1 where x_t was made from an x_0 of the network's own, 0 where from the truth or from
                noise alone; None if nowhere. It is an input, because a guess is less reliable than the truth.
        """
        return self.x_0(self.output(x_t, x_mixture, t, guessed), x_t, x_mixture, t)

    def output(self, x_t: Tensor, x_mixture: Tensor, t: Tensor, guessed: Tensor | None) -> Tensor:
        """What the network predicts, float32 `(B, C, F, T)`: the loss compares it with `Diffusion.target`."""
        with autocast(x_t.device, self.dtype):
            return self.model(x_t, x_mixture, t, guessed).float()

    def x_0(self, output: Tensor, x_t: Tensor, x_mixture: Tensor, t: Tensor) -> Tensor:
        """x_0 from the network's `output`, `(B, C, F, T)`."""
        return self.diffusion.predict_x_start(output, x_t, t, x_mixture)
