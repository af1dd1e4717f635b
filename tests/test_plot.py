"""The picture of a separation."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
import torch

from diffvocsep.audio import write
from diffvocsep.plot import plot_separation, require_picture, run, spectrogram_db
from diffvocsep.util.errors import UserError

RATE = 16000


def tone(frequency: float, seconds: float = 2.0) -> torch.Tensor:
    t = torch.arange(round(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * torch.pi * frequency * t)[None].repeat(2, 1)


def test_a_tone_of_full_scale_lies_at_its_frequency():
    image = spectrogram_db(tone(1000))
    assert image.shape[0] == 1025
    assert (image[:, 10:-10].argmax(0) == 128).all()  # 1000 Hz * 2048 / 16000 Hz


def test_the_panels_show_what_they_say_in_hz_and_s(tmp_path, drawn):
    low, high = tone(500), tone(3000)
    plot_separation(tmp_path / "a.png", low + high, high, RATE, start=30.0, true_vocals=high)
    panels = [axis for axis in drawn[0].axes if axis.get_images() and axis.get_title(loc="left")]
    assert [axis.get_title(loc="left").split(":")[0] for axis in panels] == [
        "mixture", "counterfactual", "vocals", "true vocals",
    ]  # fmt: skip
    assert all(axis.get_ylabel() == "Hz" for axis in panels)
    assert panels[-1].get_xlabel() == "s"
    assert panels[0].get_xlim() == (30.0, 32.0)
    assert panels[0].get_ylim() == (0.0, 8000.0)

    def level(axis, frequency: float) -> float:
        image = axis.get_images()[0]
        _, _, bottom, top = image.get_extent()
        rows = image.get_array()
        row = int((frequency - bottom) / (top - bottom) * rows.shape[0])
        return float(rows[row - 1 : row + 2, 20:-20].mean(1).max())

    for axis, (has_low, has_high) in zip(panels, [(1, 1), (1, 0), (0, 1), (0, 1)], strict=True):
        assert (level(axis, 500) > -20) == has_low
        assert (level(axis, 3000) > -20) == has_high


def test_a_picture_has_a_sensible_size_and_colours(tmp_path):
    plot_separation(tmp_path / "그림 🎤.png", tone(500) + tone(900), tone(900), RATE)
    pixels = matplotlib.image.imread(tmp_path / "그림 🎤.png")
    height, width = pixels.shape[:2]
    assert 900 < width < 2000 and 500 < height < 2000
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["그림 🎤.png"]


def test_silence_and_a_single_sample_can_be_drawn(tmp_path):
    silence = torch.zeros(1, 1)
    plot_separation(tmp_path / "a.svg", silence, silence, RATE)
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["picture", "picture.wav"])
def test_a_name_that_is_no_picture_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"picture.*\.png"):
        require_picture(tmp_path / name)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        plot_separation(tmp_path / "file" / "a.png", tone(500), tone(500), RATE)


def test_files_can_be_drawn_by_hand(tmp_path, drawn):
    files = [tmp_path / name for name in ("mixture.wav", "vocals.wav", "short.wav")]
    for file, waveform in zip(files, [tone(500) + 0.5 * tone(900), tone(900)[:1], tone(900, 1.9)], strict=True):
        write(file, waveform, RATE)
    mixture, vocals, short = map(str, files)
    output = ["--output", str(tmp_path / "a.png"), "--seconds", "1"]
    assert run([mixture, vocals, "--truth", vocals, *output]) == 0
    panels = [axis for axis in drawn[0].axes if axis.get_title(loc="left")]
    assert len(panels) == 4 and panels[0].get_xlim() == (0.5, 1.5)
    with pytest.raises(UserError, match=r"short\.wav"):
        run([mixture, short, *output, "--seconds", "20"])


def test_the_uncertainty_is_a_panel_of_its_own(tmp_path, drawn):
    times, frequencies = np.arange(0.05, 60, 0.1), np.arange(50.0, 8000, 100)
    scale = np.full((2, len(frequencies), len(times)), 1e-4, np.float16)
    scale[0, (frequencies > 2000) & (frequencies < 2100)] = 1.0  # unsure at 2050 Hz, and from 31 to 31.5 s
    scale[1, :, (times > 31) & (times < 31.5)] = 1.0
    values = {"time": times, "frequency": frequencies, "scale": scale}
    plot_separation(tmp_path / "a.png", tone(500), tone(500), RATE, start=30.0, uncertainty=values)
    panel = [axis for axis in drawn[0].axes if axis.get_title(loc="left")][-1]
    assert panel.get_title(loc="left").startswith("uncertainty") and panel.get_xlabel() == "s"
    image = panel.get_images()[0]
    left, right, bottom, top = image.get_extent()
    assert panel.get_xlim() == (30.0, 32.0)
    rows, columns = image.get_array().shape
    loud = image.get_array() > image.get_array().min() + 40
    heights = bottom + (np.flatnonzero(loud.all(1)) + 0.5) * (top - bottom) / rows
    moments = left + (np.flatnonzero(loud.all(0)) + 0.5) * (right - left) / columns
    assert heights == pytest.approx([2050]) and 31 < moments.min() < 31.1 and 31.4 < moments.max() < 31.5


def test_the_uncertainty_of_a_shorter_song_is_refused(tmp_path):
    values = {"time": np.arange(20) / 10, "frequency": np.arange(3) * 2000.0, "scale": np.ones((1, 3, 20))}
    with pytest.raises(UserError, match=r"ends at 1\.9 s"):
        plot_separation(tmp_path / "a.png", tone(500), tone(500), RATE, start=30.0, uncertainty=values)


def test_the_uncertainty_of_a_file_is_drawn_by_hand(tmp_path, drawn):
    for name in ("mixture.wav", "vocals.wav"):
        write(tmp_path / name, tone(500), RATE)
    rest = {name: np.ones(3) for name in ("coverage", "half_width", "sdr")}
    places = {"time": np.arange(4) / 2, "frequency": np.arange(3) * 2000.0}
    np.savez(tmp_path / "u.npz", scale=np.ones((2, 3, 4)), **places, **rest)
    files = [str(tmp_path / name) for name in ("mixture.wav", "vocals.wav")]
    assert run([*files, "--uncertainty", str(tmp_path / "u.npz"), "--output", str(tmp_path / "a.png")]) == 0
    assert len([axis for axis in drawn[0].axes if axis.get_title(loc="left")]) == 4


@pytest.mark.parametrize("seconds", ["nan", "0", "-1", "inf"])
def test_a_length_that_is_none_is_refused(seconds, tmp_path):
    with pytest.raises((UserError, SystemExit)) as error:
        run(["a.wav", "b.wav", "--output", str(tmp_path / "a.png"), "--seconds", seconds])
    assert error.type is UserError or error.value.code == 2
