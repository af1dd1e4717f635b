"""What training minimizes: the diffusion loss in the represented space, and a loss on the separated vocals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..config import AudioConfig, Config
from ..counterfactual import start_temperature, subtract
from ..denoiser import Denoiser
from ..diffusion import Diffusion
from ..spectrogram import STFT, Frontend

LOG_FLOOR = 2e-3  # of the mixture's level: to differences in dB, what is quieter is as quiet as that
RESOLUTIONS = (256, 1024)  # n_fft of the auxiliary STFT loss, at the rate of `_synthesise`: for onsets, for harmonics


class Objective:
    """The loss of one batch.

    The main loss is the squared plus the absolute error of the network's output (`prediction_type`), without the bins
    of which the item's source holds nothing (`Frontend.trusted`): a model must not learn that voices have no treble.
    The auxiliary loss (`train.loss_voc_weight`) compares the vocals that the separation would output, as waveforms and
    as multi-resolution magnitudes, in units of the mixture's level; with `train.loss_log_weight` the logarithms of the
    magnitudes as well, which count what is quiet as much as what is loud.
    With `train.consistency_share` some items have a twin, the same music under another voice, which the network hears
    with the same noise and at the same t. In the diffusion loss a twin counts like an item, and so does the distance of
    the two x_0, for the music is the same.
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
        """Loss terms of a batch of segments, `loss` (what is minimized), `diffusion`, `vocals` and `consistency`;
        `per_item` and the timesteps `t`, `(B,)`. Each scalar has a curve in `monitor.CURVES`.

        Args:
            uniform: `(B, 2)` in [0, 1), decides the timesteps, and where x_t is made of a guess.
            noise: `(B, C, F, T)`, standard normal.
            dtype: autocast type of the network, or None.
        """
        train, denoiser, items = self.config.train, Denoiser(model, self.diffusion, dtype), len(uniform)
        most = most_twins(train.consistency_share, items)
        batch, twins = _with_twins(batch | {"uniform": uniform, "noise": noise}, model, most)
        uniform, noise, representation = batch["uniform"], batch["noise"], self.frontend.representation
        mixture = self.frontend.modelled(batch["vocals"] + batch["accompaniment"])
        accompaniment = self.frontend.modelled(batch["accompaniment"])
        statistics = self._statistics(mixture, twins, batch["level_db"])
        x_mixture = representation.encode(mixture, statistics)
        x_start = representation.encode(accompaniment, statistics)

        t = self.diffusion.sample_timesteps(uniform[:, 0])
        x_t = self.diffusion.q_sample(x_start, t, noise)
        below = t < self.diffusion.timesteps - 1
        guessed = ((uniform[:, 1] < train.refine_share) & below).float()
        if train.refine_share:
            by_two_steps = guessed * (uniform[:, 1] >= train.refine_share / 2)  # half of them
            x_t = self._from_guesses(denoiser, x_t, x_mixture, t, noise, guessed, by_two_steps)
        output = denoiser.output(x_t, x_mixture, t, guessed)
        x_0 = denoiser.x_0(output, x_t, x_mixture, t)

        mask = self.frontend.trusted(batch["source_rate"]).float()[:, None, :, None]
        per_item = _distance(output, self.diffusion.target(x_start, noise, t, x_mixture), mask)
        diffusion = per_item[:items].mean()
        terms = {"loss": diffusion, "diffusion": diffusion, "per_item": per_item[:items].detach(), "t": t[:items]}
        if train.consistency_share:
            diffusion_of_twins = (per_item * batch["twin"]).sum() / items
            terms["consistency"] = _distance(x_0[items:], x_0[twins], mask[twins]).sum() / items
            terms["loss"] = terms["loss"] + diffusion_of_twins + terms["consistency"]
        if train.loss_voc_weight:
            inputs = (x[:items] for x in (mixture, x_mixture, x_0, statistics))
            estimate = subtract(self.config.separation.subtract, *inputs, representation)
            mixture, accompaniment, mask = mixture[:items], accompaniment[:items], mask[:items]
            terms["vocals"] = self._vocal_loss(estimate * mask, (mixture - accompaniment) * mask, mixture)
            terms["loss"] = terms["loss"] + train.loss_voc_weight * terms["vocals"]
        return terms

    def _statistics(self, mixture: Tensor, twins: Tensor, level_db: Tensor) -> Tensor:
        """Those by which the mixtures are represented, `(B + K, 4)`: of an item and its twin, the last K, as if they
        were two stretches of one song, so that what is the same in both is represented alike."""
        representation, items = self.frontend.representation, len(mixture) - len(twins)
        statistics = representation.statistics(mixture)
        pairs = representation.merge(statistics[twins], statistics[items:])
        statistics = torch.cat([statistics[:items].index_copy(0, twins, pairs), pairs])
        statistics[:, 0] *= 10 ** (level_db / 10 * representation.exponent)
        return statistics

    @torch.no_grad()
    def _from_guesses(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        x_mixture: Tensor,
        t: Tensor,
        noise: Tensor,
        guessed: Tensor,
        by_two_steps: Tensor,
    ) -> Tensor:
        """`x_t`, where `guessed` is 1 what a deterministic sampler hands the network at t as its second step, or, where
        `by_two_steps` is 1 too, as its third: made of the network's x_0, and not of the truth. Steps are evenly spaced,
        so the second of three lies halfway between t and T."""
        rows = rows_to_compute(guessed, denoiser.model)
        if not len(rows):
            return x_t
        # As it is: torch.compile would stop to build graphs for batches of another size.
        plain = Denoiser(getattr(denoiser.model, "_orig_mod", denoiser.model), self.diffusion, denoiser.dtype)
        diffusion, last = self.diffusion, self.diffusion.timesteps - 1
        noise = start_temperature(self.config.diffusion) * noise
        start = torch.full_like(t[rows], last)
        x_0 = plain(noise[rows], x_mixture[rows], start)
        implied = diffusion.predict_noise(x_0, noise[rows], start)  # all of it, at zero terminal SNR
        made = diffusion.q_sample(x_0, t[rows], implied)

        chosen = rows_to_compute(by_two_steps[rows], denoiser.model)
        if len(chosen):
            items = rows[chosen]
            between = ((t[items] + last + 1) // 2).clamp(max=last - 1)
            x_between = diffusion.q_sample(x_0[chosen], between, implied[chosen])
            x_0 = plain(x_between, x_mixture[items], between, guessed[items])
            third = diffusion.q_sample(x_0, t[items], diffusion.predict_noise(x_0, x_between, between))
            made = made.index_copy(0, chosen, torch.where(_as_mask(by_two_steps[items]), third, made[chosen]))
        return x_t.index_copy(0, rows, torch.where(_as_mask(guessed[rows]), made, x_t[rows]))

    def _vocal_loss(self, estimate: Tensor, vocals: Tensor, mixture: Tensor) -> Tensor:
        """L1 distance of waveforms, of their magnitudes at two resolutions, and with `train.loss_log_weight` of the
        logarithms of these (Yamamoto et al. 2020, eq. 5); all inputs complex `(B, C, F, T)`."""
        level = mixture.abs().square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8)
        with torch.no_grad():
            reference = self._synthesise(vocals / level)
        waveform = self._synthesise(estimate / level)
        loss, log_weight = (waveform - reference).abs().mean(), self.config.train.loss_log_weight
        for stft in self.resolutions:
            with torch.no_grad():
                wanted = stft(reference).abs()
            found = stft(waveform).abs()
            loss = loss + (found - wanted).abs().mean() / len(self.resolutions)
            if log_weight:
                difference = (found + LOG_FLOOR).log() - (wanted + LOG_FLOOR).log()
                loss = loss + log_weight * difference.abs().mean() / len(self.resolutions)
        return loss

    def _synthesise(self, spectrum: Tensor) -> Tensor:
        """Waveform of the modelled bins; at a half, a quarter, ... of the sample rate if that holds them."""
        return self.synthesis.inverse(spectrum, (spectrum.shape[-1] - 1) * self.synthesis.hop_length)


def _as_mask(chosen: Tensor) -> Tensor:
    """Which items are not 0 in `chosen` `(B,)`: booleans `(B, 1, 1, 1)`."""
    return (chosen != 0)[:, None, None, None]


def _distance(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Squared plus absolute difference `(B,)` of `(B, C, F, T)`, the mean over the bins of `mask` `(B, 1, F, 1)`."""
    error = (one - other) * mask
    return (error.square() + error.abs()).mean(dim=(1, 3)).sum(-1) / mask.sum(dim=(1, 2, 3))


def rows_to_compute(chosen: Tensor, model: nn.Module, most: int = 0) -> Tensor:
    """The items of a batch to compute, `(K,)`, of which only those that are not 0 in `chosen` `(B,)` are needed.

    XLA would compile anew for each number of them, so there it is all. On CUDA it is a multiple of eight. With `most`
    it is that number there, and what is chosen beyond it is left out: torch.compile builds graphs for few sizes only.
    """
    if getattr(model, "fixed_shapes", False):
        return torch.arange(len(chosen), device=chosen.device)
    needed = chosen.nonzero()[:, 0]
    if not sizes_matter(chosen.device):
        return needed
    others = (chosen == 0).nonzero()[:, 0]
    return torch.cat([needed, others])[: most or _in_eights(len(needed))]


def sizes_matter(device: torch.device) -> bool:
    """Whether each new size of a batch costs time, for kernels are chosen by it."""
    return device.type == "cuda"


def most_twins(share: float, items: int) -> int:
    """Of how many items the twins are computed where sizes matter, if each has one with probability `share`."""
    # Their number is binomial: the mean would leave out many of them, two deviations more leave out less than 1 %.
    return _in_eights(share * items + 2 * math.sqrt(share * (1 - share) * items))


def _in_eights(number: float) -> int:
    return math.ceil(number / 8) * 8


def _with_twins(batch: dict[str, Tensor], model: nn.Module, most: int) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with the twins of its items behind it, and whose they are, `(K,)`; `twin` is 1 where a row is one."""
    vocals, twin_vocals = batch["vocals"], batch.get("twin_vocals")
    items = torch.arange(len(vocals), device=vocals.device)
    if twin_vocals is None:
        return batch, items[:0]
    differs = (twin_vocals != vocals).flatten(1).any(1).float()
    twins = rows_to_compute(differs, model, most)
    rows = torch.cat([items, twins])
    names = ("accompaniment", "source_rate", "level_db", "uniform", "noise")
    extended = {name: batch[name][rows] for name in names}
    extended["vocals"] = torch.cat([vocals, twin_vocals[twins]])
    extended["twin"] = torch.cat([torch.zeros_like(differs), differs[twins]])
    return extended, twins


def _band_stft(audio: AudioConfig, bins: int) -> STFT:
    """The STFT of the same frames at the lowest sample rate, divided by powers of two, that holds `bins` bins."""
    sizes = audio.n_fft, audio.hop_length, audio.win_length
    while all(size % 2 == 0 for size in sizes) and bins <= sizes[0] // 4:
        sizes = tuple(size // 2 for size in sizes)
    return STFT(*sizes)
