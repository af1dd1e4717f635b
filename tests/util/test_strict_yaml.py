"""YAML from strangers: whatever it holds, a configuration or one short sentence comes out, at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diffvocsep.config import Config, from_dict, load_config
from diffvocsep.util.errors import UserError
from diffvocsep.util.strict_yaml import parse, show

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 13)
)
HOSTILE = {
    "nested brackets": "[" * 99_000,
    "nested braces": "{a: " * 20_000,
    "nested lines": "\n".join(" " * i + "a:" for i in range(400)),
    "nested dashes": "- " * 20_000,
    "nested keys": "? " * 20_000,
    "code": "train: !!python/object/apply:os.system [ls]",
    "a tag of one's own": "train: !foo " + "x" * 5000,
    "a wrong timestamp": "train: {lr: !!timestamp abc}",
    "a wrong boolean": "train: {lr: !!bool maybe}",
    "a wrong number": "train: {lr: !!int abc}",
    "wrong bytes": "train: {lr: !!binary é}",
    "an alias bomb": BOMB,
    "an alias bomb as a key": BOMB + "? *a12\n: 1\n",
    "an alias bomb as a value": BOMB + "train: {lr: *a12}\n",
    "a bomb of merges": "x0: &x0 {a: 1}\n" + "".join(
        f"x{i}: &x{i}\n  <<: [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 9)
    ),
    "itself": "&a [*a]",
    "itself as a key": "&a {*a : 1}",
    "an alias of nothing": "train: {lr: *" + "x" * 3000 + "}",
    "5,000 digits": "train: {lr: " + "9" * 5000 + "}",
    "4,000 digits": "train: {lr: " + "9" * 4000 + "}",
    "4,000 digits, whole": "train: {accumulate: -" + "9" * 4000 + "}",
    "4,000 hexadecimal digits": "train: {accumulate: -0x" + "f" * 4000 + "}",
    "a list of such": "train: {seed: [0x" + "f" * 4000 + "]}",
    "90,000 hexadecimal digits": "train: {seed: 0x" + "f" * 90_000 + "}",
    "a number to the base of 60": "train: {seed: -1" + ":59" * 1200 + "}",
    "an exponent of digits": "train: {lr: 1e" + "9" * 4000 + "}",
    "digits as a section": "9" * 4000 + ": 1",
    "digits as a key": "train: {" + "9" * 4000 + ": 1}",
    "a key of 4,000 letters": "train: {" + "k" * 4000 + ": 1}",
    "such a key twice": "? " + "k" * 4000 + "\n: 1\n? " + "k" * 4000 + "\n: 2\n",
    "a value of 4,000 letters": "data: {dataset: " + "v" * 4000 + "}",
    "a value of 90,000 letters": "data: {dataset: " + "v" * 90_000 + "}",
    "a merge with a number": "train: {<<: 3}",
    "a NUL": "train: \0",
    "half a character": 'data: {root: "\\ud800"}',
    "no character": 'data: {root: "\\Uffffffff"}',
    "an unknown escape": 'train: {lr: "\\q"}',
    "two documents": "a: 1\n---\nb: 2",
    "no date": "train: {lr: 2024-99-99}",
    "no time": "train: {lr: 2024-01-01 00:00:00+99:99}",
    "a list as a key": "? [a]\n: 1",
    "a map as a key": "train: {? {a: b} : 1}",
    "null as a section": "~: 1",
    "an equals sign": "train: {lr: =}",
    "another YAML": "%YAML 9.9\n---\na: 1",
    "a large file": "#" * 10**7,
    "many keys": "data: {set_weights: {" + ", ".join(f"k{i}: 1" for i in range(7000)) + "}}",
    "many braces": "[" + "{}," * 30_000 + "]",
}  # fmt: skip


def outcome(text: str, path: Path) -> str:
    """What `load_config` says to a file of `text`, "" if it takes it."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_config(path), Config)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_short_sentence_at_once(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    began = time.process_time()  # of this process alone
    said = outcome(HOSTILE[name], Path("c.yaml"))
    assert time.process_time() - began < 1
    assert 0 < len(said) <= 300 and "\n" not in said and said.isprintable()


@pytest.mark.parametrize("name", [name for name, text in HOSTILE.items() if len(text) < 10**5 and "\0" not in text])
def test_and_so_is_an_override(name):
    began = time.process_time()
    for override in (f"train.lr={HOSTILE[name]}", HOSTILE[name].replace("=", "") + "=1"):
        with pytest.raises(UserError) as caught:
            load_config(None, [override])
        assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)
    assert time.process_time() - began < 2


def test_what_a_file_may_hold_is_more_than_a_configuration_needs():
    text = Path(__file__).parents[2].joinpath("config.yaml").read_text(encoding="utf-8")
    assert parse(text) and parse(text + "#" * 80_000)
    assert parse("data: {set_weights: {" + ", ".join(f"{i}: 1" for i in range(2000)) + "}}")


def test_values_that_python_does_not_write_are_shown_nevertheless():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert show(10**5000) == "a number of thousands of digits" and show(nested) == "a value nested too deeply"
    while nested:  # else freeing it recurses
        nested = nested.pop()


# ---- by chance -----------------------------------------------------------------------------------------------------

KEYS = [f"{section}.{key}" for section, keys in vars(Config()).items() for key in vars(keys)]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.dates(), st.binary(max_size=9),
    st.sampled_from(["0x_", "1:60", ".inf", "~", "<<", "=", "'", '"', "\t", "- ", "? ", ": ", "&a", "*a", "!!int"]),
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(
    st.text(max_size=9), inner, max_size=4)), max_leaves=12)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from([*KEYS, *"{}[]:,&*!|>%@`'\"\n #?-", ": ", "\n  ", "1e9"]), max_size=60).map("".join),
    st.builds(lambda key, value: f"{key.replace('.', ': {')}: {value}}}", st.sampled_from(KEYS), VALUES),
)  # fmt: skip


def try_text(text: str) -> None:
    for read in (lambda: load_config(None, [f"train.lr={text}"]), lambda: parse(text)):
        try:
            read()
        except UserError as error:
            assert len(str(error)) <= 300 and "\n" not in str(error)


def try_value(key: str, value: object) -> None:
    section, name = key.split(".")
    try:
        config = from_dict({section: {name: value}})
    except UserError as error:
        assert len(str(error)) <= 300 and "\n" not in str(error) and key in str(error)
    else:
        assert isinstance(config, Config)


BOUNDED = settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
LONG = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


@BOUNDED
@given(TEXTS)
@example("train: {lr: !!bool maybe}")
def test_any_text_is_read_or_refused(text):
    try_text(text)


@BOUNDED
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_checkpoint_is_taken_or_refused_by_name(key, value):
    try_value(key, value)


@pytest.mark.fuzz
@LONG
@given(TEXTS)
def test_1500_texts_are_read_or_refused(text):
    try_text(text)


@pytest.mark.fuzz
@LONG
@given(st.sampled_from(KEYS), VALUES)
def test_1500_values_are_taken_or_refused_by_name(key, value):
    try_value(key, value)
