"""The counterfactual, the song as it would be if nobody sang: drawing it, taking it from the mixture, and what to do
above the band that the network models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import DiffusionConfig
from .denoiser import Denoiser
from .registry import SAMPLERS
from .samplers import Noise, sample, timestep_schedule
from .spectrogram import Representation

TOP_BAND_HZ = 1000.0  # the highest part of the modelled band, whose vocal share is carried upward
SMOOTHING_SECONDS = 0.15  # half width of the average over time of that share
EMPTY = 1e-10  # a band more than 100 dB below its frame holds nothing to measure


def start_temperature(settings: DiffusionConfig) -> float:
    """The share of the noise that sampling starts from: `temperature`, but 1 for 0 where several draws are averaged:
    they must differ."""
    return settings.temperature or float(settings.samples > 1)


def generate(denoiser: Denoiser, x_mixture: Tensor, settings: DiffusionConfig, noise: Noise) -> Tensor:
    """Draw an accompaniment of the mixture: x_0 `(B, C, F, T)`, in the represented space like `x_mixture`.

    After the first step of a deterministic sampler the network is told that x_t is made of its own guess, which it then
    refines (`train.refine_share`). A sampler that adds fresh noise (`registry.Sampler.adds_noise`) draws a sample
    instead: to the network, its x_t is a noisy version of the truth.

    Args:
        settings: which sampler, how many steps, its `eta`, and what `start_temperature` reads.
        noise: standard normal noise `(B, C, F, T)`; `noise(-1)` is what sampling starts from (not asked for where that
            is none), `noise(k)` what the sampler adds in step k.
    """
    schedule = timestep_schedule(settings.timesteps, settings.ddim_steps)
    refines = not SAMPLERS[settings.sampler].adds_noise(settings.eta)

    def denoise(x_t: Tensor, t: int) -> Tensor:
        steps = torch.full((len(x_t),), t, device=x_t.device)
        guessed = torch.ones(len(x_t), device=x_t.device) if refines and t < schedule[0] else None
        return denoiser(x_t, x_mixture, steps, guessed)

    temperature = start_temperature(settings)
    x_T = temperature * noise(-1) if temperature else torch.zeros_like(x_mixture)
    signal_power = denoiser.diffusion.alphas_cumprod
    return sample(settings.sampler, denoise, x_T, signal_power, schedule, noise, settings.eta)


def subtract(
    mode: str,
    mixture: Tensor,
    x_mixture: Tensor,
    x_0: Tensor,
    statistics: Tensor,
    representation: Representation,
) -> Tensor:
    """The vocals' STFT, complex `(B, C, F, T)`, from the mixture and the generated accompaniment `x_0`.

    mode: `complex` M - A; `mask` (1 - |A|^2 / |M|^2) M; `magnitude` (|M| - |A|) with the mixture's phase;
    `normalized` the difference taken in the represented space (log1p or compressed) and expanded without its offset.
    Negative masks and magnitudes become 0. What each can reach with a perfect generator is in docs/method.md.
    """
    if mode == "normalized":
        return representation.decode_difference(x_mixture, x_0, statistics, mixture)
    accompaniment = representation.decode(x_0, statistics, mixture)
    if mode == "complex":
        return mixture - accompaniment
    ratio = accompaniment.abs() / mixture.abs().clamp_min(1e-20)
    return mixture * (1 - (ratio if mode == "magnitude" else ratio.square())).clamp(0, 1)


def extend_band(vocals: Tensor, mixture: Tensor, limit: int, sample_rate: int, hop_length: int) -> Tensor:
    """Vocals up to bin `limit`, complex `(B, C, >=limit, T)` -> in all bins of `mixture`, complex `(B, C, F, T)`.

    Above `limit` the mixture gets a real gain: the share of the vocals' power in the highest modelled 1 kHz, averaged
    over +-0.15 s. Where that band is empty nothing is known about the voice, and all stays with the accompaniment.
    """
    bins = mixture.shape[-2]
    vocals = vocals[..., :limit, :]
    if limit >= bins:
        return vocals
    width = max(1, round(TOP_BAND_HZ * 2 * (bins - 1) / sample_rate))
    half = round(SMOOTHING_SECONDS * sample_rate / hop_length)

    def power(spectrum: Tensor) -> Tensor:
        # (B, C, T); a norm, for it makes no copy of all the squares
        total = torch.linalg.vector_norm(torch.view_as_real(spectrum), dim=(-3, -1)).square()
        return F.avg_pool1d(total, 2 * half + 1, stride=1, padding=half)

    band = slice(max(0, limit - width), limit)
    whole, part = power(mixture), power(mixture[..., band, :])
    gain = (power(vocals[..., band, :]) / part.clamp_min(1e-30)).clamp(0, 1) * (part > EMPTY * whole)
    return torch.cat([vocals.mT, (mixture[..., limit:, :] * gain[..., None, :]).mT], dim=-1).mT
