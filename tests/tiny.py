"""Tiny networks for the tests of separation: small enough that a short sound has many chunks, and many joints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffvocsep.config import Config, load_config
from diffvocsep.separator import Separator
from diffvocsep.unet import UNet

RATE = 8000  # Hz, of the tiny models
SETTINGS = """audio.sample_rate=8000 audio.n_fft=64 audio.hop_length=16 audio.win_length=64 audio.bandwidth=0
model.base_channels=8 model.channels_mult=[1,1,1] model.patch=[4,2] model.frequency_linear=2 diffusion.timesteps=100
separation.chunk_seconds=0.25 separation.margin_seconds=0.13 train.amp=none"""


def tiny_config(*overrides: str) -> Config:
    """A model of 8 kHz with chunks of 128 frames of 2 ms, and a margin of 64 frames, beyond the network's reach."""
    return load_config(None, [*SETTINGS.split(), *overrides])


class Stub(nn.Module):
    """A "network" that is a function of its input `(x_t, mixture, t)`, whoever made x_t."""

    time_stride = 8

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_t: Tensor, mixture: Tensor, t: Tensor, guessed: Tensor) -> Tensor:
        return self.function(x_t, mixture, t)


def nobody_sings(x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
    """Residual 0: the accompaniment is the mixture."""
    return torch.zeros_like(mixture)


def nobody_plays(x_t: Tensor, mixture: Tensor, t: Tensor) -> Tensor:
    """Residual = mixture: the accompaniment is silence."""
    return mixture


def stubbed(function, *overrides: str) -> Separator:
    return Separator(Stub(function), tiny_config(*overrides))


def random_unet(config: Config, seed: int = 0) -> UNet:
    """A UNet with all weights disturbed, so that nothing in it is zero and it hears all it can hear."""
    torch.manual_seed(seed)
    model = UNet(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def random_separator(*overrides: str, seed: int = 0) -> Separator:
    config = tiny_config(*overrides)
    return Separator(random_unet(config, seed), config)


def song(seconds: float, channels: int = 2, sample_rate: int = RATE, seed: int = 0) -> Tensor:
    """A beating mixture of tones and noise, `(C, N)`, different in every channel."""
    t = torch.arange(round(seconds * sample_rate)) / sample_rate
    noise = torch.randn(channels, len(t), generator=torch.Generator().manual_seed(seed))
    tones = [torch.sin(2 * torch.pi * (220.0 * (c + 1) + 30 * torch.sin(5 * t)) * t) for c in range(channels)]
    return 0.3 * torch.stack(tones) * (1 + torch.sin(9 * t)) + 0.05 * noise


def db(error: Tensor, reference: Tensor) -> float:
    """Power of `error` relative to `reference`, dB."""
    return float(10 * torch.log10(error.double().square().sum() / reference.double().square().sum() + 1e-30))


def worst_db(error: Tensor, reference: Tensor) -> float:
    """The largest sample of `error` relative to that of `reference`, dB: a click at one joint is not averaged away."""
    return float(20 * torch.log10(error.double().abs().max() / reference.double().abs().max() + 1e-20))


def audible(waveform: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Without what lies below 30 Hz."""
    spectrum = torch.fft.rfft(waveform.double())
    spectrum[:, : 30 * waveform.shape[-1] // sample_rate] = 0
    return torch.fft.irfft(spectrum, waveform.shape[-1]).float()
