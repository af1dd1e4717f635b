"""The suites of evaluate.py at separators whose answers are known: identity, silence, the oracle."""

from __future__ import annotations

import csv
import math
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
from printed import tables
from test_evaluate import RATE, TINY, arguments, stereo
from test_evaluate import model as model  # fixtures
from test_evaluate import songs as songs
from tiny import nobody_plays, nobody_sings, stubbed

import evaluate
from diffvocsep.data.synthetic.song import FAMILIES
from diffvocsep.evaluation import families as families_module
from diffvocsep.evaluation import invariance, sweep
from diffvocsep.evaluation.clips import Clip, find_excerpts
from diffvocsep.evaluation.report import draw_rows, interval, table
from diffvocsep.evaluation.systems import Model
from diffvocsep.util.errors import UserError

FLOOR = invariance.FLOOR


def waves(seed: int, gain: float = 1.0) -> torch.Tensor:
    return gain * torch.from_numpy(stereo(seed).T.copy())


# --- is it counterfactual? ----------------------------------------------------------------------------------------


def examined(separate) -> dict[str, float]:
    """Vocals, accompaniment and guest of equal energy."""
    return invariance.measure_song(waves(0), waves(1), waves(2), separate)


def test_the_oracle_passes_every_test():
    assert set(examined(invariance.oracle)) == set(invariance.TESTS)
    assert all(value < -90 for value in examined(invariance.oracle).values())


def test_doing_nothing_wins_where_nothing_is_asked_and_no_more():
    found = examined(invariance.identity)
    assert found[invariance.NO_VOCALS] == found[invariance.REPEATED] == FLOOR
    assert found[invariance.ONLY_VOCALS] == pytest.approx(0, abs=1e-6)
    assert found[invariance.SCALED_VOCALS] == pytest.approx(FLOOR, abs=40)  # silence scales as silence
    gains = [(2 - 1) ** 2, (0.5 - 1) ** 2]  # the accompaniment takes the change of the vocals
    assert found[invariance.SCALED_REST] == pytest.approx(10 * math.log10(sum(gains) / 2), abs=0.2)
    assert found[invariance.SECOND_SINGER] == pytest.approx(0, abs=0.2)


def test_taking_everything_wins_the_others_and_no_more():
    found = examined(invariance.silence)
    assert found[invariance.NO_VOCALS] == pytest.approx(0, abs=1e-6)
    for test in (invariance.ONLY_VOCALS, invariance.SCALED_REST, invariance.SECOND_SINGER):
        assert found[test] == FLOOR
    shares = [(1 - 2) ** 2 / 2**2, (1 - 0.5) ** 2 / 0.5**2]  # what stays of the accompaniment, over the vocals
    assert found[invariance.SCALED_VOCALS] == pytest.approx(10 * math.log10(sum(shares) / 2), abs=0.2)


@pytest.mark.parametrize(("network", "known"), [(nobody_sings, "identity"), (nobody_plays, "silence")])
def test_a_network_that_does_the_same_scores_the_same(network, known):
    separator = stubbed(network)
    found = examined(lambda mixture, truth: separator.separate(mixture, RATE)[1])
    expected = examined(invariance.REFERENCES[known])
    for test, value in expected.items():
        assert found[test] < -60 if value < -60 else found[test] == pytest.approx(value, abs=0.01), test


def test_the_guest_is_the_next_singer_as_loud_as_the_own_one():
    one, other = (Clip(name, waves(i), waves(i), waves(5), RATE) for i, name in enumerate("ab"))
    longer = Clip("c", waves(3), waves(3).repeat(1, 2) * 4, waves(5), RATE)
    for guest in (invariance.second_singer(one, other), invariance.second_singer(one, longer)):
        assert guest.shape == one.vocals.shape and float(guest.norm() / one.vocals.norm()) == pytest.approx(1, abs=1e-4)
    alone = invariance.second_singer(one, one)
    assert torch.allclose(alone, one.vocals.flip(-1), atol=1e-6)
    assert invariance.second_singer(one, Clip("d", waves(1), 0 * waves(1), waves(1), RATE)).any()


def test_the_guest_of_every_clip_comes_from_another_song(songs):
    excerpts = find_excerpts("stems", songs, 0.5)  # four clips of each of three songs
    pairs = list(zip(excerpts, invariance.guests(excerpts), strict=True))
    assert [guest.name for _, guest in pairs[:2]] == ["b at 0 s", "b at 0.5 s"]
    following = {"a": "b", "b": "silent", "silent": "a"}
    assert all(guest.track.name == following[one.track.name] for one, guest in pairs)
    assert invariance.guests(excerpts[:2]) == excerpts[:2]  # one song alone


def test_the_suite_runs_and_shows_all_four(songs, model, tmp_path, capsys):
    evaluate.run([*arguments(songs, model), "--counterfactual", "--seconds", "0.5", "--output", str(tmp_path)])
    (rows,) = tables(capsys.readouterr().out)
    assert next(iter(rows.values())) == ["identity", "silence", "oracle", model.as_posix()]
    assert list(rows)[1:] == list(invariance.TESTS)
    assert rows[invariance.NO_VOCALS][:3] == ["-100.0", "0.0", "-100.0"]
    assert {path.name for path in tmp_path.iterdir()} == {"counterfactual.csv", "counterfactual.png"}


# --- quality against steps ----------------------------------------------------------------------------------------


def test_a_grid_holds_every_combination_once():
    found = sweep.parse_grid("steps=1,4 sampler=ddim,ddpm,dpmpp eta=0,1 samples=1,2")
    assert len(found) == len(set(found)) == 2 * (1 + 4)  # K x (one step: all the same; four: ddim twice, ddpm, dpmpp)
    assert sweep.Setting("ddim", 4, 1.0, 2) in found
    assert {s.evaluations for s in found} == {1, 2, 4, 8}
    for wrong in ("step=1", "steps=many", "steps"):
        with pytest.raises(UserError, match="--grid"):
            sweep.parse_grid(wrong)


def test_settings_that_a_grid_takes_for_the_same_are_the_same(songs, model):
    separator = Model(model, "cpu").separator()
    mixture = waves(4)[:, :4000]

    def vocals(setting: sweep.Setting) -> torch.Tensor:
        return separator.configured(None, setting.overrides()).separate(mixture, RATE)[0]

    one = vocals(sweep.Setting(steps=1))
    assert torch.equal(one, vocals(sweep.Setting("ddpm", 1)))
    assert torch.equal(one, vocals(sweep.Setting("dpmpp", 1)))
    assert torch.equal(one, vocals(sweep.Setting("ddim", 1, 1.0)))
    assert not torch.equal(one, vocals(sweep.Setting(steps=2)))


def test_the_frontier_is_what_nothing_beats():
    def measured(sdr: float, real_time: float) -> sweep.Measured:
        return sweep.Measured(sweep.Setting(), {"global SDR": np.array([sdr])}, real_time)

    settings = [measured(*pair) for pair in [(3, 2), (2, 1), (1, 3), (4, 4), (2, 1.5)]]
    assert [float(one.sdr[0]) for one in sweep.frontier(settings)] == [2, 3, 4]


def test_the_sweep_scores_each_setting(songs, model, tmp_path, capsys):
    evaluate.run([*arguments(songs, model)[:-2], "--sweep", "--seconds", "0.5", "--grid", "steps=1,3 sampler=ddim",
                  "--grid", "steps=3 sampler=ddpm", "--output", str(tmp_path)])  # fmt: skip
    (rows,) = tables(capsys.readouterr().out)
    assert list(rows)[1:] == ["ddim, 1 step, K = 1", "ddim, 3 steps, K = 1", "ddpm, 3 steps, K = 1"]
    assert next(iter(rows)).endswith("of 6 clips")  # a second of song a and song "silent" have no singer
    assert any(cells[-1] == "*" for cells in rows.values())
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.csv", "sweep.png"}


# --- is it instrument-independent? --------------------------------------------------------------------------------


def test_every_family_is_sung_over_by_the_same_voice_at_the_same_level(monkeypatch):
    monkeypatch.setattr(families_module, "SONG_SECONDS", 1.0)
    parts = families_module.synthetic_parts(2)
    assert [(p.family, p.index) for p in parts] == [(family, i) for family in FAMILIES for i in (0, 1)]
    (vocals, drums, _), (other, bowed, _), (third, _, _) = (
        families_module.FamilySong(family, i).waves() for family, i in (("drums", 0), ("bowed", 0), ("drums", 1))
    )
    assert torch.equal(vocals, other) and not torch.equal(vocals, third) and not torch.equal(drums, bowed)
    for rest in (drums, bowed):
        level = 20 * math.log10(float(vocals.norm() / rest.norm()))
        assert level == pytest.approx(families_module.BALANCE_DB, abs=0.01)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Two families of three and four songs of noise; the second is louder, which must not matter."""
    root = tmp_path_factory.mktemp("families")
    for family, count in (("brass", 3), ("strings", 4)):
        for i in range(count):
            folder = root / family / f"song {i}"
            folder.mkdir(parents=True)
            soundfile.write(folder / "accompaniment.wav", stereo(i) * (3 if family == "strings" else 1), RATE, "FLOAT")
    return root


def test_a_folder_sorted_by_family(families, songs):
    parts = families_module.folder_parts(families, 30, songs)
    assert [(p.family, p.index) for p in parts] == [(f, i) for f in ("brass", "strings") for i in range(3)]
    (brass, rest, rate), (strings, louder, _) = parts[0].waves(), parts[3].waves()
    assert rate == RATE and torch.equal(brass, strings) and torch.allclose(rest, louder, atol=1e-5)
    with pytest.raises(UserError, match="sorted by family"):
        families_module.folder_parts(families / "brass", 30, None)
    with pytest.raises(UserError, match="nobody sings"):
        families_module.folder_parts(families, 30, families)


def test_the_loudest_stretch_is_taken_and_silent_bands_are_counted(tmp_path, songs, model, monkeypatch, capsys):
    monkeypatch.setattr(families_module, "SONG_SECONDS", 1.0)
    for i, gains in enumerate([(0, 0, 1), (0, 1, 0), (0, 0, 0)]):  # of each second; the last band is silent throughout
        folder = tmp_path / "brass" / f"song {i}"
        folder.mkdir(parents=True)
        wave = np.concatenate([gain * stereo(i, 1.0) for gain in gains])
        soundfile.write(folder / "accompaniment.wav", wave, RATE, "FLOAT")
    late, *_ = parts = families_module.folder_parts(tmp_path, 30, songs)
    _, rest, _ = late.waves()
    expected = torch.from_numpy(stereo(0, 1.0).T)
    assert torch.allclose(rest / rest.norm(), expected / expected.norm(), atol=1e-6)
    assert not parts[2].waves()[1].any()
    evaluate.run([*arguments(tmp_path, model), "--instruments", "--vocals", str(songs)])
    out = capsys.readouterr().out
    assert "median of 2 songs" in out and "1 of 3 songs are left out" in out
    assert tables(out)[0]["brass"][-1] == f"{families_module.BALANCE_DB:.2f}"  # and no 120 dB among them


def test_the_gap_is_the_difference_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    voices = rng.normal(0, 3, 40)  # some voices are easy over whatever plays
    scores = {family: level + voices + rng.normal(0, 0.3, 40) for family, level in (("a", 5), ("b", 6), ("c", 4))}
    found = families_module.gap(scores, ["c"])
    assert found.value == pytest.approx(1.5, abs=0.4) and found.low < 1.5 < found.high
    assert found.high - found.low < 1.0  # the voices, which all share, do not blur it
    assert families_module.gap(scores, []) is None and families_module.gap(scores, list("abc")) is None
    low, high = interval(voices[None], lambda drawn: float(np.median(drawn)))
    assert low < np.median(voices) < high and high - low > 1


def test_families_held_out_are_named_and_compared(families, songs, model, tmp_path, capsys):
    run = [*arguments(families, model), "--instruments", "--vocals", str(songs)]
    evaluate.run([*run, "--held_out", "brass", "--output", str(tmp_path)])
    out = capsys.readouterr().out
    (rows,) = tables(out)
    assert rows["brass"][0] == "held out" and rows["strings"][0] == "seen"
    assert re_number(out.split("seen minus held out: ")[1]) == pytest.approx(
        float(rows["strings"][1]) - float(rows["brass"][1]), abs=0.02
    )
    with open(tmp_path / "instruments.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 and list(lines[0]) == ["family", "song", "silence", "mixture", model.as_posix()]
    for line in lines:
        assert float(line["silence"]) == 0 and float(line["mixture"]) == pytest.approx(
            families_module.BALANCE_DB, abs=0.01
        )
    with pytest.raises(UserError, match="kazoo"):
        evaluate.run([*run, "--held_out", "kazoo"])


def re_number(text: str) -> float:
    return float(text.split()[0])


def test_the_checkpoint_itself_says_what_was_held_out(tmp_path, families, songs, capsys):
    from diffvocsep.checkpoint import save_checkpoint
    from diffvocsep.config import load_config, to_dict
    from diffvocsep.unet import UNet

    config = load_config(None, [*TINY.split(), "data.held_out_families=[bowed]"])
    save_checkpoint(tmp_path / "m.pt", {"config": to_dict(config), "ema": UNet(config).state_dict(), "step": 1})
    assert families_module.held_out_of(Model(tmp_path / "m.pt")) == ("bowed",)
    evaluate.run([*arguments(families, tmp_path / "m.pt"), "--instruments", "--vocals", str(songs)])
    rows = tables(capsys.readouterr().out)[0]
    assert rows["brass"][0] == rows["strings"][0] == ""  # of a folder's families the checkpoint knows nothing


def test_a_bar_in_a_name_does_not_break_the_table():
    lines = table("a", ["b"], {"|X|": ["1"]}).splitlines()
    assert [line.count("|") for line in lines] == [3, 3, 3] and "&#124;X&#124;" in lines[2]


# --- pictures -----------------------------------------------------------------------------------------------------


def test_long_names_and_the_title_stay_inside_the_picture(tmp_path, drawn):
    rows = {test: [-20.0, -10.0, 0.0] for test in invariance.TESTS}
    draw_rows(tmp_path / "a.png", rows, "energy, dB", title="checkpoints/pretrained.safetensors, lower is better",
              zero="silence")  # fmt: skip
    (figure,), (axis,) = drawn, drawn[0].axes
    figure.draw_without_rendering()
    texts = [*axis.get_yticklabels(), axis.xaxis.label, *figure.texts, *figure.legends[0].get_texts()]
    texts.append(figure._suptitle)
    whole = figure.bbox
    for text in texts:
        box = text.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, text


def test_the_sweep_has_plain_ticks_and_names_each_heap_of_steps_once(tmp_path, drawn):
    settings = [sweep.Setting(sampler=sampler, steps=steps) for sampler in ("ddim", "dpmpp") for steps in (1, 16)]
    measured = [
        sweep.Measured(s, {"global SDR": np.ones(1) * s.steps, "log-spectral distance": np.ones(1)}, 0.04 * s.steps)
        for s in settings
    ]
    sweep.draw_frontier(tmp_path / "a.png", measured)
    left, right = drawn[0].axes
    for axis in (left, right):
        assert {text.get_text() for text in axis.get_xticklabels()} >= {"0.05", "0.1", "0.2", "0.5"}
        assert not axis.get_xticklabels(minor=True)
        assert sorted(text.get_text() for text in axis.texts) == ["1", "16"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["ddim", "dpmpp", "frontier"]


def test_columns_line_up_where_a_letter_is_two_wide():
    """A terminal gives a Korean syllable two columns, also where macOS has taken it apart."""
    names = {"현악기": 6, unicodedata.normalize("NFD", "피아노"): 6, "strings": 7}
    _, rule, *lines = table("a", ["b"], {key: ["1"] for key in names}).splitlines()
    assert rule == "|---------|---|"
    for line, (name, columns) in zip(lines, names.items(), strict=True):
        assert line == f"| {name}{' ' * (7 - columns)} | 1 |"
