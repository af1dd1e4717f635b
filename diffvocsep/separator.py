"""The path of a song of any length: mixture -> spectrogram -> counterfactual (diffusion) -> vocals.

A song is cut into chunks on a grid that starts at its first sample. Each chunk brings `margin_seconds` of its
neighbours along, and only the frames in its middle are kept, so what is kept hardly knows where the chunk ended. Kept
frames are stitched in the spectrogram and synthesised once, by overlap-add, so joints are crossfaded by the STFT's own
window. Everything is a stream: memory does not grow with the song.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .audio import resample_blocks
from .checkpoint import load_model
from .config import Config, from_dict, is_fixed, key_of, load_config, require_same_network, to_dict
from .counterfactual import extend_band, subtract
from .diffusion import Diffusion
from .samplers import sample, start_from, timestep_schedule
from .spectrogram import STFT, TRUSTED, make_representation, modelled_bins
from .uncertainty import Spread, require_samples
from .util.device import amp_dtype, autocast, resolve_device
from .util.errors import UserError
from .util.rng import frame_noise

BLOCK_SECONDS = 4.0  # how much audio is read at a time
RATES = range(1_000, 192_001)  # Hz, whole numbers
MANY = 8  # channels; a waveform with more of them than samples is taken for (samples, channels)

# What a separation reads beside `separation.*`, of the settings that weights leave open.
READS = """diffusion.sampler diffusion.use_ddim diffusion.ddim_steps diffusion.eta diffusion.samples diffusion.start
diffusion.start_step train.seed train.amp"""


class Separator:
    """Separates waveforms and streams with a trained model.

    Args:
        model: the denoiser, `(x_t, mixture, t) -> (B, C, F, T)`; anything with `time_stride` frames of stride.
        config: what the model was trained with; its `diffusion` and `separation` sections are the defaults here.
    """

    def __init__(self, model: nn.Module, config: Config, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.model = model.to(self.device).eval()
        audio = config.audio
        self.stft = STFT(audio.n_fft, audio.hop_length, audio.win_length)
        self.representation = make_representation(audio)
        self.bins = modelled_bins(audio)
        self.diffusion = Diffusion.from_config(config.diffusion)
        self.dtype = amp_dtype(config.train.amp, self.device)

        def strides(seconds: float) -> int:
            return max(1, round(seconds * audio.sample_rate / audio.hop_length / model.time_stride)) * model.time_stride

        self.chunk, self.margin = strides(config.separation.chunk_seconds), strides(config.separation.margin_seconds)

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: str = "auto") -> Separator:
        """A separator from `checkpoints/*.pt` (its EMA weights) or a released `.safetensors` file.

        Raises:
            UserError: the file is missing or is no checkpoint of ours, or the device is not there.
        """
        model, config = load_model(Path(path))
        if config.train.amp in ("bf16", "fp16"):  # chosen for another machine: this one may only emulate it
            config = replace(config, train=replace(config.train, amp="auto"))
        return cls(model, config, resolve_device(device))

    def configured(self, path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> Separator:
        """The same model under the settings of a config file and of overrides `section.key=value`.

        Raises:
            UserError: an impossible setting, one that the weights are bound to, or an override without effect here.
        """
        config = load_config(path, overrides, base=self.config)
        require_same_network(self.config, config, "the model")
        for key in map(key_of, overrides):
            if not (is_used(key) or is_fixed(key)):
                raise UserError(f"{key} has no effect on a separation; leave it out")
        return Separator(self.model, config, self.device)

    def separate(self, waveform: Tensor, sample_rate: int, **options) -> tuple[Tensor, Tensor]:
        """Waveform float32 `(C, N)` -> vocals and accompaniment, both `(C, N)`; their sum is the waveform.

        Keyword options, by default as in the config: `sampler` (ddpm | ddim | dpmpp), `steps`, `eta`, `samples` (how
        many counterfactuals are averaged), `seed`, `progress` (a tqdm bar), `spread` (a `Spread` to fill: how far the
        counterfactuals lie apart).

        Raises:
            UserError: the waveform is not `(C, N)`, has a sample that is not finite or a rate outside 1 to 192 kHz, or
                an option is impossible.
        """
        waveform = torch.as_tensor(waveform, dtype=torch.float32)
        if waveform.ndim != 2 or not 1 <= len(waveform) <= max(MANY, waveform.shape[-1]):
            raise UserError(f"the waveform has shape {tuple(waveform.shape)}; give (channels, samples), mono as (1, N)")
        if sample_rate not in RATES:
            raise UserError(f"the sample rate is {sample_rate} Hz; resample the waveform to one from 1000 to 192000 Hz")
        if not waveform.isfinite().all():
            raise UserError("the waveform has samples that are not finite numbers; repair it first")
        size = round(BLOCK_SECONDS * sample_rate)
        parts = list(self.separate_stream(lambda: waveform.split(size, -1), sample_rate, waveform.shape[-1], **options))
        if not parts:
            return torch.zeros_like(waveform), waveform.clone()
        return torch.cat([v for v, _ in parts], dim=-1), torch.cat([a for _, a in parts], dim=-1)

    def settings(
        self,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        samples: int | None = None,
        seed: int | None = None,
    ) -> Config:
        """The config under the options of `separate`; those that are None stay as they are.

        Raises:
            UserError: an impossible value, or a model that cannot start sampling where the config says.
        """
        settings = to_dict(self.config)
        diffusion = {"sampler": sampler, "ddim_steps": steps, "eta": eta, "samples": samples}
        for section, options in {"diffusion": diffusion, "train": {"seed": seed}}.items():
            settings[section] |= {key: value for key, value in options.items() if value is not None}
        config = from_dict(settings)
        self.diffusion.check(first_timestep(config))
        return config

    @torch.no_grad()
    def separate_stream(
        self,
        blocks: Callable[[], Iterable[Tensor]],
        sample_rate: int,
        length: int | None = None,
        *,
        progress: bool = False,
        spread: Spread | None = None,
        **options,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of vocals and accompaniment `(C, n)`, in order, as soon as they are known.

        Args:
            blocks: opens the song anew: an iterable of waveform blocks `(C, n)`. It is read twice, first for loudness.
            length: samples of the song, for the progress bar only.
            options: those of `separate`.

        Raises:
            UserError: an impossible option, or too little memory on the device.
        """
        config = self.settings(**options)
        if spread is not None:
            require_samples(config)
        rate = self.config.audio.sample_rate

        def prepared() -> Iterator[Tensor]:
            return resample_blocks((b.float() for b in blocks()), sample_rate, rate)

        statistics = self._measure(prepared())
        if statistics is None:
            return
        bins = self.bins
        if sample_rate < rate:  # near its Nyquist frequency and above, the resampled song holds nothing to separate
            bins = min(bins, int(TRUSTED * sample_rate * self.config.audio.n_fft / rate))
        total = None if length is None else -(-self._frames(length * rate / sample_rate) // self.chunk)
        title, hidden = f"Separating on {self.device}", None if progress else True  # None: unless there is a terminal
        with tqdm(total=total, desc=title, unit="chunk", disable=hidden) as bar:
            spectra = self._vocal_spectra(prepared(), statistics, bins, config, bar, spread)
            vocals = resample_blocks(self._synthesise(spectra), rate, sample_rate)
            yield from _beside(vocals, blocks())

    def _frames(self, length: float) -> int:
        return int(-(-length // self.config.audio.hop_length)) + 1

    def _windows(self, blocks: Iterable[Tensor], margin: int) -> Iterator[tuple[int, int, Tensor]]:
        """Cut a stream `(C, n)` into chunks: first frame, number of frames to keep, samples `(G, C, n)` around them."""
        hop, n_fft = self.config.audio.hop_length, self.config.audio.n_fft
        size = (self.chunk + 2 * margin - 1) * hop + n_fft
        buffer, length, first = None, 0, 0
        for block in blocks:
            block = to_groups(block, self.config.audio.channels)
            if buffer is None:
                buffer = block.new_zeros(*block.shape[:2], margin * hop + n_fft // 2)
            buffer, length = torch.cat([buffer, block], dim=-1), length + block.shape[-1]
            while buffer.shape[-1] >= size:
                yield first, self.chunk, buffer[..., :size]
                buffer, first = buffer[..., self.chunk * hop :], first + self.chunk
        end = self._frames(length)
        while length and first < end:
            keep = min(self.chunk, end - first)
            frames = -(-keep // self.model.time_stride) * self.model.time_stride + 2 * margin
            size = (frames - 1) * hop + n_fft
            padded = torch.nn.functional.pad(buffer, (0, max(0, size - buffer.shape[-1])))
            yield first, keep, padded[..., :size]
            buffer, first = buffer[..., self.chunk * hop :], first + self.chunk

    def _measure(self, blocks: Iterable[Tensor]) -> Tensor | None:
        """The first pass: statistics of the whole song, `(G, 4)`."""
        statistics = None
        for _, keep, window in self._windows(blocks, margin=0):
            spectrum = self.stft(window, center=False)[..., : self.bins, :keep]
            part = self.representation.statistics(spectrum)
            statistics = part if statistics is None else self.representation.merge(statistics, part)
        return statistics

    def _vocal_spectra(
        self,
        blocks: Iterable[Tensor],
        statistics: Tensor,
        bins: int,
        config: Config,
        bar: tqdm,
        spread: Spread | None = None,
    ) -> Iterator[Tensor]:
        """The second pass: vocals' STFT, complex `(G, C, F, T)`, chunk after chunk."""
        for batch in _batches(self._windows(blocks, self.margin), config.separation.batch_chunks):
            mixture = self.stft(torch.cat([w for _, _, w in batch]), center=False).to(self.device)
            firsts = [first - self.margin for first, _, _ in batch]
            try:
                vocals, variance = self._separate_chunks(mixture, statistics.to(self.device), firsts, bins, config)
                vocals, variance = vocals.cpu(), variance.cpu()
            except torch.OutOfMemoryError:
                setting = config.separation
                raise UserError(
                    f"the memory of '{self.device}' is too small for separation.chunk_seconds={setting.chunk_seconds} "
                    f"and separation.batch_chunks={setting.batch_chunks}; set them lower or use --device cpu"
                ) from None
            parts = (x.split(len(statistics)) for x in (vocals, variance, mixture.cpu()))
            for (_, keep, _), *part in zip(batch, *parts, strict=True):
                spectrum, apart, whole = (x[..., self.margin : self.margin + keep] for x in part)
                if spread is not None:
                    spread.add(*(x.flatten(0, 1)[:, :bins] for x in (whole, spectrum, apart)))
                yield spectrum
                bar.update()

    def _separate_chunks(
        self, mixture: Tensor, statistics: Tensor, firsts: list[int], bins: int, config: Config
    ) -> tuple[Tensor, Tensor]:
        """Mixture STFT of some chunks of one song, `(len(firsts) * G, C, F, T)` -> vocals' STFT, the mean of the
        samples, likewise; and the variance of the samples in the modelled bins."""
        groups, settings = len(statistics), config.diffusion
        statistics = statistics.repeat(len(firsts), 1)
        modelled = mixture[:, :, : self.bins]
        x_mixture = self.representation.encode(modelled, statistics)
        shape = x_mixture.shape

        def noise(k: int, draw: int) -> Tensor:
            rows = [
                frame_noise(shape[1], shape[2], first, shape[3], config.train.seed, group, k, draw + 1)
                for first in firsts
                for group in range(groups)
            ]
            return torch.stack(rows).to(self.device)

        def denoise(x_t: Tensor, t: int) -> Tensor:
            steps = torch.full((len(x_t),), t, device=self.device)
            # What a deterministic sampler hands back holds the guess of the step before, not the truth.
            guessed = torch.full((len(x_t),), float(refines and t < start), device=self.device)
            with autocast(self.device, self.dtype):
                output = self.model(x_t, x_mixture, steps, guessed)
            return self.diffusion.predict_x_start(output.float(), x_t, steps, x_mixture)

        alphas_cumprod = self.diffusion.alphas_cumprod
        start, refines = first_timestep(config), settings.sampler != "ddpm"
        schedule = timestep_schedule(settings.timesteps, settings.ddim_steps, start)
        vocals = torch.zeros_like(modelled)
        scatter = torch.zeros_like(modelled.real)  # sum of squared distances from the mean
        for k in range(settings.samples):
            x_t = noise(k, -1)
            if settings.start == "mixture":
                x_t = start_from(x_mixture, x_t, alphas_cumprod, start)
            fresh = partial(noise, k)
            x_0 = sample(settings.sampler, denoise, x_t, alphas_cumprod, schedule, fresh, settings.eta)
            part = subtract(config.separation.subtract, modelled, x_mixture, x_0, statistics, self.representation)
            step = part - vocals
            vocals = vocals + step / (k + 1)  # Welford 1962
            if k:  # one alone has no distance from itself
                scatter += (step * (part - vocals).conj()).real
        sounding = torch.view_as_real(mixture.mT).flatten(-2).abs().amax((1, -1))[:, None, None] > 0
        vocals, scatter = vocals * sounding, scatter * sounding  # silence in, silence out, and no share of the treble
        audio = self.config.audio
        vocals = extend_band(vocals, mixture, bins, audio.sample_rate, audio.hop_length)
        return vocals, scatter / max(1, settings.samples - 1)

    def _synthesise(self, spectra: Iterable[Tensor]) -> Iterator[Tensor]:
        """A stream of STFT frames `(G, C, F, T)` -> a stream of samples `(G * C, n)`, from the centre of the first
        frame (sample 0) to that of the last (the end of the song or after); what is outside hangs on a window's edge
        alone, and dividing by it would blow up."""
        hop, half = self.config.audio.hop_length, self.config.audio.n_fft // 2
        drop, rest = half, None
        for spectrum in spectra:
            total, envelope = self.stft.overlap_add(spectrum.flatten(0, 1))
            if rest is not None:
                total[..., : rest[0].shape[-1]] += rest[0]
                envelope[: len(rest[1])] += rest[1]
            ready = spectrum.shape[-1] * hop
            rest = total[..., ready:], envelope[ready:]
            yield total[..., drop:ready] / envelope[drop:ready]
            drop = max(0, drop - ready)
        if rest is not None:
            yield rest[0][..., drop : half - hop] / rest[1][drop : half - hop]


def is_used(key: str) -> bool:
    """Whether a separation reads this setting, of those that weights leave open."""
    return key in READS.split() or key.startswith("separation.")


def first_timestep(config: Config) -> int:
    settings = config.diffusion
    return settings.start_step if settings.start == "mixture" else settings.timesteps - 1


def _batches(windows: Iterable[tuple[int, int, Tensor]], size: int) -> Iterator[list[tuple[int, int, Tensor]]]:
    """Lists of up to `size` windows of the same length."""
    batch: list[tuple[int, int, Tensor]] = []
    for window in windows:
        if batch and (len(batch) == size or window[2].shape != batch[0][2].shape):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def to_groups(block: Tensor, channels: int) -> Tensor:
    """`(C, n)` -> `(G, channels, n)` for a model of `channels`: mono is doubled for a stereo model, more channels are
    taken pair by pair (an odd last one is doubled)."""
    if len(block) % channels:
        block = torch.cat([block, block[-1:]])
    return block.unflatten(0, (-1, channels))


def _beside(vocals: Iterable[Tensor], blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Line the stream of vocals up with the blocks of the song; the accompaniment is what is left."""
    stream, buffer = iter(vocals), None
    for block in blocks:
        channels, need = block.shape
        while buffer is None or buffer.shape[-1] < need:
            piece = next(stream)
            buffer = piece if buffer is None else torch.cat([buffer, piece], dim=-1)
        part, buffer = buffer[..., :need], buffer[..., need:]
        if len(part) > channels:  # a doubled channel comes back as the mean of its two estimates
            part = torch.cat([part[: channels - 1], part[channels - 1 :].mean(0, keepdim=True)])
        yield part.to(block), block - part.to(block)
