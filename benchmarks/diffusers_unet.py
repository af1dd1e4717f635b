"""The UNet of the package `diffusers` in the place of ours: same channels, blocks, input and patches.

More than the UNet differs: there are no gains of mixture and x_t, no magnitudes in the stem, the head does not start at
zero, and GroupNorm is over the whole item, not over every frame.
"""

from __future__ import annotations

import math

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from diffvocsep.config import Config
from diffvocsep.registry import NETWORKS
from diffvocsep.spectrogram import Frontend
from diffvocsep.unet import Patches

NETWORKS["diffusers_unet"] = "benchmarks.diffusers_unet:DiffusersUNet"  # who imports this module may train it


class DiffusersUNet(nn.Module):
    """`forward(x_t, mixture, t)` as in `diffvocsep.unet.UNet`; patches of the spectrogram are folded into channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model, frontend = config.model, Frontend(config.audio)
        widths = [model.base_channels * factor for factor in model.channels_mult]
        self.patches, self.bins = Patches(model.patch, frontend.bins, len(widths)), frontend.bins
        self.time_stride = self.patches.time_stride
        fold = frontend.channels * math.prod(model.patch)
        self.unet = UNet2DModel(
            in_channels=2 * fold, out_channels=fold, layers_per_block=model.blocks, block_out_channels=widths,
            down_block_types=["DownBlock2D"] * len(widths), up_block_types=["UpBlock2D"] * len(widths),
            add_attention=False, norm_num_groups=8,
        )  # fmt: skip

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor | None = None) -> Tensor:
        """`(B, C, F, T)`, `(B, C, F, T)`, `(B,)` -> `(B, C, F, T)`; it is not told who made x_t."""
        bins, frames = x_t.shape[-2:]
        x = self.unet(self.patches.fold(torch.cat([x_t, mixture], dim=1).mT), t).sample
        return self.patches.unfold(x)[..., :frames, :bins].mT
