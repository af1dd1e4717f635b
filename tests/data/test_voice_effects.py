"""The voice chain, measured: each effect does what its name says, in a segment as on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
import torchaudio
from test_mixing import BOTH, DRAWS, PLAIN, Ruler, drawn, near
from torch import Tensor

from diffvocsep.config import load_config
from diffvocsep.data import train_tracks
from diffvocsep.data.loader import load_segments
from diffvocsep.data.mixing import PITCH_PROBABILITY, SECOND_DB, Segments, limit
from diffvocsep.data.voice_effects import (
    INTERVALS,
    VOICE_CHAIN,
    Compressor,
    Doubling,
    Echo,
    Harmony,
    Limiter,
    Pitch,
    Saturation,
    apply_effects,
    interpolate,
    levels,
    shift_pitch,
    stretch,
)

RATE = 16000
SECOND = torch.arange(RATE, dtype=torch.float64) / RATE  # s
EFFECTS = [
    Pitch(-3.0),
    Harmony(7.0, 0.5),
    Doubling((0.01, 0.02), 12.0, 1.0, (0.0, 2.0), 0.7),
    Compressor(-20.0, 4.0, 3),
    Saturation(1.0),
    Echo(0.2, 0.5),
]


def sine(hertz: float, seconds: int = 1, amplitude: float = 0.1) -> Tensor:
    times = torch.arange(seconds * RATE, dtype=torch.float64) / RATE
    return (amplitude * torch.sin(2 * torch.pi * hertz * times)).float()[None]


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def amplitudes(waveform: Tensor) -> Callable[[float], float]:
    """Hertz -> amplitude of the sine there, from the middle of a waveform `(1, N)`."""
    middle = waveform[0, 2048:-2048].double()
    window = torch.hann_window(len(middle), dtype=torch.float64)
    times = torch.arange(len(middle)) / RATE
    return lambda hertz: float(
        2 * (middle * window * torch.exp(-2j * torch.pi * hertz * times)).sum().abs() / window.sum()
    )


def peak(waveform: Tensor) -> float:
    """The frequency of the loudest bin of `(1, N)`, in Hz, read between bins by an eightfold transform."""
    middle = waveform[0, 2048:-2048] * torch.hann_window(waveform.shape[-1] - 4096)
    return int(torch.fft.rfft(middle, 8 * len(middle)).abs().argmax()) * RATE / (8 * len(middle))


def db(ratio: float) -> float:
    return 20 * np.log10(ratio)


# ---- what all have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
@pytest.mark.parametrize("shape", [(1, 16000), (2, 16001), (2, 700), (1, 1)])
def test_an_effect_keeps_shape_and_energy_and_its_input(effect, shape):
    waveform = noise(*shape) * torch.linspace(0.05, 1, shape[1])
    before = waveform.clone()
    after = effect(waveform, RATE)
    assert after.shape == shape and after.isfinite().all()
    assert torch.equal(waveform, before)
    if shape[1] > 1000:
        assert float(after.norm()) == pytest.approx(float(before.norm()), rel=1e-4)
        assert (after - before).norm() > 0.02 * before.norm()


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_silence_stays_silence(effect):
    assert not effect(torch.zeros(2, 8000), RATE).any()
    after = effect(torch.cat([torch.zeros(2, 4000), noise(2, 4000)], dim=1), RATE)
    assert after.isfinite().all() and after[:, :1500].abs().max() < 1e-3


@pytest.mark.parametrize("kind", [Pitch, *VOICE_CHAIN.values()], ids=lambda kind: kind.__name__)
def test_a_batch_is_its_items(kind):
    """Whatever the others in it were drawn with: as on a GPU, where a batch is altered together, so one by one."""
    rng = np.random.default_rng(0)
    effects = [Pitch(shift) for shift in (-5.0, 0.1, 4.9)] if kind is Pitch else [kind.draw(rng) for _ in range(3)]
    waveforms = noise(3, 2, 12345) * torch.linspace(0.02, 1, 12345)
    for together, effect, waveform in zip(kind.apply(effects, waveforms, RATE), effects, waveforms, strict=True):
        torch.testing.assert_close(together, effect(waveform, RATE), rtol=0, atol=2e-6)


def test_a_chain_goes_through_its_effects_in_order_and_leaves_the_others_alone():
    waveforms, chain = noise(3, 2, 9000), (Pitch(2.0), Compressor(-20.0, 4.0, 3), Echo(0.1, 0.4))
    after = apply_effects(waveforms, [(), chain, (Saturation(1.0),)], RATE)
    expected = waveforms[1]
    for effect in chain:
        expected = effect(expected, RATE)
    torch.testing.assert_close(after, torch.stack([waveforms[0], expected, Saturation(1.0)(waveforms[2], RATE)]))


def test_limiters_of_a_batch_are_those_of_its_items():
    limiters = [Limiter(-3.0, 2), None, Limiter(-12.0, 11), Limiter(-6.0, 5)]
    sides = {"vocals": noise(4, 2, 9000) * torch.linspace(0, 1, 9000), "accompaniment": noise(4, 2, 9000).flip(-1)}
    together = limit(sides, limiters)
    for i, limiter in enumerate(limiters):
        alone = limited({side: value[i] for side, value in sides.items()}, limiter)
        for side in BOTH:
            torch.testing.assert_close(together[side][i], alone[side], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("semitones", [-12, -3, 0, 4, 12])
def test_the_phase_vocoder_is_torchaudios(semitones):
    """In float64: it adds up the whole turns of a phase, too, of which float32 soon loses the fraction."""
    stft = torch.stft(noise(1, 8000).double(), 512, 128, window=torch.hann_window(512).double(), return_complex=True)
    factor = 2 ** (semitones / 12)
    advance = torch.linspace(0, np.pi * 128, 257, dtype=torch.float64)[:, None]
    expected = torchaudio.functional.phase_vocoder(stft, 1 / factor, advance)
    ours = stretch(stft[None], np.array([[factor]]), expected.shape[-1] + 3)[0]
    assert not ours[..., -2:].any()
    torch.testing.assert_close(ours[..., : expected.shape[-1]], expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", VOICE_CHAIN)
def test_what_is_drawn_is_a_function_of_the_generator(name):
    one, other = (VOICE_CHAIN[name].draw(np.random.default_rng(seed)) for seed in (1, 2))
    assert one == VOICE_CHAIN[name].draw(np.random.default_rng(1)) != other


# ---- each of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 0.5, 4.0, 7.0])
def test_a_pitch_moves_by_semitones_and_keeps_its_pace(semitones):
    assert peak(shift_pitch(sine(440, 2), semitones)) == pytest.approx(440 * 2 ** (semitones / 12), rel=2e-3)
    late = torch.cat([torch.zeros(1, RATE), sine(440)], dim=1)  # begins after 1 s, before and after
    level = levels(shift_pitch(late, semitones), 1)
    begun = int((level > level.max() / 2).nonzero()[0])
    assert begun == pytest.approx(RATE, abs=0.06 * RATE)


@pytest.mark.parametrize("semitones", [4.0, 12.0])
def test_what_a_pitch_moves_beyond_the_nyquist_frequency_does_not_fold_back(semitones):
    factor = 2 ** (semitones / 12)
    gone, kept = (shift_pitch(sine(hertz, 2), semitones)[:, RATE // 4 : -RATE // 4] for hertz in (8300 / factor, 3500))
    assert db(float(gone.norm() / kept.norm())) < -60


def test_values_between_samples_lie_on_a_smooth_curve():
    wave, places = sine(200), torch.arange(100, 15000)
    for offset in (0.37, -7.9):
        expected = 0.1 * torch.sin(2 * torch.pi * 200 * (places + offset) / RATE)
        between = interpolate(wave, places, torch.full((14900,), offset))
        torch.testing.assert_close(between[0], expected, atol=2e-5, rtol=0)
    assert torch.equal(interpolate(wave, torch.arange(RATE), torch.zeros(RATE)), wave)
    places, offsets = torch.tensor([-3, 0, 0, RATE - 1, RATE]), torch.tensor([0.0, -0.5, -9.2, 0.5, 9.0])
    assert not interpolate(wave, places, offsets).any()


@pytest.mark.parametrize("interval", INTERVALS)
def test_a_harmony_is_a_quieter_voice_at_its_interval(interval):
    tone = 0.1 * torch.cos(2 * torch.pi * 660 * torch.arange(2 * RATE) / RATE)[None]  # goes on smoothly when mirrored
    both = amplitudes(Harmony(interval, 0.5)(tone, RATE))
    second = 660 * 2 ** (interval / 12)
    assert both(second) / both(660) == pytest.approx(0.5, rel=0.1)


def test_a_double_comes_late_in_each_channel_by_its_own_delay():
    impulses = torch.zeros(2, RATE)
    impulses[:, 1000] = 1.0
    after = Doubling((0.01, 0.025), 0.0, 1.0, (0.0, 0.0), 0.5)(impulses, RATE)
    for channel, late in zip(after, (160, 400), strict=True):
        assert channel[1000 + late] / channel[1000] == pytest.approx(0.5, rel=1e-3)
        assert (channel.abs() > 1e-3).nonzero()[:, 0].tolist() == [1000, 1000 + late]


def test_a_double_drifts_by_its_cents():
    take = Doubling((0.01, 0.01), 15.0, 2.0, (0.0, 0.0), 1e4)(sine(1000, 2), RATE)[0]  # so loud that it is all
    phase = np.unwrap(np.angle(scipy.signal.hilbert(take.double().numpy())))
    per_sample = (phase[2160:-2000] - phase[2000:-2160]) / 160  # over 10 ms
    cents = 1200 * np.log2(per_sample * RATE / (2 * np.pi) / 1000)
    assert cents.max() == pytest.approx(15, abs=1) and cents.min() == pytest.approx(-15, abs=1)


def test_a_compressor_divides_what_is_above_its_threshold():
    """20 dB above become 20 / 4; what is below stays as it was beside the threshold."""
    parts = [sine(500, amplitude=10 ** (level / 20)) for level in (0, -10, -30, -50)]
    after = Compressor(-20.0, 4.0, 3)(torch.cat(parts, dim=1), RATE)[0].reshape(4, RATE)[:, 4000:-4000]
    level = [db(float(part.square().mean().sqrt())) for part in after]
    assert np.diff(level) == pytest.approx([-2.5, -12.5, -20], abs=0.1)  # -5, -7.5 (above -20), -20 - 10, -50


def test_saturation_is_tanh_whose_harmonics_grow_with_the_drive():
    for drive, third in ((0.05, -66.0), (1.0, None)):
        after = amplitudes(Saturation(drive)(sine(500, 2), RATE))
        phases = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
        curve = np.tanh(drive * np.sqrt(2) * np.sin(phases))
        expected = [float(abs(np.mean(curve * np.exp(-1j * k * phases)))) for k in (1, 3, 5)]
        assert after(1500) / after(500) == pytest.approx(expected[1] / expected[0], rel=0.02)
        assert third is None or db(after(1500) / after(500)) == pytest.approx(third, abs=2)
        assert drive < 1 or after(2500) / after(500) == pytest.approx(expected[2] / expected[0], rel=0.02)
        assert after(1000) < 1e-4 * after(500)  # the curve is odd


def test_an_echo_repeats_four_times_each_quieter():
    impulse = torch.zeros(1, RATE)
    impulse[0, 100] = 1.0
    after = Echo(0.1, 0.5)(impulse, RATE)[0]
    assert after.nonzero()[:, 0].tolist() == [100, 1700, 3300, 4900, 6500]
    torch.testing.assert_close(after[[1700, 3300, 4900, 6500]] / after[100], torch.tensor([0.5, 0.25, 0.125, 0.0625]))
    assert Echo(2.0, 0.5)(impulse, RATE).allclose(impulse)  # too late to be heard


def limited(item: dict[str, Tensor], limiter: Limiter | None) -> dict[str, Tensor]:
    """One item, as a batch of one."""
    return {
        side: value[0] for side, value in limit({side: value[None] for side, value in item.items()}, [limiter]).items()
    }


@pytest.mark.parametrize("threshold_db", [-12.0, -6.0, -2.0])
@pytest.mark.parametrize("frames", [2, 5, 11])
def test_a_limiter_keeps_the_peak_below_and_both_sides_in_proportion(threshold_db, frames):
    item = {"vocals": noise(2, RATE) * torch.linspace(0.01, 1, RATE), "accompaniment": noise(2, RATE).flip(0)}
    item["vocals"][:, 9000] += 3.0  # a click, far above all else
    after = limited(item, Limiter(threshold_db, frames))
    gain = after["vocals"] / item["vocals"]
    torch.testing.assert_close(after["accompaniment"], item["accompaniment"] * gain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gain[0], gain[1], rtol=1e-4, atol=1e-6)  # and both channels
    before, ceiling = (sum(x[side] for side in BOTH).abs().max() for x in (item, after))
    assert db(float(ceiling / before)) <= threshold_db + 1e-3
    assert gain.max() <= 1 and gain[:, :2000].min() > 0.999  # nothing there comes near the threshold
    assert all(torch.equal(value, item[side]) for side, value in limited(item, None).items())


def test_a_limiter_leaves_silence_alone():
    silence = {side: torch.zeros(2, 5000) for side in BOTH}
    assert not any(value.any() for value in limited(silence, Limiter(-6.0, 4)).values())


# ---- in a segment --------------------------------------------------------------------------------------------------

ALL = [f"data.{name}=1" for name in (*VOICE_CHAIN, "second_voice", "limiter")] + ["data.pitch_semitones=5"]


def draws(*overrides: str, tracks: int = 3) -> list:
    segments = Segments(
        [Ruler(i) for i in range(1, tracks + 1)], load_config(None, [*PLAIN.split(), *overrides]), DRAWS
    )
    return [segments.draw(i) for i in range(DRAWS)]


@pytest.mark.parametrize("name", VOICE_CHAIN)
def test_an_effect_comes_as_often_as_its_key_says_and_on_voices_only(name):
    found = draws(f"data.{name}=0.25", "data.second_voice=1")
    for cuts in ([draw.vocals for draw in found], [draw.second for draw in found]):
        assert near(sum(bool(cut.effects) for cut in cuts), 0.25)
        assert {type(effect) for cut in cuts for effect in cut.effects} == {VOICE_CHAIN[name]}
    assert not any(draw.accompaniment.effects for draw in found)


def test_a_new_effect_is_one_line_in_the_table(monkeypatch):
    """What is drawn is applied, too."""

    class Louder(Echo):
        @classmethod
        def apply(cls, effects, waveforms, sample_rate):
            return 2 * waveforms

    monkeypatch.setitem(VOICE_CHAIN, "echo", Louder)
    chain = draws("data.echo=1")[0].vocals.effects
    waveform = torch.randn(2, 1000)
    assert torch.equal(apply_effects(waveform[None], [chain], RATE)[0], 2 * waveform)


def test_a_quarter_of_the_voices_gets_another_pitch():
    shifts = [effect.semitones for draw in draws("data.pitch_semitones=5") for effect in draw.vocals.effects]
    assert near(len(shifts), PITCH_PROBABILITY)
    assert -5 <= min(shifts) < -4 and 4 < max(shifts) <= 5


def test_effects_change_nothing_else_that_is_drawn():
    for plain, rich in zip(draws("data.gain_db=3"), draws("data.gain_db=3", *ALL), strict=True):
        for side in BOTH:
            one, other = getattr(plain, side), getattr(rich, side)
            assert (one.track, one.start, one.gain, one.samples) == (
                other.track,
                other.start,
                other.gain,
                other.samples,
            )
        assert plain.level_db == rich.level_db and plain.second is plain.limiter is None
        assert len(rich.vocals.effects) >= len(VOICE_CHAIN) and rich.second and rich.limiter


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_second_voice_sings_along_at_its_level(share):
    """Whatever its own: the only other voice is a hundred times louder."""
    tracks = [Ruler(1), Ruler(1, stems=("vocals",), loudness=100.0)]
    items = drawn(tracks[:1], f"data.second_voice={share}")
    voices = np.array([float(item["vocals"][0, 0]) for item in items])
    assert near(int((voices > 1.001).sum()), share)
    added = 20 * np.log10(voices[voices > 1.001] - 1)
    assert (
        SECOND_DB[0] - 0.01 <= added.min() < SECOND_DB[0] + 1 and SECOND_DB[1] - 1 < added.max() <= SECOND_DB[1] + 0.01
    )
    segments = Segments(tracks, load_config(None, [*PLAIN.split(), "data.second_voice=1"]), DRAWS)
    for draw in map(segments.draw, range(100)):
        first, second = (tracks[cut.track]._loudness * abs(cut.gain) for cut in (draw.vocals, draw.second))
        assert SECOND_DB[0] - 0.01 <= db(second / first) <= SECOND_DB[1] + 0.01


def test_nobody_sings_along_where_nobody_sings():
    assert not any(item["vocals"].any() for item in drawn([Ruler(1)], "data.second_voice=1", "data.silent_vocals=1"))
    mute = [Ruler(1, loudness=0.0)]
    assert all(item["vocals"][0, 0] == 1 for item in drawn(mute, "data.second_voice=1", draws=20))


def test_the_source_rate_is_that_of_the_lowest_of_three():
    tracks = [Ruler(1, rate=16000), Ruler(2, rate=8000, stems=("vocals",))]
    for draw in map(Segments(tracks, load_config(None, [*PLAIN.split(), "data.second_voice=1"]), 50).draw, range(50)):
        cuts = [cut for cut in (draw.vocals, draw.accompaniment, draw.second) if cut]
        assert draw.source_rate == min(tracks[cut.track].source_rate for cut in cuts)


def test_the_source_rate_follows_the_pitch_of_the_voice():
    """A voice whose formants move down by a fifth has no treble where its recording had some."""
    segments = Segments([Ruler(1, rate=16000)], load_config(None, [*PLAIN.split(), "data.pitch_semitones=7"]), 100)
    lower = 0
    for draw in map(segments.draw, range(100)):
        semitones = sum(effect.semitones for effect in draw.vocals.effects)
        assert draw.source_rate == pytest.approx(16000 * min(1, 2 ** (semitones / 12)))
        lower += semitones < 0
    assert lower > 5


def test_loaders_and_the_device_cache_make_the_same_of_all_of_it(tmp_path: Path):
    rng = np.random.default_rng(0)
    for i in range(3):
        (tmp_path / f"song {i}").mkdir()
        for side in BOTH:
            samples = 2 * rng.integers(-4900, 4900, (16000, 2), np.int16)  # which the cache holds as they are
            soundfile.write(tmp_path / f"song {i}" / f"{side}.wav", samples, 8000)
    other = ["data.speed_semitones=2", "data.equalizer_db=2", "data.reverb=0.5", "data.turn=0.5"]
    made = {}
    for cache in ("none", "device"):
        config = load_config(None, [
            *PLAIN.split(), "data.segment_seconds=0.5", "data.dataset=stems", f"data.root='{tmp_path.as_posix()}'",
            f"data.cache={cache}", *other, *ALL,
        ])  # fmt: skip
        made[cache] = list(load_segments(Segments(train_tracks(config), config, 8), 0, torch.device("cpu")))
    for direct, one in zip(made["device"], made["none"], strict=True):
        assert direct.keys() == one.keys()
        for name, values in one.items():
            if name in BOTH:
                assert ((direct[name] - values).norm(dim=(1, 2)) < 1e-3 * values.norm(dim=(1, 2))).all()
            else:
                assert torch.equal(direct[name], values)
        assert one["vocals"].abs().amax(dim=(1, 2)).min() > 0.02
