"""The path of a song of any length: mixture -> spectrogram -> counterfactual (diffusion) -> vocals.

`Separator.separate_stream` is that path: the song is opened three times, once to measure its loudness, once to separate
it chunk by chunk (`chunks.py`), and once to take the vocals from it. Everything is a stream: memory does not grow with
the song. One with a large offset, or strong sound below 20 Hz, is freed of that, measured once more, and so separated.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .audio import resample_blocks
from .audio.rumble import Rumble
from .checkpoint import load_model_and_head
from .chunks import Chunk, Grid, batches, cut, line_up, stitch, to_groups
from .config import Config, affects_separation, from_dict, is_fixed, key_of, load_config, require_same_network, to_dict
from .counterfactual import extend_band, generate, subtract
from .denoiser import Denoiser
from .diffusion import Diffusion
from .spectrogram import Frontend
from .uncertainty import ScaleHead, Uncertainty, record_features
from .util.device import amp_dtype, resolve_device
from .util.errors import UserError
from .util.memory import is_out_of_memory
from .util.rng import frame_noise

BLOCK_SECONDS = 4.0  # how much audio is read at a time
SAMPLE_RATES = range(1_000, 192_001)  # Hz, whole numbers
LIKELY_CHANNELS = 8  # a waveform with more of them than samples is taken for (samples, channels)


class Separator:
    """Separates waveforms and streams with a trained model.

    Args:
        model: the network, `(x_t, mixture, t, guessed) -> (B, C, F, T)`; anything with `time_stride` frames of stride.
        config: what the model was trained with; its `diffusion` and `separation` sections are the defaults here.
        head: estimates how far the vocals may be wrong, if one was fitted for this model.
    """

    def __init__(
        self, model: nn.Module, config: Config, device: torch.device | str = "cpu", head: ScaleHead | None = None
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.frontend = Frontend(config.audio)
        self.grid = Grid.from_config(config, model.time_stride)
        model = model.to(self.device).eval()
        self.head = head.to(self.device).eval() if head else None
        dtype = amp_dtype(config.train.amp, self.device)
        self.denoiser = Denoiser(model, Diffusion.from_config(config.diffusion), dtype)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.denoiser.model

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str], device: str = "auto") -> Separator:
        """A separator from `checkpoints/*.pt` (its EMA weights) or a released `.safetensors` file.

        Raises:
            UserError: the file is missing or is no checkpoint of ours, or the device is not there.
        """
        model, config, head = load_model_and_head(Path(path))
        if config.train.amp in ("bf16", "fp16"):  # chosen for another machine: this one may only emulate it
            config = replace(config, train=replace(config.train, amp="auto"))
        return cls(model, config, resolve_device(device), head)

    def configured(self, path: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()) -> Separator:
        """The same model under the settings of a config file and of overrides `section.key=value`.

        Raises:
            UserError: an impossible setting, one that the weights are bound to, or an override without effect here.
        """
        config = load_config(path, overrides, base=self.config)
        require_same_network(self.config, config, "the model")
        for key in map(key_of, overrides):
            if not (affects_separation(key) or is_fixed(key)):
                raise UserError(f"{key} has no effect on a separation; leave it out")
        return Separator(self.model, config, self.device, self.head)

    def uncertainty(self, **options) -> Uncertainty:
        """An empty `Uncertainty`, for one song that is separated with these options of `separate`.

        Raises:
            UserError: the model has no head that could fill it, or an option is impossible.
        """
        head = self._require_head()
        return Uncertainty(head, self.config.audio, head.settings_not_fitted(self.settings(**options)))

    def _require_head(self) -> ScaleHead:
        if self.head is None:
            raise UserError(
                "this model does not know how far it may be wrong; teach it with: python -m scripts.fit_uncertainty "
                "MODEL NEW_MODEL"
            )
        return self.head

    def separate(self, waveform: Tensor, sample_rate: int, **options) -> tuple[Tensor, Tensor]:
        """Waveform `(C, N)` -> vocals and accompaniment, both `(C, N)`; their sum is the waveform, up to rounding.

        The waveform may lie on any device; what comes out is float32 and lies on the CPU.

        Keyword options, by default as in the config: `sampler` (ddpm | ddim | dpmpp), `steps`, `eta`, `samples` (how
        many counterfactuals are averaged), `seed`, `progress` (a tqdm bar), `uncertainty` (an empty one of
        `uncertainty()`, which is filled: how far the vocals may be wrong; under settings that its head was not fitted
        to, `Uncertainty.not_fitted` names these).

        Raises:
            UserError: the waveform is not `(C, N)`, has a sample that is not finite or a rate outside 1 to 192 kHz, or
                an option is impossible.
        """
        waveform = torch.as_tensor(waveform, dtype=torch.float32, device="cpu")
        if waveform.ndim != 2 or not 1 <= len(waveform) <= max(LIKELY_CHANNELS, waveform.shape[-1]):
            raise UserError(f"the waveform has shape {tuple(waveform.shape)}; give (channels, samples), mono as (1, N)")
        size = round(BLOCK_SECONDS * _whole(sample_rate))
        pairs = list(self.separate_stream(lambda: waveform.split(size, -1), sample_rate, waveform.shape[-1], **options))
        if not pairs:
            return torch.zeros_like(waveform), waveform.clone()
        vocals, accompaniment = zip(*pairs, strict=True)
        return torch.cat(vocals, dim=-1), torch.cat(accompaniment, dim=-1)

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
            UserError: an impossible value, or a model that cannot start sampling from noise.
        """
        settings = to_dict(self.config)
        diffusion = {"sampler": sampler, "ddim_steps": steps, "eta": eta, "samples": samples}
        for section, options in {"diffusion": diffusion, "train": {"seed": seed}}.items():
            settings[section] |= {key: value for key, value in options.items() if value is not None}
        config = from_dict(settings)
        self.denoiser.diffusion.require_samplable()
        return config

    @torch.no_grad()
    def separate_stream(
        self,
        blocks: Callable[[], Iterable[Tensor]],
        sample_rate: int,
        length: int | None = None,
        *,
        progress: bool = False,
        uncertainty: Uncertainty | None = None,
        **options,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pairs of vocals and accompaniment `(C, n)`, in order, as soon as they are known.

        Args:
            blocks: opens the song anew: an iterable of waveform blocks `(C, n)`, on any device. It is called three or
                four times. What comes out is float32 and lies on the CPU.
            length: samples of the song, for the progress bar only.
            options: those of `separate`.

        Raises:
            UserError: a sample that is not finite, a rate outside 1 to 192 kHz, an impossible option, or too little
                memory on the device.
        """
        config, sample_rate = self.settings(**options), _whole(sample_rate)
        if uncertainty is not None:  # it may have been made for other options
            uncertainty.not_fitted = self._require_head().settings_not_fitted(config)
        audio = self.config.audio
        rumble = Rumble(audio.sample_rate)

        def song(filtered: Callable[[Iterable[Tensor]], Iterable[Tensor]]) -> Iterator[Tensor]:
            # At the rate and in the groups of channels of the network, through a method of `rumble`.
            resampled = resample_blocks(_finite(blocks()), sample_rate, audio.sample_rate)
            return (to_groups(block, audio.channels) for block in filtered(resampled))

        statistics = self._measure(song(rumble.measure))
        if statistics is None:  # no samples
            return
        if any(rumble.is_significant()):
            statistics = self._measure(song(rumble.remove))
        trusted = int(self.frontend.trusted(torch.tensor([sample_rate])).sum())  # modelled bins, from the lowest
        total = None if length is None else self.grid.chunks(length * audio.sample_rate / sample_rate)
        title, hidden = f"Separating on {self.device}", None if progress else True  # None: unless there is a terminal
        with tqdm(total=total, desc=title, unit="chunk", disable=hidden) as bar:
            chunks = cut(song(rumble.remove), self.grid)
            spectra = self._vocal_spectra(chunks, statistics, trusted, config, bar, uncertainty)
            vocals = resample_blocks(stitch(spectra, self.frontend.stft), audio.sample_rate, sample_rate)
            yield from line_up(vocals, _finite(blocks()))

    def _measure(self, song: Iterable[Tensor]) -> Tensor | None:
        """Statistics of a whole song `(G, C, n)`, `(G, 4)`; None if it has no samples."""
        representation, statistics = self.frontend.representation, None
        for chunk in cut(song, replace(self.grid, margin=0)):
            spectrum = self.frontend.modelled(chunk.samples, center=False)[..., : chunk.kept]
            part = representation.statistics(spectrum)
            statistics = part if statistics is None else representation.merge(statistics, part)
        return statistics

    def _vocal_spectra(
        self,
        chunks: Iterable[Chunk],
        statistics: Tensor,
        bins: int,
        config: Config,
        bar: tqdm,
        uncertainty: Uncertainty | None,
    ) -> Iterator[Tensor]:
        """The vocals' STFT, complex `(G, C, F, T)`, of the kept frames of one chunk after the other."""
        margin = self.grid.margin
        for batch in batches(chunks, config.separation.batch_chunks):
            first_frames = [chunk.first - margin for chunk in batch]
            try:
                mixture = self.frontend.stft(torch.cat([chunk.samples for chunk in batch]), center=False)
                with record_features(self.model) if uncertainty is not None else nullcontext([]) as features:
                    whole, song_statistics = mixture.to(self.device), statistics.to(self.device)
                    vocals = self.vocals(whole, song_statistics, first_frames, bins, config)
                scale = self._error_scale(features, whole, vocals, song_statistics, bins).cpu() if features else None
                vocals = vocals.cpu()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                setting = config.separation
                other = "close other programs" if self.device.type == "cpu" else "use --device cpu"
                raise UserError(
                    f"the memory of '{self.device}' is too small for separation.chunk_seconds={setting.chunk_seconds} "
                    f"and separation.batch_chunks={setting.batch_chunks}; set them lower or {other}"
                ) from None
            for i, chunk in enumerate(batch):
                rows, kept = slice(i * len(statistics), (i + 1) * len(statistics)), slice(margin, margin + chunk.kept)
                if scale is not None:
                    own = vocals[rows, :, :bins, kept], scale[rows, ..., : chunk.kept]
                    uncertainty.add(*(x.flatten(0, 1) for x in own))
                yield vocals[rows, ..., kept]
                bar.update()

    def _error_scale(
        self, features: list[Tensor], mixture: Tensor, vocals: Tensor, statistics: Tensor, bins: int
    ) -> Tensor:
        """The scale of the error of the vocals' modelled bins between the margins, `(B, C, bins, T)`; see `vocals` for
        the arguments."""
        level = self.frontend.representation.level(statistics).repeat(len(mixture) // len(statistics), 1, 1, 1)
        kept, columns = slice(self.grid.margin, -self.grid.margin), self.grid.margin // self.config.model.patch[1]
        mixture, vocals = (x[:, :, :bins, kept] for x in (mixture, vocals))
        scale = self.head(features[0][:, :, columns:-columns].float(), mixture, vocals, level).exp()
        return scale * nonsilent(mixture)

    def vocals(
        self, mixture: Tensor, statistics: Tensor, first_frames: Sequence[int], bins: int, config: Config
    ) -> Tensor:
        """The vocals of some chunks of one song, the mean of `diffusion.samples` draws: complex
        `(len(first_frames) * G, C, F, T)`.

        Args:
            mixture: STFT of the chunks, each with all its groups, complex `(len(first_frames) * G, C, F, T)`.
            statistics: of the song, `(G, 4)`.
            first_frames: the frame of the song that each chunk begins with; its noise depends on that place only.
            bins: how many bins the network's output is used for; above, the gain of its top band is extended.
        """
        audio, frontend = self.config.audio, self.frontend
        groups, statistics = range(len(statistics)), statistics.repeat(len(first_frames), 1)
        modelled = mixture[:, :, : frontend.bins]
        x_mixture = frontend.representation.encode(modelled, statistics)
        _, channels, rows, frames = x_mixture.shape

        def noise(draw: int, step: int) -> Tensor:
            places = [(first, group) for first in first_frames for group in groups]
            seed = config.train.seed
            drawn = [frame_noise(channels, rows, first, frames, seed, group, draw, step + 1) for first, group in places]
            return torch.stack(drawn).to(self.device)

        mean = None
        for draw in range(config.diffusion.samples):
            x_0 = generate(self.denoiser, x_mixture, config.diffusion, partial(noise, draw))
            mode = config.separation.subtract
            vocals = subtract(mode, modelled, x_mixture, x_0, statistics, frontend.representation)
            mean = vocals if mean is None else mean + (vocals - mean) / (draw + 1)
        # Silence in, silence out: what the network invents in a silent frame must not set the gain of its neighbours.
        return extend_band(mean * nonsilent(mixture), mixture, bins, audio.sample_rate, audio.hop_length)


def _whole(sample_rate: int) -> int:
    """A rate in Hz, once it is known to be a possible one."""
    with suppress(TypeError):
        if (rate := operator.index(sample_rate)) in SAMPLE_RATES:
            return rate
    raise UserError(f"the sample rate is {sample_rate} Hz but must be a whole number, 1000 to 192000; resample to one")


def _finite(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The blocks as float32 on the CPU; raises UserError where a sample is not finite."""
    for block in blocks:
        block = block.to("cpu", torch.float32)
        if not block.isfinite().all():
            raise UserError("the waveform has samples that are not finite numbers; repair it first")
        yield block


def nonsilent(spectrum: Tensor) -> Tensor:
    """Which frames of a complex `(B, C, F, T)` are more than digital silence, `(B, 1, 1, T)`."""
    return (torch.view_as_real(spectrum.mT).flatten(-2) != 0).any(-1).any(1)[:, None, None]
