"""Three ideas of other separators, put into our network to see whether they pay: variants of `structures.yaml`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffvocsep.config import Config
from diffvocsep.spectrogram import ComplexSpectrogram
from diffvocsep.unet import FrequencyAttention, UNet

BANDS = ((64, 2), (96, 4), (32, 8))  # (number, bins each) from the lowest: 192 bands, as many as patches of 4 bins


class TimeAttention(FrequencyAttention):
    """Self-attention along time within every row of frequency, `(B, C, T, F)` -> the same. It knows no positions, and
    attends to all frames of a chunk alike, those of the silence around a song among them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(self.norm(x).permute(0, 3, 2, 1)).permute(0, 3, 2, 1)


class TimeAttentionUNet(UNet):
    """Our UNet with attention along time at its two coarsest scales."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        model = config.model
        scales = len(model.channels_mult)
        stages = [*zip(range(scales), self.down, strict=True), *zip(range(scales - 1), self.up, strict=True)]
        for i, stage in stages:
            if i >= scales - 2:
                stage.attention = TimeAttention(model.base_channels * model.channels_mult[i], model.attention_heads)


class Bands(nn.Module):
    """A linear layer of its own for every band: `bins` of in_channels each to one row of channels, or back.

    Narrow bands below, wide ones above, as in the band-split RNN (Luo and Yu 2023, section III-A).
    """

    def __init__(self, in_channels: int, channels: int, split: bool) -> None:
        super().__init__()
        self.split, self.channels = split, channels
        sizes = [(number, in_channels * (w if split else 1), channels * (1 if split else w)) for number, w in BANDS]
        self.layers = nn.ModuleList(  # a matrix for each band, so that Muon makes each orthogonal
            nn.ModuleList(nn.Linear(inputs, outputs) for _ in range(number)) for number, inputs, outputs in sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, T, F)` of bins -> `(B, C', T, bands)` if it splits, else the reverse."""
        parts = x.split([number * (w if self.split else 1) for number, w in BANDS], dim=-1)
        rows = []
        for part, layers in zip(parts, self.layers, strict=True):
            weight, bias = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            part = part.unflatten(-1, (len(layers), -1)).permute(0, 2, 3, 4, 1).flatten(3)  # (B, T, bands, bins * C)
            part = torch.einsum("btni,noi->btno", part, weight) + bias
            rows.append(part.unflatten(-1, (-1, self.channels)).flatten(2, 3))
        return torch.cat(rows, dim=2).permute(0, 3, 1, 2)


class BandSplitUNet(UNet):
    """Our UNet with a stem and a head that know where they are: a linear layer per band in the place of patches."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, time = self.stem.out_channels, self.patch[1]
        inputs, outputs = (layer // self.patch[0] for layer in (self.stem.in_channels, self.head[-1].out_channels))
        self.patch = (1, time)  # what is left of the patch: pairs of frames
        self.stem, self.head[-1] = Bands(inputs, width, split=True), Bands(width, outputs, split=False)
        for parameter in self.head[-1].parameters():
            nn.init.zeros_(parameter)


class MidSideSpectrogram(ComplexSpectrogram):
    """(L + R) / sqrt 2 and (L - R) / sqrt 2 in the place of left and right, each compressed.

    The stem sees their magnitudes, and those of half their sum and half their difference, as it does of left and right.
    """

    def statistics(self, mixture: Tensor) -> Tensor:
        return super().statistics(_mid_side(mixture))

    def encode(self, spectrum: Tensor, statistics: Tensor) -> Tensor:
        return super().encode(_mid_side(spectrum), statistics)

    def decode(self, x: Tensor, statistics: Tensor, mixture: Tensor) -> Tensor:
        return _mid_side(super().decode(x, statistics, mixture))


def _mid_side(x: Tensor) -> Tensor:
    """Its own inverse."""
    left, right = x.unbind(1)
    return torch.stack([left + right, left - right], dim=1) / 2**0.5
