"""The dataset report: every kind of bad data is named, once per song, and good data is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from diffvocsep.data import check

RATE = 8000
SECONDS = 22
STEMS = ("vocals", "drums", "bass", "other")


def make(root: Path, name: str, half: str = "train", **spoil) -> None:
    """A song of MUSDB18-HQ; `spoil` changes the samples `(N, 2)` of the stems that it names, after the mixture is
    made."""
    folder = root / half / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(name))
    stems = {stem: rng.uniform(-0.2, 0.2, (SECONDS * RATE, 2)) for stem in STEMS}
    stems["vocals"][: SECONDS * RATE // 2] = 0  # half of it is sung
    stems["mixture"] = sum(stems.values())
    for stem, samples in stems.items():
        samples = spoil[stem](samples.copy()) if stem in spoil else samples
        soundfile.write(folder / f"{stem}.wav", samples.astype(np.float32), RATE, "FLOAT")


def put(first: int, count: int, value: float):
    def change(samples: np.ndarray) -> np.ndarray:
        samples[first : first + count] = value
        return samples

    return change


def lines(root: Path, capsys) -> list[str]:
    assert check.run(["--config", "config.yaml", "data.dataset=musdbhq", f"data.musdbhq_root='{root.as_posix()}'"]) == 0
    return capsys.readouterr().out.splitlines()


def test_good_songs_are_counted_and_nothing_else(tmp_path, capsys):
    for name in ("A - A", "A - B", "Leaf - Summerghost"):
        make(tmp_path, name)
    head, train, dev = lines(tmp_path, capsys)
    assert head.split() == ["split", "songs", "hours", "with", "vocals", "with", "problems"]
    assert train.split() == ["train", "2", "0.01", "50", "%", "0"]
    assert dev.split() == ["dev", "1", "0.01", "50", "%", "0"]


def test_of_test_songs_there_is_a_line_and_no_more(tmp_path, capsys):
    for name in ("A - A", "Leaf - Summerghost"):
        make(tmp_path, name)
    for name in ("Zeno - Signs", "Mu - Too Bright"):
        make(tmp_path, name, "test", bass=lambda x: x + 0.5)
    _, _, _, test = lines(tmp_path, capsys)
    assert test.split() == ["test", "2", "0.01", "50", "%", "-"]


BAD = {
    "nan": (dict(drums=put(90_000, 3, np.nan)), "drums.wav has 6 samples that are not finite numbers"),
    "clipped": (dict(vocals=put(80_000 - 2, 5, 1.0)), "vocals.wav is clipped 2 times"),  # over the end of a block
    "offset": (dict(bass=lambda x: x + 0.02), "bass.wav has a DC offset of 0.020"),
    "sum": (dict(other=lambda x: -x), "the stems do not add up to the mixture (1 dB are left)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_songs_are_named_once(tmp_path, capsys, case):
    spoil, sentence = BAD[case]
    make(tmp_path, "A - Good")
    make(tmp_path, "A - Bad one", **spoil)
    make(tmp_path, "Leaf - Summerghost")
    first, _, train, dev = lines(tmp_path, capsys)
    assert first.startswith("train 'A - Bad one': ") and sentence in first
    assert train.split()[-1] == "1" and dev.split()[-1] == "0"


def test_what_is_loud_or_lossy_is_not_bad(tmp_path, capsys):
    noise = np.random.default_rng(5).normal(0, 1, (SECONDS * RATE, 2))
    make(tmp_path, "A - B", mixture=lambda x: x + 10 ** (-20 / 20) * x.std() * noise,  # as lossy stems do
         vocals=put(100, 2, 1.0), drums=put(100, 50, 0.5))  # fmt: skip
    make(tmp_path, "Leaf - Summerghost")
    assert len(lines(tmp_path, capsys)) == 3


@pytest.mark.parametrize("level, named", [(-14, 1), (-16, 0)])
def test_more_than_15_db_below_the_mixture_may_be_missing(tmp_path, capsys, level, named):
    noise = np.random.default_rng(5).normal(0, 1, (SECONDS * RATE, 2))
    make(tmp_path, "A - B", mixture=lambda x: x + 10 ** (level / 20) * x.std() * noise)
    make(tmp_path, "Leaf - Summerghost")
    assert len(lines(tmp_path, capsys)) == 3 + named


def test_several_problems_are_one_line_and_the_reader_is_told_what_ends_early(tmp_path, capsys):
    make(tmp_path, "A - B", bass=lambda x: x + 0.5, drums=put(7, 1, np.inf))
    make(tmp_path, "Leaf - Summerghost")
    name, sentence = lines(tmp_path, capsys)[0].split(": ")
    assert name == "train 'A - B'"
    expected = ["bass.wav has a DC offset of 0.500", "drums.wav has 2 samples that are not finite numbers"]
    assert sorted(sentence.split("; ")) == expected
    soundfile.write(tmp_path / "x.flac", np.zeros((200_000, 2)), RATE)
    content = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    (problem,) = check.file_problems(tmp_path / "x.flac")
    assert "can" in problem and "read" in problem


def test_synthetic_songs_and_songs_of_one_side(tmp_path, capsys):
    small = ["data.synthetic_songs=1", "data.synthetic_seconds=1", "audio.sample_rate=8000"]
    assert check.run(["--config", "config.yaml", *small]) == 0
    _, train, dev = capsys.readouterr().out.splitlines()
    assert train.split()[:2] == ["train", "1"] and dev.split()[:2] == ["dev", "32"]
    for folder, names in (("a/band", ["drums"]), ("a/solo", ["vocals"]), ("b/song", ["vocals", "accompaniment"])):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            soundfile.write(tmp_path / folder / f"{name}.wav", np.full((RATE, 1), 0.001), RATE, "FLOAT")
    roots = [f"data.{key}='{(tmp_path / name).as_posix()}'" for key, name in (("root", "a"), ("dev_root", "b"))]
    assert check.run(["--config", "config.yaml", "data.dataset=stems", *roots]) == 0
    _, train, dev = capsys.readouterr().out.splitlines()
    assert train.split() == ["train", "2", "0.00", "100", "%", "0"] and dev.split()[1] == "1"
