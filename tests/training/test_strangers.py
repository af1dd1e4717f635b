"""Checkpoints from elsewhere: whatever is in them, they are used or refused in one sentence, and that is all."""

from __future__ import annotations

import copy
import json
import math
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainers import make, run

from diffvocsep.checkpoint import FORMAT, RUN_FIELDS, load_checkpoint, load_model, release, save_checkpoint
from diffvocsep.config import from_dict
from diffvocsep.training.progress import Progress
from diffvocsep.training.trainer import Trainer
from diffvocsep.unet import make_network
from diffvocsep.util.errors import UserError

SECONDS = 5.0  # of the processor's time; a second of it is usual


@pytest.fixture(scope="module")
def state(undisturbed) -> dict[str, Any]:
    return undisturbed.state() | {"run_id": "the first"}


def at(*keys: Any) -> Callable[[dict, Any], None]:
    """Put a value into a nested state."""

    def put(state: dict, value: Any) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return put


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD = [None, True, -1, 10**30, 1.5, math.nan, math.inf, "text", b"bytes", [], [[]], {}, {"a": 1}, {1: {}}, (1,), set(),
       torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(1).expand(10**9), torch.zeros(2, 2).to_sparse(),
       torch.zeros(2, dtype=torch.complex64), torch.empty(2, device="meta"), nested(60)]  # fmt: skip
PLACES = [("step",), ("samples",), ("seconds",), ("validated",), ("skipped",), ("best_sdr",), ("dev_songs",),
          ("run_id",), ("config",), ("config", "audio"), ("config", "train", "optimizer"), ("ema", "x"),
          ("config", "model", "blocks"), ("config", "model", "channels_mult"), ("config", "diffusion", "timesteps"),
          ("model",), ("ema",),
          ("model", "stem.weight"), ("ema", "stem.weight"), ("optimizer",), ("optimizer", "state"), ("scaler",),
          ("optimizer", "param_groups"), ("optimizer", "state", 0), ("optimizer", "state", 0, "exp_avg"),
          ("optimizer", "param_groups", 0, "params"), ("optimizer", "param_groups", 0, "lr"), ("scaler", "scale"),
          ("versions",), ("format",)]  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> Trainer:
    """One that goes on with one checkpoint after the other, as train.py begins to."""
    return make(tmp_path_factory.mktemp("strange"))


def said_of(trainer: Trainer, state: dict) -> str | None:
    """What is said of a state that a trainer shall go on with; None if it does."""
    folder = trainer.folder.parent
    trainer.folder.mkdir(exist_ok=True)
    torch.save({"format": FORMAT} | state, trainer.folder / "last.pt")
    said, began = None, time.process_time()
    try:
        trainer.resume_from(trainer.folder / "last.pt", automatic=True)
        trainer.state()
    except UserError as error:
        said = str(error)
        assert "\n" not in said and "last.pt" in said and len(said) < 600
    assert time.process_time() - began < SECONDS
    assert {path.name for path in folder.iterdir()} <= {"ck", "tb"}, "nothing is written elsewhere"
    return said


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "ck").mkdir()
    return tmp_path


def mutated(state: dict, place: tuple, value: Any) -> dict:
    changed = copy.deepcopy({"versions": {}} | state)
    at(*place)(changed, value)
    return changed


@pytest.mark.parametrize("values", [pytest.param(ODD[::8], id="some"),
                                    pytest.param(ODD, id="all", marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_no_value_in_the_place_of_another_leads_to_a_traceback(trainer, state, place, values):
    for value in values:
        said_of(trainer, mutated(state, place, value))


def test_whole_states_are_taken(trainer, state):
    assert said_of(trainer, state) is None and trainer.progress.run_id == "the first"


@pytest.mark.parametrize("name", ["step", "config", "model", "ema", "optimizer", "scaler", "run_id", "best_sdr"])
def test_what_is_missing_is_named(trainer, state, name):
    said = said_of(trainer, {key: value for key, value in state.items() if key != name})
    assert said and (name in said or name == "ema")


NO_NAMES = [
    "../../elsewhere",
    "/elsewhere",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "x" * 300,
    ".hidden",
    "x.",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_run_s_name_leads_nowhere_else(trainer, state, name):
    """It is the name of a folder and of files that are kept."""
    assert "run_id is not a plain name" in said_of(trainer, state | {"run_id": name})


@pytest.mark.parametrize("name", [NO_NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NO_NAMES[1:])])
def test_a_new_run_beside_a_name_that_is_none_keeps_its_file(folder, state, name):
    save_checkpoint(folder / "ck" / "last.pt", state | {"run_id": name})
    with pytest.raises(UserError, match="run_id is not a plain name"):
        make(folder, resume="auto")
    trainer = make(folder, "train.max_steps=1", resume="none")
    assert trainer.run() == 0 and (folder / "ck" / "last.old.pt").exists()
    assert {path.name for path in folder.iterdir()} == {"ck", "tb"}


@pytest.mark.slow
def test_a_network_too_large_for_any_memory_is_refused_in_a_moment(tmp_path, state):
    for key, value in [
        ("channels_mult", [10**9] * 3), ("channels_mult", [1] * 10**5), ("base_channels", 10**6), ("blocks", 10**6),
        ("channels_mult", [10**5, 10**5, 10**5]), ("base_channels", 10**300), ("attention", [0] * 10**5),
    ]:  # fmt: skip
        other = copy.deepcopy(state)
        other["config"]["model"][key] = value
        save_checkpoint(tmp_path / "large.pt", other)
        release(other, tmp_path / "large.safetensors")
        for name in ("large.pt", "large.safetensors"):
            began = time.process_time()
            if key == "attention":
                other["config"]["model"]["attention_heads"] = 1
            with pytest.raises(UserError, match=name):
                load_model(tmp_path / name)
            assert time.process_time() - began < SECONDS, key


def test_archives_that_unpack_to_more_than_they_are_are_refused(tmp_path, state):
    save_checkpoint(tmp_path / "whole.pt", state)
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for record in whole.infolist():
            bomb.writestr(record.filename, whole.read(record))
    with pytest.raises(UserError, match=r"bomb\.pt' is no checkpoint"):
        load_checkpoint(tmp_path / "bomb.pt")


def safetensors(path: Path, metadata: Any) -> Path:
    header = json.dumps({"__metadata__": metadata} if metadata is not None else {}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize(
    "metadata",
    [
        None, {}, {"format": "2"}, {"format": "2", "config": "[" * 100_000}, {"format": "2", "config": "9" * 10_000},
        {"format": "2", "config": '{"a":' * 100_000 + "1" + "}" * 100_000}, {"format": "2", "config": "null"},
        {"format": "2", "config": "{}"}, {"format": "2", "config": "{}", "step": "9" * 5000},
        {"format": "2", "config": '{"model": {"channels_mult": 1e9}}'}, {"format": "2", "config": "NaN"},
        {"format": "2", "config": '{"diffusion": {"timesteps": 1000000000000}}'}, {"format": 2}, {"config": {}}, [],
        {"format": "2", "config": "{}", "step": "-1"}, {"format": "2", "config": '{"model": {"blocks": 999999999}}'},
    ],
)  # fmt: skip
def test_metadata_of_any_kind_is_a_sentence_in_a_second(tmp_path, metadata):
    path, began = safetensors(tmp_path / "odd.safetensors", metadata), time.process_time()
    with pytest.raises(UserError, match="odd.safetensors") as error:
        load_model(path)
    assert time.process_time() - began < SECONDS and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_metadata_nested_deeply_is_a_sentence(tmp_path):
    header = b'{"__metadata__":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path = tmp_path / "deep.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"deep\.safetensors"):
        load_model(path)


def test_a_copied_folder_does_not_touch_the_curves_of_the_first_run(tmp_path, undisturbed):
    first = run(tmp_path, "train.max_steps=3")
    (curves,) = (tmp_path / "tb").iterdir()
    shutil.copytree(tmp_path / "ck", tmp_path / "copy")
    goes_on = make(tmp_path, resume="auto")
    assert goes_on.run() == 0 and goes_on.progress.run_id == first.progress.run_id
    before = {path.name: path.read_bytes() for path in curves.iterdir()}
    copied = make(tmp_path, f"log.checkpoint_dir='{tmp_path / 'copy'}'", resume="auto")
    assert copied.progress.step == 3 and copied.run() == 0 and copied.progress.run_id != first.progress.run_id
    assert {path.name: path.read_bytes() for path in curves.iterdir()} == before
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(copied.model.state_dict()[name], weight)


def test_a_folder_that_has_moved_goes_on_with_its_curves(tmp_path):
    first = run(tmp_path, "train.max_steps=3")
    shutil.move(tmp_path / "ck", tmp_path / "moved")
    moved = make(tmp_path, f"log.checkpoint_dir='{tmp_path / 'moved'}'", resume="auto")
    assert (
        moved.run() == 0
        and moved.progress.run_id == first.progress.run_id
        and len(list((tmp_path / "tb").iterdir())) == 1
    )


# ---- by chance -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.integers(0, 9), inner),
    max_leaves=5,
)


def flip(whole: bytes, places: list[tuple[float, int]]) -> bytes:
    content = bytearray(whole)
    for where, value in places:
        content[int(where * (len(content) - 1))] = value
    return bytes(content)


FLIPS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=9)


def fuzz(cases: int) -> Callable:
    return settings(
        max_examples=cases, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@fuzz(20)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_values_by_chance(trainer, state, place, value):
    said_of(trainer, mutated(state, place, value))


@fuzz(40)
@given(places=FLIPS)
def test_bytes_by_chance(tmp_path, state, places):
    check_bytes(tmp_path, state, places)


def check_bytes(folder: Path, state: dict, places: list) -> None:
    for name, write in (("whole.pt", save_checkpoint), ("whole.safetensors", lambda path, state: release(state, path))):
        path, broken = folder / name, folder / f"broken{Path(name).suffix}"
        if not path.exists():
            write(path, state)
        broken.write_bytes(flip(path.read_bytes(), places))
        try:
            load_model(broken)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.fuzz
@fuzz(1000)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_a_thousand_values_by_chance(trainer, state, place, value):
    said_of(trainer, mutated(state, place, value))


@pytest.mark.fuzz
@fuzz(1000)
@given(places=FLIPS)
def test_a_thousand_damaged_files(tmp_path, state, places):
    check_bytes(tmp_path, state, places)


def test_weights_larger_than_their_file_are_refused_before_memory_is_taken(tmp_path, state):
    """A tensor with strides of 0 repeats one number as often as it says: 35 KB were 6 GB of weights."""
    wide = copy.deepcopy(state)
    wide["config"]["model"] |= {"base_channels": 1000}
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in make_network(from_dict(wide["config"])).state_dict().items()}
    wide["ema"] = wide["model"] = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    save_checkpoint(tmp_path / "wide.pt", wide)
    with pytest.raises(UserError, match=r"wide\.pt' .* its weights are larger than the file"):
        load_model(tmp_path / "wide.pt")


def test_numbers_of_four_bits_are_no_weights(tmp_path, state):
    metadata = {"format": "2", "config": json.dumps(state["config"])}
    header = {"__metadata__": metadata, "guess": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}
    text = json.dumps(header).encode()
    (tmp_path / "four.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1")
    with pytest.raises(UserError, match=r"four\.safetensors"):
        load_model(tmp_path / "four.safetensors")


@pytest.mark.parametrize("name", ["\U0001d49c" * 100, "보" * 100])
def test_a_run_s_name_is_no_longer_than_a_file_s_may_be(trainer, state, name):
    assert "run_id is not a plain name" in said_of(trainer, state | {"run_id": name})


def test_every_part_of_the_progress_is_tested_when_it_is_read():
    assert RUN_FIELDS.keys() == Progress().to_dict().keys()


@pytest.mark.parametrize(
    ("name", "most"), [("validated", "step"), ("skipped", "step"), ("validated_seconds", "seconds")]
)
def test_a_part_is_not_larger_than_the_whole(trainer, state, name, most):
    assert f"its {name} is larger than its {most}" in said_of(trainer, state | {name: state[most] + 1})


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model", "ema"])
def test_weights_that_are_not_finite_are_refused_before_anything_is_moved(trainer, state, name, number):
    """The run would end at once, with last.pt moved aside and the advice to start the same command again."""
    weights = state[name] | {"stem.weight": torch.full_like(state[name]["stem.weight"], number)}
    assert "its weights are not finite" in said_of(trainer, state | {name: weights})
    assert [path.name for path in trainer.folder.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(("moment", "number"), [("exp_avg", math.nan), ("exp_avg_sq", math.nan), ("exp_avg_sq", -1.0)])
def test_moments_that_no_training_leaves_are_refused(trainer, state, moment, number):
    changed = copy.deepcopy(state)
    moments = next(values for values in changed["optimizer"]["state"].values() if moment in values)
    moments[moment].fill_(number)
    assert "its optimizer does not fit its weights" in said_of(trainer, changed)


@pytest.mark.parametrize(
    "home", ["\ud800", *(pytest.param(name, marks=pytest.mark.slow) for name in ("x" * 300, "\0", "/dev/null", ""))]
)
def test_a_run_json_that_names_no_possible_folder_is_no_copy(tmp_path, home):
    first = run(tmp_path, "train.max_steps=1")
    (curves,) = (tmp_path / "tb").iterdir()
    (curves / "run.json").write_text(json.dumps([{"checkpoints": home}]))
    goes_on = make(tmp_path, "train.max_steps=2", resume="auto")
    assert goes_on.progress.run_id == first.progress.run_id and goes_on.progress.step == 1
