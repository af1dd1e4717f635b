"""Is the uncertainty honest? At errors whose distribution is known: draws of Student's t of known scale."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from printed import tables
from scipy.stats import t as students_t
from test_evaluate import RATE, arguments, stereo
from test_evaluate import model as model  # fixtures
from test_evaluate import songs as songs

import evaluate
from diffvocsep.checkpoint import load_checkpoint, saved_config
from diffvocsep.evaluation import calibration
from diffvocsep.evaluation.calibration import (
    CLASSES,
    Calibration,
    compare,
    coverage_of,
    crps,
    fit,
    rank_shares,
    summary,
)
from diffvocsep.separator import Separator
from diffvocsep.uncertainty import ScaleHead
from diffvocsep.util.errors import UserError
from scripts import fit_uncertainty

FREEDOM = 3.0
FACTORS = np.linspace(-1.5, 1.5, CLASSES[0])[:, None] + np.linspace(0, 0.7, CLASSES[1])


def dice(seed: int, wrong: float = 1.0, frames: int = 400) -> calibration.Errors:
    """A song whose errors are `wrong` times as large as its scales and the `FACTORS` say; its scales differ from bin to
    bin, and its SDR is what they imply, minus 3 dB, times a half."""
    rng = np.random.default_rng(seed)
    shape = (1, 1, CLASSES[0] * CLASSES[1], frames)
    group = np.broadcast_to(np.arange(shape[2])[:, None], shape[2:])[None, None]
    raw = 10 ** rng.uniform(-2, 0, shape)
    width = wrong * raw * np.exp(FACTORS.flatten()[group])
    error = width * (students_t.rvs(FREEDOM, size=shape, random_state=rng)
                     + 1j * students_t.rvs(FREEDOM, size=shape, random_state=rng))  # fmt: skip
    found = 10 ** rng.uniform(0, 1) * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    implied = 10 * np.log10((np.abs(found) ** 2).sum() / ((raw * np.exp(FACTORS.flatten()[group])) ** 2).sum())
    spectra = (torch.from_numpy(x).to(torch.complex64) for x in (10 + 0 * found, found, found + error))
    level = torch.ones(1, 1, 1, 1)
    tensors = torch.from_numpy(raw).float(), torch.from_numpy(group.copy()), level
    return compare(f"song {seed}", *spectra, *tensors, (10 ** ((implied - 3) / 20 + 0.01 * rng.normal()), 1.0))


@pytest.fixture(scope="module")
def dozen() -> list[calibration.Errors]:
    return [dice(seed) for seed in range(12)]


def test_what_the_errors_are_drawn_from_is_found(dozen):
    found = fit(dozen)
    assert found.freedom == pytest.approx(FREEDOM, rel=0.15)
    assert np.abs(found.log_factor - FACTORS).max() < 0.1
    offset, slope, low, high = found.line
    assert offset == pytest.approx(-1.5, abs=0.3) and slope == pytest.approx(0.5, abs=0.05)
    assert -0.5 < low < 0 < high < 0.5
    assert calibration.predicted(dozen[0], found)[0] == pytest.approx(dozen[0].sdr, abs=0.3)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_intervals_cover_what_they_say_of_songs_that_were_left_out(dozen, coverage):
    used = {clip.song: calibration.fit_without(dozen[:5], clip.song) for clip in dozen[:5]}
    rows = calibration.coverage_table(dozen[:5], used)
    place = calibration.COVERAGE.index(coverage)
    assert len(rows) == 1 + sum(CLASSES)
    for name, row in rows.items():
        assert row[place] == pytest.approx(coverage, abs=0.015), name
    assert rows["all bins"][-1] == pytest.approx(1) and rows["below 125 Hz"][-1] == pytest.approx(1 / CLASSES[0])


def test_scales_that_are_too_small_are_found_out():
    honest = Calibration(FACTORS, FREEDOM, (0, 1, 0, 0))
    clip = dice(0, wrong=3.0)
    expected = 2 * students_t.cdf(students_t.ppf(0.9, FREEDOM) / 3, FREEDOM) - 1
    assert coverage_of(clip.counts, honest, 0.8) == pytest.approx(expected, abs=0.01) and expected < 0.5
    ranks = rank_shares(clip.counts, honest, 16)
    assert ranks[0] > 3 / 17 and ranks.sum() == pytest.approx(1)


def test_a_song_counts_once_however_many_clips_it_has():
    short, long = dice(0), dice(1, wrong=2.0, frames=800)
    parts = [calibration.Errors("song 1", part, part, long.power, 1.0, (1.0, 1.0)) for part in (long.counts / 2,) * 2]
    assert np.allclose(calibration.by_song([short, long]), calibration.by_song([short, *parts]))


def test_the_sdr_is_that_of_songs_not_of_their_clips(dozen):
    """A song in pieces, whose SDR each differ, is to the fit what it is whole."""

    def piece(clip: calibration.Errors, share: float, reference: float) -> calibration.Errors:
        true, error = clip.energies
        parts = {name: share * getattr(clip, name) for name in ("counts", "scales", "power", "signal")}
        return replace(clip, **parts, energies=(reference * true, share * error))

    pieces = [piece(clip, *shares) for clip in dozen for shares in ((0.25, 0.6), (0.75, 0.4))]
    assert fit(pieces).line == pytest.approx(fit(dozen).line, rel=1e-6)
    assert [song.sdr for song in calibration.merge(pieces)] == pytest.approx([clip.sdr for clip in dozen])


@pytest.mark.parametrize("songs", [9, 14, 40])
def test_the_next_song_lies_in_its_interval_four_times_of_five(songs):
    """Or more often: of n songs, the ends have the ranks of n + 1."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(2000):
        implied = rng.normal(8, 4, songs + 1)
        true = 1 + 0.8 * implied + rng.normal(size=songs + 1)
        offset, slope, low, high = calibration._line(implied[:-1], true[:-1])
        inside.append(low <= true[-1] - offset - slope * implied[-1] <= high)
    assert 0.78 <= np.mean(inside) <= 0.80 + 2 / (songs + 1)


def test_the_ranks_are_those_of_draws():
    rng, samples = np.random.default_rng(0), 7
    clip, width = dice(5, wrong=1.5), 0.8
    own = Calibration(FACTORS + np.log(width), FREEDOM, (0, 1, 0, 0))
    truth = 1.5 * students_t.rvs(FREEDOM, size=200_000, random_state=rng)
    draws = width * students_t.rvs(FREEDOM, size=(samples, 200_000), random_state=rng)
    counted = np.bincount((draws < truth).sum(0), minlength=samples + 1) / truth.size
    assert np.abs(rank_shares(clip.counts, own, samples) - counted).max() < 0.01
    uniform = rank_shares(dice(6).counts, Calibration(FACTORS, FREEDOM, (0, 1, 0, 0)), samples)
    assert np.abs(uniform - 1 / (samples + 1)).max() < 0.005


def test_crps_is_the_mean_over_draws_of_its_definition():
    """E |X - y| - E |X - X'| / 2 (Gneiting and Raftery 2007, eq. 21), with X, X' drawn."""
    rng = np.random.default_rng(0)
    clip, own = dice(0), Calibration(FACTORS, FREEDOM, (0, 1, 0, 0))
    score, plain = crps(clip, own)
    scale = 10 ** rng.uniform(-2, 0, 40_000) * np.exp(rng.choice(FACTORS.flatten(), 40_000))
    y, first, second = (students_t.rvs(FREEDOM, size=(25, 40_000), random_state=rng) for _ in range(3))
    expected = (scale * (np.abs(first - y) - np.abs(first - second) / 2)).mean()
    assert score == pytest.approx(expected, rel=0.05)
    assert plain == pytest.approx((scale * np.abs(y)).mean(), rel=0.05) and score < 0.8 * plain
    certain, _ = crps(clip, Calibration(FACTORS - 12, FREEDOM, (0, 1, 0, 0)))
    assert certain == pytest.approx(plain, rel=1e-3)  # of one who has no doubt, it is the absolute error


def test_numbers_of_songs_of_known_sdr(dozen):
    own = fit(dozen)
    found = list(summary(dozen, {clip.song: own for clip in dozen}, 16).values())
    assert found[0] < 0.8 and found[1] == pytest.approx(100 * 15 / 17, abs=1)
    assert found[2] > 0.9 and found[3] < 0.3 and 60 <= found[4] <= 100


def test_errors_of_a_separation_are_those_of_its_vocals(model):
    state = load_checkpoint(model)
    config = saved_config(model, state["config"])
    torch.manual_seed(0)
    head = ScaleHead(config)
    head.log_factor.normal_()
    separator = Separator.from_checkpoint(model, "cpu")
    separator = Separator(separator.model, config, head=head)
    voice, mixture = (torch.from_numpy(x.T.copy()) for x in (stereo(0), stereo(0) + 2 * stereo(10)))
    found = calibration.errors(separator, "one", mixture, voice, RATE)
    vocals, _ = separator.separate(mixture, RATE, uncertainty=(numbers_ := separator.uncertainty()))
    difference = torch.view_as_real(separator.frontend.modelled((voice - vocals)[:, None])).abs()
    assert (found.scales * calibration.MIDDLES).sum() == pytest.approx(float(difference.sum()), rel=0.02)
    power = (found.power * np.exp(2 * head.log_factor.double().numpy())).sum()
    assert power == pytest.approx(float(numbers_.scale.double().square().sum()), rel=0.01)


# --- the script and evaluate.py -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(songs, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted") / "new.safetensors"
    sources = ["data.dataset=stems", f"data.root={songs.as_posix()}", f"data.cache_dir={path.parent.as_posix()}"]
    run = [str(model), str(path), str(songs), *sources, "data.segment_seconds=1", "--crops", "2", "--steps", "60"]
    assert fit_uncertainty.run(run) == 0
    return path


def test_a_head_is_fitted_and_the_network_stays(songs, model, fitted):
    before, after = Separator.from_checkpoint(model, "cpu"), Separator.from_checkpoint(fitted, "cpu")
    for name, weight in before.model.state_dict().items():
        assert torch.equal(weight, after.model.state_dict()[name])
    assert after.head.log_factor.any() and after.uncertainty().half_width(0.8) > 0


def test_its_coverage_is_printed_and_drawn(songs, fitted, tmp_path, capsys):
    run = [*arguments(songs, fitted), "--uncertainty", "--output", str(tmp_path)]
    evaluate.run([*run, "--samples", "8"])
    coverage, found = tables(capsys.readouterr().out)
    assert next(iter(coverage)) == "covered, %, 2 clips of 2 songs"
    whole = [float(cell) for cell in coverage["all bins"]]
    assert whole == pytest.approx([50, 80, 90, 100], abs=3)  # these songs are those it was calibrated with
    assert any("of 8 draws, % (honest: 78)" in name for name in found)
    assert {path.name for path in tmp_path.iterdir()} == {"uncertainty.csv", "uncertainty.png"}
    with pytest.raises(UserError, match="at least three"):
        evaluate.run([*run, "--leave_one_out"])


def test_a_model_that_knows_nothing_is_refused(songs, model):
    with pytest.raises(UserError, match=r"scripts\.fit_uncertainty"):
        evaluate.run([*arguments(songs, model), "--uncertainty"])


def test_the_clips_that_calibrate_are_spread_over_their_song(tmp_path):
    clips = [SimpleNamespace(track=SimpleNamespace(name=name), place=i) for name, n in (("a", 6), ("b", 2))
             for i in range(n)]  # fmt: skip
    chosen = [(clip.track.name, clip.place) for clip in fit_uncertainty.choose(clips, 4)]
    assert chosen == [("a", 0), ("a", 1), ("a", 3), ("a", 4), ("b", 0), ("b", 1)]


def test_a_file_of_another_kind_is_refused(tmp_path, model):
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        fit_uncertainty.run([str(model), str(tmp_path / "new.pt"), str(tmp_path)])
    with pytest.raises(UserError, match="at least 1"):
        fit_uncertainty.run([str(model), str(tmp_path / "new.safetensors"), str(tmp_path), "--steps", "0"])
    with pytest.raises(UserError, match=r"diffusion\.ddim_steps cannot be changed here"):
        command = [
            str(model),
            str(tmp_path / "new.safetensors"),
            str(tmp_path),
            "data.root=x",
            "diffusion.ddim_steps=2",
        ]
        fit_uncertainty.run(command)
