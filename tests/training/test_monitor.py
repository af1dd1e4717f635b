"""What one sees of a run: bars, TensorBoard, and the folder that holds them and more."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from trainers import CPU, ROOT, run, tiny

import diffvocsep.training.history as history_module
import diffvocsep.training.monitor as monitor_module
from diffvocsep.checkpoint import load_checkpoint
from diffvocsep.config import load_config
from diffvocsep.training import run_folder
from diffvocsep.training.events import EventFile
from diffvocsep.training.history import History
from diffvocsep.training.monitor import CURVES, EXAMPLES, Monitor, loss_by_noise
from diffvocsep.training.objective import Objective
from diffvocsep.training.run_folder import record_start
from diffvocsep.training.trainer import Trainer
from diffvocsep.training.validation import Validation

ALL = {"size_guidance": {"images": 0, "audio": 0, "scalars": 0, "tensors": 0}}


@pytest.fixture(scope="module")
def items() -> list[tuple[Tensor, Tensor]]:
    """What the objective said of each batch of `trained`: the items' losses and their timesteps."""
    return []


@pytest.fixture(scope="module")
def trained(tmp_path_factory, items, picture) -> Iterator[tuple[Trainer, str]]:
    """A run of two sampling steps, and what it said on the terminal."""
    stderr, objective = sys.stderr, Objective.__call__

    def listening(self: Objective, *args) -> dict[str, Tensor]:
        terms = objective(self, *args)
        items.append((terms["per_item"].clone(), terms["t"].clone()))
        return terms

    sys.stderr, Objective.__call__ = io.StringIO(), listening
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(monitor_module, "picture", picture)
            trainer = run(tmp_path_factory.mktemp("run"), "diffusion.ddim_steps=2", "diffusion.terminal_share=0.5",
                          "log.every_steps=2")  # fmt: skip
        yield trainer, sys.stderr.getvalue()
    finally:
        sys.stderr, Objective.__call__ = stderr, objective


@pytest.fixture(scope="module")
def folder(trained) -> Path:
    (path,) = Path(trained[0].config.log.tb_log_dir).iterdir()
    return path


@pytest.fixture(scope="module")
def log(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), **ALL).Reload()


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "history.csv").read_text(encoding="utf-8").splitlines()))


# ---- the run folder ------------------------------------------------------------------------------------------------


def test_the_folder_says_what_was_run(trained, folder):
    assert load_config(folder / "config.yaml") == trained[0].config
    (start,) = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert start["step"] == 0 and start["device"] == "cpu" and start["changes"] == []
    assert start["versions"]["torch"] == str(torch.__version__) and start["versions"]["tensorboard"]
    assert start["command"] == shlex.join([sys.executable, *sys.argv])
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", start["commit"])


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    assert run_folder.git_commit() is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_folder.git_commit() is None


def test_runs_that_begin_in_the_same_second_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda *_: "20261123-070000")
    runs = [run(tmp_path / name, "train.max_steps=1", f"log.tb_log_dir='{tmp_path.as_posix()}/tb'") for name in "ab"]
    assert [trainer.progress.run_id for trainer in runs] == ["20261123-070000", "20261123-070000-2"]
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == [trainer.progress.run_id for trainer in runs]
    for trainer in runs:
        assert load_config(tmp_path / "tb" / trainer.progress.run_id / "config.yaml") == trainer.config
        assert load_checkpoint(trainer.folder / "last.pt")["run_id"] == trainer.progress.run_id


def test_every_start_is_one_more_entry_even_after_a_damaged_one(tmp_path):
    (tmp_path / "run.json").write_text('[{"step": 0', encoding="utf-8")
    for step in (3, 5):
        about = record_start(tmp_path, tiny(tmp_path), step, "cpu", ["train.lr: 1 -> 2"])
    starts = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert [start["step"] for start in starts] == [3, 5] and json.loads(about) == starts[1]


def test_history_is_the_curves(folder, log):
    table = rows(folder)
    assert list(table[0]) == ["step", "time", *CURVES]
    for column, tag in CURVES.items():
        column = [(int(row["step"]), float(row[column])) for row in table if row[column]]
        points = [(event.step, event.value) for event in log.Scalars(tag)] if tag in log.Tags()["scalars"] else []
        assert [step for step, _ in column] == [step for step, _ in points], tag
        assert [value for _, value in column] == pytest.approx([value for _, value in points], rel=1e-4), tag


def test_history_that_was_cut_or_went_too_far_goes_on_from_the_step(tmp_path):
    path = tmp_path / "history.csv"
    history = History(path, ("loss", "sdr"), 0)
    for step in (1, 2, 3):
        history.add(step, {"loss": step / 3})
    history.add(3, {"sdr": -1.5})
    with open(path, "a", encoding="utf-8") as file:
        file.write("4,2026-")  # killed
    History(path, ("loss", "sdr", "new"), 2).add(3, {"sdr": 7.0})
    table = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [(row["step"], row["loss"], row["sdr"], row["new"]) for row in table] == [
        ("1", "0.333333", "", ""), ("2", "0.666667", "", ""), ("3", "", "7", ""),
    ]  # fmt: skip


SPREADSHEETS = {"BOM": (",", ".", "utf-8-sig"), "semicolons": (";", ",", "utf-8-sig"), "UTF-16": ("\t", ",", "utf-16"),
                "other language": (";", ",", "cp1252")}  # fmt: skip


@pytest.mark.parametrize("kind", SPREADSHEETS)
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_table_that_a_spreadsheet_has_saved_is_not_cut(tmp_path, kind, meanwhile):
    """Before a run goes on, and while it runs."""
    delimiter, point, encoding = SPREADSHEETS[kind]
    path = tmp_path / "history.csv"
    history = History(path, ("loss", "sdr"), 0)
    for step in (1, 2, 3):
        history.add(step, {"loss": step / 3, "sdr": -step / 7})
    before = rows(tmp_path)
    table = [list(before[0]), *([value.replace(".", point) for value in row.values()] for row in before)]
    path.write_bytes("".join(delimiter.join(line) + "\r\n" for line in table).encode(encoding))
    if not meanwhile:
        history = History(path, ("loss", "sdr"), 3)
    history.add(4, {"loss": 4.5})
    assert rows(tmp_path)[:3] == before and rows(tmp_path)[3]["loss"] == "4.5" and len(rows(tmp_path)) == 4
    assert [found.name for found in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.parametrize("odd", ["9" * 5000 + ",x,1,1\n", "3," + "x" * 200_000 + ",1,1\n", '3,"' + "x\n" * 100_000])
def test_what_is_no_row_is_kept_aside_and_the_rows_before_stay(tmp_path, odd):
    """A number of thousands of digits, a field that no reader of tables takes, a quote that is never closed."""
    path = tmp_path / "history.csv"
    for step in (1, 2):
        History(path, ("loss", "sdr"), 2).add(step, {"loss": step / 3})
    before = rows(tmp_path)
    with open(path, "a", encoding="utf-8") as file:
        file.write(odd)
    History(path, ("loss", "sdr"), 2).add(3, {"loss": 4.5})
    assert rows(tmp_path)[:2] == before and rows(tmp_path)[2]["loss"] == "4.5"
    assert (tmp_path / "history.old").read_text(encoding="utf-8").endswith(odd)


def test_a_table_that_someone_looks_at_gets_its_rows_later(tmp_path, monkeypatch, capsys):
    """On Windows a program that shows a file, like Excel, keeps others from writing to it: no reason to end a run."""
    monitor = Monitor(tmp_path, tiny(tmp_path), CPU, 0, 6, -math.inf, "")

    def locked(path: Path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for step in (1, 2, 3):
        with monkeypatch.context() as patch:
            if step < 3:
                patch.setattr(history_module, "open", locked, raising=False)
            monitor.log_validation(step, step - 1, Validation([float(step)], [1.0]), 1.0)
            assert len(rows(tmp_path)) == (3 if step == 3 else 0)
    assert [(row["step"], row["sdr_median"]) for row in rows(tmp_path)] == [("1", "1"), ("2", "2"), ("3", "3")]
    monkeypatch.setattr(history_module, "open", locked, raising=False)
    monitor.log_validation(4, 3, Validation([4.0], [1.0]), 1.0)
    monitor.close()
    assert "history.csv is open elsewhere: its last 1 rows are missing" in capsys.readouterr().out


# ---- TensorBoard ---------------------------------------------------------------------------------------------------


def test_curves_are_there_at_their_steps(log):
    scalars = set(log.Tags()["scalars"])
    # On GPUs, on TPUs, with train.consistency_share.
    elsewhere = {CURVES["gpu_memory_gib"], CURVES["compilations"], CURVES["consistency"]}
    assert set(CURVES.values()) - scalars <= elsewhere | {f"loss_by_noise/quarter_{k}" for k in "1234"}
    for tag in scalars - {"loss_by_noise/pure_noise"}:
        steps = [event.step for event in log.Scalars(tag)]
        if tag.startswith("dev/"):
            assert steps == [2, 3, 4, 6], tag
        elif not tag.startswith("loss_by_noise/"):
            assert steps == [2, 4, 6], tag

    def values(tag: str) -> list[float]:
        return [event.value for event in log.Scalars(tag)]

    assert all(0 <= share <= 1 for share in values("speed/data_wait"))
    assert all(0.05 < gib < 16 for gib in values("memory/program_gib"))
    assert all(0 < rate < 1000 for rate in values("speed/steps_per_second"))
    assert values("dev/sdr_best") == np.maximum.accumulate(values("dev/sdr_median")).tolist()
    assert values("dev/sdr_median_one_step") != values("dev/sdr_median")


def test_loss_is_told_apart_by_noise_level():
    t = torch.tensor([0, 249, 250, 600, 998, 999, 999])
    per_item = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 21.0])
    expected = {"loss_quarter_1": 2.0, "loss_quarter_2": 5.0, "loss_quarter_3": 7.0, "loss_quarter_4": 9.0}
    assert loss_by_noise(per_item, t, 1000) == expected | {"loss_pure_noise": 16.0}
    per_item[5:] = math.nan
    assert loss_by_noise(per_item[4:], t[4:], 1000) == {"loss_quarter_4": 9.0}


def test_the_loss_by_noise_is_of_the_items_and_timesteps_of_these_steps(trained, items, log):
    config, steps = trained[0].config, trained[0].progress.step  # what came after them is of other tests
    assert len(items) >= steps == 6 and config.log.every_steps == 2
    logged = {name: {e.step: e.value for e in log.Scalars(tag)} for name, tag in CURVES.items()
              if name.startswith("loss_") and tag in log.Tags()["scalars"]}  # fmt: skip
    for step in range(2, steps + 1, 2):
        per_item, t = (torch.cat(values) for values in zip(*items[step - 2 : step], strict=True))
        found = {name: values[step] for name, values in logged.items() if step in values}
        assert found == pytest.approx(loss_by_noise(per_item, t, config.diffusion.timesteps))


def test_pictures_show_the_four_panels_of_fixed_clips(log, trained):
    assert len(trained[0].clips) == 2 < EXAMPLES
    assert log.Tags()["images"] == ["clip_1/spectrograms", "clip_2/spectrograms"]
    events = log.Images("clip_1/spectrograms")
    assert [event.step for event in events] == [2, 3, 4, 6]
    images = [matplotlib.image.imread(io.BytesIO(event.encoded_image_string)) for event in events]
    height, width = images[0].shape[:2]
    assert height > 400 and width > 600

    def panel(image: np.ndarray, n: int) -> np.ndarray:
        return image[int((n + 0.2) * height / 4) : int((n + 0.7) * height / 4), width // 4 : width // 2]

    for n, same in enumerate([True, False, False, True]):  # mixture, counterfactual, vocals, truth
        assert np.array_equal(panel(images[0], n), panel(images[-1], n)) == same, n


def test_sounds_can_be_played(log, trained):
    heard = {tag: [event.step for event in log.Audio(tag)] for tag in log.Tags()["audio"]}
    for n, (vocals, accompaniment) in enumerate(trained[0].clips, 1):
        assert heard[f"clip_{n}/vocals"] == heard[f"clip_{n}/counterfactual"] == [2, 3, 4, 6]
        assert heard[f"clip_{n}/mixture"] == heard[f"clip_{n}/true_vocals"] == [2]
        for name, truth in (("mixture", vocals + accompaniment), ("true_vocals", vocals)):
            (event,) = log.Audio(f"clip_{n}/{name}")
            with wave.open(io.BytesIO(event.encoded_audio_string)) as file:
                assert file.getframerate() == 8000 and file.getnframes() == truth.shape[-1]
                samples = np.frombuffer(file.readframes(10**6), "<i2") / 32767
            assert np.allclose(samples, truth.mean(0).numpy(), atol=1e-4)
        parts = [log.Audio(f"clip_{n}/{name}")[0] for name in ("vocals", "counterfactual")]
        waves = [np.frombuffer(part.encoded_audio_string[44:], "<i2") / 32767 for part in parts]
        assert np.allclose(sum(waves), (vocals + accompaniment).mean(0).numpy(), atol=1e-3)


def test_loud_sounds_are_made_quieter_and_not_clipped(tmp_path, capsys):
    monitor = Monitor(tmp_path, tiny(tmp_path), CPU, 0, 6, -math.inf, "")
    truth = torch.sin(torch.arange(8000) / 9)[None] * 1.5
    monitor.log_validation(2, 0, Validation([1.0], [1.0], [(2 * truth, truth, truth)]), 1.0)
    monitor.close()
    log = EventAccumulator(str(tmp_path), **ALL).Reload()
    peaks = {}
    for name in ("mixture", "vocals"):
        (event,) = log.Audio(f"clip_1/{name}")
        samples = np.abs(np.frombuffer(event.encoded_audio_string[44:], "<i2"))
        peaks[name] = samples.max() / 32767
    assert peaks["mixture"] == pytest.approx(1, abs=1e-3) and peaks["vocals"] == pytest.approx(0.5, abs=1e-3)
    assert "clipped" not in capsys.readouterr().out


def test_pictures_are_few_however_often_it_validates(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Monitor, "_examples", lambda self, step, _: (drawn.append(step), setattr(self, "reference_written", True))
    )
    monitor = Monitor(tmp_path, tiny(tmp_path), CPU, 0, 1000, -math.inf, "")
    for step in range(1, 1001):
        monitor.log_validation(step, step - 1, Validation([1.0], [1.0]), 1.0)
    monitor.close()
    assert drawn == [1, *range(100, 1001, 100)]


def test_config_and_start_are_there_as_text(log):
    def text(tag: str) -> str:
        return log.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()

    assert "    diffusion.ddim_steps: 2\n" in text("config") and "    audio.sample_rate: 8000\n" in text("config")
    assert '"versions"' in text("run") and '"command"' in text("run")


def test_hparams_stand_beside_the_final_score(log):
    found = {}
    for tag in ("experiment", "session_start_info", "session_end_info"):
        found[tag] = HParamsPluginData.FromString(log.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
    settings = found["session_start_info"].session_start_info.hparams
    assert settings["train.lr"].number_value == 0.002 and settings["diffusion.ddim_steps"].number_value == 2
    assert settings["data.dataset"].string_value == "synthetic" and not any(key.startswith("log.") for key in settings)
    metrics = [info.name.tag for info in found["experiment"].experiment.metric_infos]
    assert "dev/sdr_median" in metrics and set(metrics) <= set(log.Tags()["scalars"])


def test_a_run_that_begins_with_another_s_checkpoint_has_its_row_of_hparams(tmp_path):
    for step in (500, 510):  # begins, and goes on
        Monitor(tmp_path, tiny(tmp_path), CPU, step, 600, -math.inf, "").close()
    log = EventAccumulator(str(tmp_path), **ALL).Reload()
    assert log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    written = b"".join(path.read_bytes() for path in tmp_path.glob("events.*"))
    assert written.count(b"_hparams_/session_start_info") == 1


# ---- bars ----------------------------------------------------------------------------------------------------------


def test_bars_show_epochs_steps_and_the_validation(trained, folder):
    lines = re.split(r"[\r\n]", trained[1].replace("\x1b[A", ""))
    epochs = [line for line in lines if line.startswith("Epochs")]
    steps = [line for line in lines if line.startswith("Train")]
    validations = [line for line in lines if line.startswith("Validation")]
    assert "2/2" in epochs[-1] and re.search(r"best=-?\d+\.\d\d dB, loss=\d+\.\d{4}", epochs[-1])
    assert {line.split(":")[0] for line in steps} == {"Train 1/2", "Train 2/2"}
    assert any(re.search(r"3/3 .*loss=\d.*lr=\d.*wait=\d+%", line) for line in steps)
    assert any(re.search(r"2/2 .*sdr=-?\d+\.\d\d dB", line) for line in validations)
    table = rows(folder)
    best = max(float(row["sdr_median"]) for row in table if row["sdr_median"])
    assert f"best={best:.2f} dB" in epochs[-1]


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(monitor_module.tqdm, "set_postfix", lambda self, **values: shown.append((self.desc, values)))
    config = load_config(None, ["log.every_steps=2"], tiny(tmp_path))
    monitor = Monitor(tmp_path, config, CPU, 0, 6, -math.inf, "")
    for step, loss in enumerate([1.0, 2.0, 6.0, 4.0, math.nan, 8.0], 1):
        monitor.step(step, {"loss": torch.tensor(loss)}, 0.5, 0.125, 0.01, 0)
    monitor.close()
    epochs = [values["loss"] for name, values in shown if name == "Epochs"]
    assert epochs == ["1.5000", "3.0000", "4.0000", "6.0000", "6.0000"]  # steps 2, 3, 4, 6 and the end
    assert [values["wait"] for name, values in shown if name.startswith("Train")] == ["25%"] * 3
    assert [row["steps_per_second"] for row in rows(tmp_path)] == ["2"] * 3


def test_a_loss_term_without_a_curve_is_not_passed_over(tmp_path):
    monitor = Monitor(tmp_path, tiny(tmp_path), CPU, 0, 6, -math.inf, "")
    with pytest.raises(ValueError, match=r"monitor\.CURVES names no curve for the loss terms sparsity"):
        monitor.step(1, {"loss": torch.ones(()), "sparsity": torch.ones(())}, 0.5, 0.1, 0.01, 0)
    monitor.close()


def test_nothing_waits_for_a_gpu_between_the_points_of_the_curves(tmp_path, monkeypatch):
    """No tensor is read as a number: on a GPU that would wait for all that was asked of it."""
    monitor = Monitor(tmp_path, load_config(None, ["log.every_steps=5"], tiny(tmp_path)), CPU, 0, 10, -math.inf, "")
    terms = {"loss": torch.ones(()), "per_item": torch.ones(2), "t": torch.ones(2, dtype=torch.long)}
    reads = []
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__format__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _f=original, **k: (reads.append(self), _f(self, *a, **k))[1]
        )
    for step in (1, 2):
        monitor.step(step, terms, 0.5, 0.1, 0.01, 0)
    assert not reads
    for step in (3, 4, 5):
        monitor.step(step, terms, 0.5, 0.1, 0.01, 0)
    assert reads, "the test cannot see it"
    monitor.close()


def test_files_of_one_second_are_read_in_the_order_in_which_they_began(tmp_path):
    files = [EventFile(tmp_path, purge_step=0).path for _ in range(50)]
    assert sorted(files) == files and len({*files}) == 50
