"""Training segments: what is mixed with what, how often, how loud, and that it depends on (seed, index) alone."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from diffvocsep.config import Config, load_config
from diffvocsep.data import loader, train_tracks
from diffvocsep.data.loader import load_segments
from diffvocsep.data.mixing import REMIX_DB, Segments
from diffvocsep.data.tracks import SIDES, to_channels
from diffvocsep.util.errors import UserError

RATE = 8000
BOTH = ("vocals", "accompaniment")
SMALL = """audio.sample_rate=8000 audio.n_fft=64 audio.hop_length=16 audio.win_length=64
    data.segment_seconds=0.01"""
PLAIN = (
    SMALL
    + """
    data.remix_probability=0 data.gain_db=0 data.channel_swap=0 data.polarity_flip=0
    data.silent_vocals=0 data.level_db=0"""
)  # nothing is altered
DRAWS = 600


class Ruler:
    """A track whose left channel holds its number and whose right channel holds the time, so that a segment tells where
    it was cut out. A side's loudness is what it was told."""

    def __init__(self, number: int, seconds=10.0, group="set", rate=RATE, stems=BOTH, loudness=1.0) -> None:
        self.name, self.number, self.seconds, self.group = f"track {number}", number, seconds, group
        self.source_rate, self.stems, self._loudness = rate, stems, loudness

    def read(self, side: str, start: float, seconds: float, sample_rate: int) -> torch.Tensor:
        assert side in self.stems
        length = round(seconds * sample_rate)
        time = start + torch.arange(length) / sample_rate
        return torch.stack([torch.full((length,), float(self.number)), 100 + time]).float()

    def loudness(self, side: str, sample_rate: int) -> float:
        assert side in self.stems
        return self._loudness


def config(*overrides: str) -> Config:
    return load_config(None, [*PLAIN.split(), *overrides])


def drawn(tracks: list[Ruler], *overrides: str, draws: int = DRAWS) -> list[dict[str, torch.Tensor]]:
    segments = Segments(tracks, config(*overrides), draws)
    assert len(segments) == draws
    return [segments[i] for i in range(draws)]


def number(waveform: torch.Tensor) -> int:
    return round(float(waveform[0, 0]))


def near(count: int, share: float, draws: int = DRAWS) -> bool:
    """Within five standard deviations of a binomial count."""
    return abs(count - share * draws) <= 5 * np.sqrt(draws * share * (1 - share))


# ---- which segments ------------------------------------------------------------------------------------------------


def test_a_segment_depends_on_seed_and_index_only():
    tracks = [Ruler(i) for i in range(1, 6)]
    altered = "data.speed_semitones=2 data.equalizer_db=2 data.reverb=0.5 data.turn=0.5"
    default = load_config(None, [*SMALL.split(), *altered.split()])  # with every alteration
    forward = [Segments(tracks, default, 20)[i] for i in range(20)]
    segments = Segments(tracks, default, 100)
    for i in reversed(range(20)):
        again = segments[i]
        assert again.keys() == {"vocals", "accompaniment", "source_rate", "level_db", "index"}
        assert all(torch.equal(again[name], forward[i][name]) for name in again)
        assert again["index"] == i
    assert len({float(s["accompaniment"].sum()) for s in forward}) == 20
    other = Segments(tracks, load_config(None, ["train.seed=1"], default), 20)
    assert not any(torch.equal(other[i]["accompaniment"], forward[i]["accompaniment"]) for i in range(20))


def test_without_remixing_the_sides_stay_aligned():
    tracks = [Ruler(i) for i in range(1, 5)]
    items = drawn(tracks)
    assert all(torch.equal(item["vocals"], item["accompaniment"]) for item in items)  # same number, same time
    assert all(near(count, 0.25) for count in Counter(number(item["vocals"]) for item in items).values())
    starts = np.array([float(item["vocals"][1, 0]) - 100 for item in items])
    assert starts.min() < 0.3 and 9.6 < starts.max() <= 9.99 and abs(np.mean(starts) - 5) < 0.6


def test_a_set_is_drawn_as_often_as_its_weight_says():
    tracks = [Ruler(1, group="a"), Ruler(2, group="b"), Ruler(3, group="b", seconds=20.0)]
    counts = Counter(number(item["vocals"]) for item in drawn(tracks))
    assert near(counts[1], 1 / (1 + 3**0.25))  # by duration to the power of a quarter
    counts = Counter(number(item["vocals"]) for item in drawn(tracks, "data.dataset=stems", "data.set_weights={a: 6}"))
    assert near(counts[1], 6 / (6 + 3**0.25)) and near(counts[3], 2 / 3 * 3**0.25 / (6 + 3**0.25))
    with pytest.raises(UserError, match="data.set_weights names 'c', but the folders of songs are a, b"):
        drawn(tracks, "data.dataset=stems", "data.set_weights={c: 2}")


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_remixing_puts_voices_over_other_tracks(share):
    items = drawn([Ruler(i) for i in range(1, 5)], f"data.remix_probability={share}")
    apart = [i for i in items if number(i["accompaniment"]) != round(float(i["vocals"][0, 0]) / 10 ** (REMIX_DB / 20))]
    pairs = Counter()
    for item in items:
        voice = float(item["vocals"][0, 0])
        pairs[(voice, number(item["accompaniment"]))] += 1
    assert near(DRAWS - len([i for i in items if torch.equal(i["vocals"], i["accompaniment"])]), share) or share == 1.0
    assert apart and (share == 0.5 or len(pairs) == 16)  # each voice over each music


def test_a_set_of_sixteen_times_the_length_is_drawn_twice_as_often_and_tracks_by_length():
    tracks = [Ruler(1, group="small"), *(Ruler(i, group="large") for i in range(2, 18)),
              Ruler(18, 40.0, group="uneven"), Ruler(19, 120.0, group="uneven")]  # fmt: skip
    for remix in (0, 1):
        counts = Counter(number(i["accompaniment"]) for i in drawn(tracks, f"data.remix_probability={remix}"))
        assert near(counts[1], 1 / 5)
        assert near(sum(counts[i] for i in range(2, 18)), 2 / 5)
        assert near(counts[18], 1 / 10) and near(counts[19], 3 / 10)


def test_tracks_with_one_side_are_used_for_that_side():
    tracks = [Ruler(1), Ruler(2, stems=("vocals",)), Ruler(3, stems=("accompaniment",))]
    for remix in (0, 1):
        items = drawn(tracks, f"data.remix_probability={remix}")
        level = 10 ** (REMIX_DB / 20)
        voices = {round(float(item["vocals"][0, 0]) / scale, 4) for item in items for scale in (1, level)}
        assert {1.0, 2.0} <= voices and 3.0 not in voices
        alone = [i for i in items if abs(float(i["vocals"][0, 0]) - 2 * level) < 1e-4]
        assert {number(i["accompaniment"]) for i in alone} == {1, 3}  # a lone voice is always remixed


@pytest.mark.parametrize("missing", BOTH)
def test_a_side_that_no_track_has_is_named(missing):
    sides = tuple(side for side in BOTH if side != missing)
    with pytest.raises(UserError, match=f"none of the 2 training tracks has {missing}"):
        Segments([Ruler(1, stems=sides), Ruler(2, stems=sides)], config(), 10)


def test_the_source_rate_is_the_lower_of_the_two():
    tracks = [Ruler(1, rate=16000, stems=("vocals",)), Ruler(2, rate=44100, stems=("accompaniment",)),
              Ruler(3, rate=8000, stems=("accompaniment",))]  # fmt: skip
    for item in drawn(tracks, draws=50):
        assert item["source_rate"] == {2: 16000, 3: 8000}[number(item["accompaniment"])]


def test_a_track_shorter_than_a_segment_is_taken_from_its_start():
    items = drawn([Ruler(1, seconds=0.005)], draws=20)
    assert all(item["vocals"].shape == (2, 80) and item["vocals"][1, 0] == 100 for item in items)


# ---- how they are altered ------------------------------------------------------------------------------------------


def decibels(items: list[dict], side: str) -> np.ndarray:
    return 20 * np.log10([float(item[side][0].abs().mean()) for item in items])


def test_gains_are_uniform_in_decibels_and_independent():
    items = drawn([Ruler(1)], "data.gain_db=6")
    gains = np.array([decibels(items, side) for side in BOTH])
    assert (np.abs(gains) <= 6.001).all() and (gains.min(1) < -5.7).all() and (gains.max(1) > 5.7).all()
    assert (np.abs(gains.std(1) - 12 / np.sqrt(12)) < 0.3).all()
    assert abs(np.corrcoef(gains)[0, 1]) < 0.2
    assert not decibels(drawn([Ruler(1)], draws=10), "vocals").any()


def test_a_voice_over_foreign_music_has_the_level_of_a_mixture():
    tracks = [Ruler(1, stems=("vocals",), loudness=0.02), Ruler(1, stems=("accompaniment",), loudness=0.5)]
    for item in drawn(tracks, draws=10):
        gain = 20 * np.log10(0.5 / 0.02) + REMIX_DB  # so that the voice is REMIX_DB below the music
        assert decibels([item], "vocals")[0] == pytest.approx(gain, abs=1e-3)
        assert decibels([item], "accompaniment")[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loudness", [0.0, 1e-5])  # digital silence, and the noise of a track where nobody sings
@pytest.mark.parametrize("silent", BOTH)
def test_silent_tracks_are_not_made_louder(silent, loudness):
    tracks = [
        Ruler(i, stems=(side,), **({"loudness": loudness} if side == silent else {})) for i, side in enumerate(BOTH, 1)
    ]
    assert all(number(item["vocals"]) == 1 for item in drawn(tracks, draws=10))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_channels_are_swapped_and_signs_flipped_as_often_as_told(share):
    swapped = drawn([Ruler(1)], f"data.channel_swap={share}")
    flipped = drawn([Ruler(1)], f"data.polarity_flip={share}")
    for side in BOTH:
        assert near(sum(float(item[side][0, 0]) > 50 for item in swapped), share)
        assert near(sum(float(item[side][0, 0]) < 0 for item in flipped), share)
    if share == 0.25:  # each stem on its own
        assert any((i["vocals"][0, 0] < 0) != (i["accompaniment"][0, 0] < 0) for i in flipped)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_vocals_are_silenced_as_often_as_told(share):
    items = drawn([Ruler(1)], f"data.silent_vocals={share}")
    assert near(sum(not item["vocals"].any() for item in items), share)
    assert all(item["accompaniment"].any() for item in items)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_accompaniment_is_silenced_as_often_as_told_but_never_with_the_voice(share):
    items = drawn([Ruler(1)], f"data.silent_accompaniment={share}", "data.silent_vocals=0.5")
    silent = [not item["accompaniment"].any() for item in items]
    assert near(sum(silent), share / 2)
    assert all(item["vocals"].any() for item, one in zip(items, silent, strict=True) if one)


# ---- the same music under another voice ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_so_many_items_have_a_twin_of_each_kind(share):
    items = drawn([Ruler(i) for i in range(1, 5)], f"train.consistency_share={share}")
    plain = drawn([Ruler(i) for i in range(1, 5)])
    voices = [float(item["vocals"][0, 0]) for item in items]
    ratios = [float(item["twin_vocals"][0, 0]) / voice for item, voice in zip(items, voices, strict=True)]
    twins = [ratio for ratio in ratios if ratio != 1]
    assert near(len(twins), share) or share == 1
    for known, part in ((0.0, 1 / 3), (0.5, 1 / 6), (2.0, 1 / 6)):
        assert near(ratios.count(known), share * part)
    joined = [one for one in twins if one not in (0, 0.5, 2)]
    assert near(len(joined), share / 3) and min(joined) > 1
    for item, before in zip(items, plain, strict=True):  # and the items are those that they were
        assert all(torch.equal(item[name], before[name]) for name in before)


def test_a_guest_has_its_level_and_its_source_rate():
    tracks = [Ruler(1, loudness=0.5), Ruler(2, rate=4000, loudness=0.1)]
    items = drawn(tracks, "train.consistency_share=1", "data.set_weights={}")
    for item in items:
        guest = item["twin_vocals"] - item["vocals"]
        if number(item["vocals"]) == 1 and float(guest[0, 0]) > 0 and not torch.equal(guest, item["vocals"]):
            gain = float(guest[1, 0]) / 105  # of track 1 or 2, near enough
            other = 5.0 if item["source_rate"] == 4000 else 1.0
            assert 10 ** (-9.6 / 20) * other < gain < 10 ** (0.6 / 20) * other


def test_where_nobody_sings_the_twin_does():
    items = drawn([Ruler(1)], "train.consistency_share=1", "data.silent_vocals=1")
    assert all(number(item["twin_vocals"]) == 1 and not item["vocals"].any() for item in items)
    assert "twin_vocals" not in drawn([Ruler(1)], draws=1)[0]


def test_the_level_is_normally_distributed():
    levels = np.array([float(item["level_db"]) for item in drawn([Ruler(1)], "data.level_db=3")])
    assert abs(levels.mean()) < 0.6 and abs(levels.std() - 3) < 0.4 and np.abs(levels).max() > 6
    assert not any(item["level_db"] for item in drawn([Ruler(1)], draws=10))


def test_channels():
    stereo = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(to_channels(stereo, 2), stereo)
    assert torch.equal(to_channels(stereo, 1), torch.tensor([[2.0, 4.0]]))
    assert torch.equal(to_channels(stereo[:1], 2), torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
    assert torch.equal(to_channels(torch.cat([stereo, stereo]), 2), stereo)
    (item,) = drawn([Ruler(1)], "audio.channels=1", draws=1)
    assert item["vocals"].shape == (1, 80)


# ---- wherever they are made ----------------------------------------------------------------------------------------


def write_tracks(folder, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        (folder / f"song {i}").mkdir(parents=True)
        for side in BOTH:
            soundfile.write(folder / f"song {i}" / f"{side}.wav", rng.uniform(-0.5, 0.5, (RATE, 2)), RATE)


def stems(folder, *overrides: str) -> Config:
    return load_config(None, [*SMALL.split(), "data.dataset=stems", f"data.root='{(folder / 'songs').as_posix()}'",
                              f"data.cache_dir='{(folder / 'cache').as_posix()}'", *overrides])  # fmt: skip


def test_processes_that_fill_one_cache_at_once_draw_what_one_process_draws(tmp_path):
    write_tracks(tmp_path / "songs", 3)
    settings = stems(tmp_path)
    loader = DataLoader(Segments(train_tracks(settings), settings, 24), batch_size=2, num_workers=3)
    batches = list(loader)
    assert len(list((tmp_path / "cache").iterdir())) == 6  # whole files only
    alone = Segments(train_tracks(settings), settings, 24)
    for i in range(24):
        for name in ("vocals", "accompaniment", "level_db", "source_rate"):
            assert torch.equal(batches[i // 2][name][i % 2], alone[i][name]), (i, name)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.01, 1.7])  # songs of 1 s
def test_batches_are_the_same_wherever_they_are_made(tmp_path, channels, seconds):
    write_tracks(tmp_path / "songs", 3)
    samples, rate = soundfile.read(tmp_path / "songs" / "song 0" / "vocals.wav")
    soundfile.write(tmp_path / "songs" / "song 0" / "drums.wav", 3.5 * samples, rate, "FLOAT")  # beyond 16 bit
    (tmp_path / "songs" / "song 0" / "accompaniment.wav").rename(tmp_path / "songs" / "song 0" / "bass.wav")
    (tmp_path / "songs" / "song 1" / "vocals.wav").unlink()
    made = {}
    for cache in ("none", "memory", "device"):
        settings = stems(tmp_path, f"data.cache={cache}", f"audio.channels={channels}", "train.consistency_share=0.8",
                         f"data.segment_seconds={seconds}")  # fmt: skip
        made[cache] = list(load_segments(Segments(train_tracks(settings), settings, 24), 4, torch.device("cpu")))
        assert len(made[cache]) == 5 and made[cache][0]["vocals"].shape == (4, channels, round(seconds * RATE))
    for cache in ("none", "memory"):
        for direct, other in zip(made["device"], made[cache], strict=True):
            assert direct.keys() == other.keys()
            for name, values in other.items():  # gains reach 20 dB, where a voice is quiet
                tolerance = 1e-3 if name in (*SIDES, "twin_vocals") else 0
                torch.testing.assert_close(direct[name], values, atol=tolerance, rtol=1e-6)
    assert len({float(batch["vocals"].sum()) for batch in made["device"]}) == 5


def test_stems_that_do_not_fit_on_the_device_are_said_so(tmp_path, monkeypatch):
    write_tracks(tmp_path / "songs", 1)
    settings = stems(tmp_path, "data.cache=device")
    segments = Segments(train_tracks(settings), settings, 4)

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(UserError, match=r"needs [\d.]+ [kM]B that cpu has not free; use data\.cache=memory"):
        next(load_segments(segments, 0, torch.device("cpu")))


def test_processes_share_the_stream_and_any_number_of_them_goes_on(tmp_path):
    write_tracks(tmp_path / "songs", 2)
    for cache in ("memory", "device"):
        settings = stems(tmp_path, f"data.cache={cache}", "train.batch_size=2")
        segments = Segments(train_tracks(settings), settings, 100)

        def drawn_by(rank: int, world_size: int, first: int, count: int, segments=segments) -> list[dict]:
            stream = load_segments(segments, first, torch.device("cpu"), rank, world_size)
            return [next(stream) for _ in range(count)]

        done, seen = 0, []
        for world_size, count in ((1, 3), (3, 2), (2, 4)):  # stopped and resumed twice
            parts = [drawn_by(rank, world_size, done, count) for rank in range(world_size)]
            indices = [i for part in parts for batch in part for i in batch["index"].tolist()]
            done += 2 * world_size * count
            assert len(indices) == len(set(indices))
            seen += sorted(indices)
            for batch in parts[-1]:  # what a process draws is what anyone would draw
                alone = segments[int(batch["index"][1])]["vocals"]
                torch.testing.assert_close(batch["vocals"][1], alone, atol=1e-4, rtol=0)
        assert seen == list(range(done)) and done == 34


def test_loader_processes_may_be_spawned(tmp_path):
    """As on Windows and macOS: the segments are pickled, what they hold of the songs is not."""
    write_tracks(tmp_path / "songs", 2)
    settings = stems(tmp_path)
    segments = Segments(train_tracks(settings), settings, 6)
    segments[0]
    assert len(pickle.dumps(segments)) < 10_000
    options = {"multiprocessing_context": "spawn", "worker_init_fn": loader._init_worker}
    batches = list(DataLoader(segments, batch_size=3, num_workers=1, **options))
    for i in range(6):
        assert torch.equal(batches[i // 3]["vocals"][i % 3], segments[i]["vocals"])


def test_a_sample_that_is_no_number_is_named(tmp_path):
    write_tracks(tmp_path / "songs", 1)
    path = tmp_path / "songs" / "song 0" / "vocals.wav"
    soundfile.write(path, np.full((RATE, 2), np.nan, np.float32), RATE, "FLOAT")
    for cache in ("none", "memory", "device"):
        settings = stems(tmp_path, f"data.cache={cache}", "data.remix_probability=0")
        with pytest.raises(UserError, match=r"vocals\.wav.*finite"):
            next(load_segments(Segments(train_tracks(settings), settings, 4), 0, torch.device("cpu")))


def test_an_error_in_a_loader_process_is_one_sentence(tmp_path):
    from diffvocsep.training.trainer import Trainer

    write_tracks(tmp_path / "songs", 2)
    write_tracks(tmp_path / "dev", 1)
    settings = stems(tmp_path, "data.workers=1", f"data.dev_root='{(tmp_path / 'dev').as_posix()}'",
                     "model.base_channels=4", "model.patch=[1,1]")  # fmt: skip
    trainer = Trainer(settings, torch.device("cpu"), "none")
    for path in (tmp_path / "songs").rglob("*.wav"):
        path.write_bytes(b"no longer audio")
    with pytest.raises(UserError) as error:
        next(trainer.steps())
    assert ".wav" in str(error.value) and "\n" not in str(error.value) and "UserError" not in str(error.value)
