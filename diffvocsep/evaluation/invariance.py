"""Is it counterfactual? What must not change when nobody sings, when the singer is louder, or is another one.

Every number is an energy in dB, lower is better. A model that does nothing wins half of these tests, one that removes
everything the other half, so both stand in the table, with the oracle that knows the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..audio import resample
from ..util.errors import UserError
from .clips import Clip, Excerpt
from .parallel import parallel_map
from .systems import Model

Separate = Callable[[Tensor, Tensor], Tensor]  # mixture and its true accompaniment (which only the oracle uses) -> its
#                                                estimate of the accompaniment, all (C, N)
FLOOR = -100.0  # dB; less is silence
LOUDER, SOFTER = 2.0, 0.5  # +-6 dB

NO_VOCALS = "nobody sings: vocals found / mixture"
ONLY_VOCALS = "nobody plays: accompaniment found / mixture"
SCALED_VOCALS = "vocals +-6 dB: estimate that did not follow / vocals"
SCALED_REST = "vocals +-6 dB: change of the accompaniment / accompaniment"
SECOND_SINGER = "a second singer joins: change of the accompaniment / accompaniment"
REPEATED = "separated again: vocals found / accompaniment"
TESTS = (NO_VOCALS, ONLY_VOCALS, SCALED_VOCALS, SCALED_REST, SECOND_SINGER, REPEATED)


def identity(mixture: Tensor, truth: Tensor) -> Tensor:
    """Does nothing: the counterfactual is the mixture."""
    return mixture


def silence(mixture: Tensor, truth: Tensor) -> Tensor:
    """Takes everything: the counterfactual is silence."""
    return torch.zeros_like(mixture)


def oracle(mixture: Tensor, truth: Tensor) -> Tensor:
    """Knows the true accompaniment."""
    return truth


REFERENCES = {"identity": identity, "silence": silence, "oracle": oracle}


def measure_invariance(excerpts: Sequence[Excerpt], model: Model, jobs: int) -> dict[str, dict[str, list[float]]]:
    """Test -> system -> dB of every clip in which somebody sings and something plays.

    The mixture is vocals + accompaniment, whatever the files' own mixture is: only then is the truth known.
    """
    if not excerpts:
        raise UserError("there are no songs to test")
    work = partial(_measure_pair, model=model)
    pairs = list(zip(excerpts, guests(excerpts), strict=True))
    found = [numbers for numbers in parallel_map(work, pairs, jobs, "Counterfactual") if numbers]
    if not found:
        raise UserError("in none of these songs somebody sings while something plays")
    return {test: {system: [one[system][test] for one in found] for system in found[0]} for test in TESTS}


def guests(excerpts: Sequence[Excerpt]) -> list[Excerpt]:
    """For each excerpt one of another song, whose singer joins: the first of a song meets the first of the next song,
    its second the second. An excerpt meets itself where there is no other song."""
    found = []
    for i, one in enumerate(excerpts):
        others = [other for other in (*excerpts[i + 1 :], *excerpts[:i]) if other.track is not one.track]
        number = sum(other.track is one.track for other in excerpts[:i])
        found.append(others[number % len(others)] if others else one)
    return found


def _measure_pair(pair: tuple[Excerpt, Excerpt], model: Model) -> dict[str, dict[str, float]] | None:
    clip = pair[0].read()
    if not (clip.vocals.any() and clip.accompaniment.any()):
        return None
    guest = second_singer(clip, pair[1].read())
    separator = model.separator()

    def separate(mixture: Tensor, truth: Tensor) -> Tensor:
        return separator.separate(mixture, clip.sample_rate)[1]

    return {
        name: measure_song(clip.vocals, clip.accompaniment, guest, one)
        for name, one in {**REFERENCES, model.name: separate}.items()
    }


def second_singer(clip: Clip, other: Clip) -> Tensor:
    """The vocals of another song as a guest in this one: `(C, N)`, as loud as its own. Where nobody sings there, this
    song's own singer backwards."""
    voice = resample(other.vocals, other.sample_rate, clip.sample_rate)
    if other.name == clip.name or not voice.any():
        voice = clip.vocals.flip(-1)
    channels, length = clip.vocals.shape
    voice = voice.mean(0, keepdim=True) if len(voice) != channels else voice
    voice = voice.repeat(1, -(-length // voice.shape[-1]))[:, :length].expand(channels, -1)
    return voice * (clip.vocals.norm() / voice.norm().clamp_min(1e-9))


def measure_song(vocals: Tensor, accompaniment: Tensor, guest: Tensor, separate: Separate) -> dict[str, float]:
    """Test -> dB for one song; waveforms `(C, N)`."""
    mixture = vocals + accompaniment
    rest = separate(mixture, accompaniment)
    without = separate(accompaniment, accompaniment)
    alone = separate(vocals, torch.zeros_like(vocals))
    joined = separate(mixture + guest, accompaniment)
    again = separate(rest, rest)
    follow, steady = [], []
    for gain in (LOUDER, SOFTER):
        scaled = gain * vocals + accompaniment
        other = separate(scaled, accompaniment)
        follow.append(ratio((scaled - other) - gain * (mixture - rest), gain * vocals))
        steady.append(ratio(other - rest, accompaniment))
    return {
        NO_VOCALS: decibels(ratio(accompaniment - without, accompaniment)),
        ONLY_VOCALS: decibels(ratio(alone, vocals)),
        SCALED_VOCALS: decibels(sum(follow) / 2),
        SCALED_REST: decibels(sum(steady) / 2),
        SECOND_SINGER: decibels(ratio(joined - rest, accompaniment)),
        REPEATED: decibels(ratio(rest - again, accompaniment)),
    }


def ratio(part: Tensor, whole: Tensor) -> float:
    """Energy of `part` over that of `whole`."""
    return float(part.double().square().sum() / whole.double().square().sum())


def decibels(energy: float) -> float:
    return float(max(FLOOR, 10 * torch.log10(torch.tensor(max(energy, 1e-30)).double())))
