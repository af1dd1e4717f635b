"""What training minimizes: the diffusion loss in the represented space, and a loss on the separated vocals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import AudioConfig, Config
from ..counterfactual import subtract
from ..denoiser import Denoiser
from ..diffusion import Diffusion
from ..spectrogram import STFT, TRUSTED, Frontend

RESOLUTIONS = (256, 1024)  # n_fft of the auxiliary STFT loss: one that sees onsets, one that sees harmonics


class Objective:
    """The loss of one batch.

    The main loss is the squared plus the absolute error of the network's output (`prediction_type`), without the bins
    above 0.45 x the item's source rate, where old recordings hold nothing: a model must not learn that voices have no
    treble.
    The auxiliary loss (`train.loss_voc_weight`) compares the vocals that the separation would output, as waveforms and
    as multi-resolution magnitudes, in units of the mixture's level.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.frontend = Frontend(config.audio)
        self.diffusion = Diffusion.from_config(config.diffusion)
        self.resolutions = [STFT(n, n // 2, n) for n in RESOLUTIONS]
        self.synthesis = _band_stft(config.audio, self.frontend.bins)

    def shape(self) -> tuple[int, int, int]:
        """`(C, F, T)` of one training item as the network sees it."""
        return self.frontend.shape(round(self.config.data.segment_seconds * self.config.audio.sample_rate))

    def __call__(
        self,
        model: nn.Module,
        batch: dict[str, Tensor],
        uniform: Tensor,
        noise: Tensor,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms of a batch of segments, `loss` (what is minimized), `diffusion`, `vocals`; `per_item` and the
        timesteps `t`, `(B,)`.

        Args:
            uniform: `(B, 2)` in [0, 1), decides the timesteps, and where x_t is made of a guess.
            noise: `(B, C, F, T)`, standard normal.
            dtype: autocast type of the network, or None.
        """
        denoiser, representation = Denoiser(model, self.diffusion, dtype), self.frontend.representation
        mixture = self.frontend.modelled(batch["vocals"] + batch["accompaniment"])
        accompaniment = self.frontend.modelled(batch["accompaniment"])
        statistics = representation.statistics(mixture)
        statistics[:, 0] *= 10 ** (batch["level_db"] / 10 * representation.exponent)
        x_mixture = representation.encode(mixture, statistics)
        x_start = representation.encode(accompaniment, statistics)

        t = self.diffusion.sample_timesteps(uniform[:, 0])
        x_t = self.diffusion.q_sample(x_start, t, noise)
        below = t < self.diffusion.timesteps - 1
        guessed = ((uniform[:, 1] < self.config.train.refine_share) & below).float()
        if self.config.train.refine_share:
            x_t = self._from_guesses(denoiser, x_t, x_mixture, t, noise, guessed)
        output = denoiser.output(x_t, x_mixture, t, guessed)
        target = self.diffusion.target(x_start, noise, t, x_mixture)

        mask = self._trusted_bins(batch["source_rate"])
        error = (output - target) * mask
        per_item = (error.square() + error.abs()).mean(dim=(1, 3)).sum(-1) / mask.sum(dim=(1, 2, 3))
        diffusion = per_item.mean()
        terms = {"loss": diffusion, "diffusion": diffusion, "per_item": per_item.detach(), "t": t}
        if self.config.train.loss_voc_weight:
            x_0 = denoiser.x_0(output, x_t, x_mixture, t)
            how = self.config.separation.subtract
            estimate = subtract(how, mixture, x_mixture, x_0, statistics, representation)
            terms["vocals"] = self._vocal_loss(estimate * mask, (mixture - accompaniment) * mask, mixture)
            terms["loss"] = diffusion + self.config.train.loss_voc_weight * terms["vocals"]
        return terms

    @torch.no_grad()
    def _from_guesses(
        self, denoiser: Denoiser, x_t: Tensor, x_mixture: Tensor, t: Tensor, noise: Tensor, guessed: Tensor
    ) -> Tensor:
        """`x_t`, where `guessed` is 1 made from the x_0 that the network guesses from the same noise alone: what a
        deterministic sampler hands it in its next step, and the truth does not."""
        # Only the guessed items are computed; but XLA would compile anew for each number of them, so there all are.
        fixed = getattr(denoiser.model, "fixed_shapes", False)
        rows = torch.arange(len(t), device=t.device) if fixed else guessed.nonzero()[:, 0]
        if not len(rows):
            return x_t
        noise, x_mixture, t = noise[rows], x_mixture[rows], t[rows]
        first = torch.full_like(t, self.diffusion.timesteps - 1)
        # As it is: torch.compile would stop to build graphs for batches of another size.
        plain = Denoiser(getattr(denoiser.model, "_orig_mod", denoiser.model), self.diffusion, denoiser.dtype)
        x_0 = plain(noise, x_mixture, first, torch.zeros_like(guessed[rows]))
        again = self.diffusion.q_sample(x_0, t, noise)
        chosen = guessed[rows, None, None, None] > 0
        return x_t.index_copy(0, rows, torch.where(chosen, again, x_t[rows]))

    def _trusted_bins(self, source_rate: Tensor) -> Tensor:
        """`(B, 1, F, 1)`: 1 where the item's source holds content, 0 above."""
        audio = self.config.audio
        hertz = torch.arange(self.frontend.bins, device=source_rate.device) * (audio.sample_rate / audio.n_fft)
        return (hertz <= TRUSTED * source_rate[:, None]).float()[:, None, :, None]

    def _vocal_loss(self, estimate: Tensor, vocals: Tensor, mixture: Tensor) -> Tensor:
        """L1 distance of waveforms and of their magnitudes at two resolutions; all inputs complex `(B, C, F, T)`."""
        level = mixture.abs().square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8)
        with torch.no_grad():
            reference = self._synthesise(vocals / level)
        waveform = self._synthesise(estimate / level)
        loss = (waveform - reference).abs().mean()
        for stft in self.resolutions:
            with torch.no_grad():
                wanted = stft(reference).abs()
            loss = loss + (stft(waveform).abs() - wanted).abs().mean() / len(self.resolutions)
        return loss

    def _synthesise(self, spectrum: Tensor) -> Tensor:
        """Waveform of the modelled bins; if they end in the lower half, at half the sample rate and half the cost."""
        return self.synthesis.inverse(spectrum, (spectrum.shape[-1] - 1) * self.synthesis.hop_length)


def _band_stft(audio: AudioConfig, bins: int) -> STFT:
    """The STFT of the same frames at the lowest sample rate, divided by powers of two, that holds `bins` bins."""
    sizes = audio.n_fft, audio.hop_length, audio.win_length
    while all(size % 2 == 0 for size in sizes) and bins <= sizes[0] // 4:
        sizes = tuple(size // 2 for size in sizes)
    return STFT(*sizes)
