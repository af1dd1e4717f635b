"""The configuration: defaults, files, overrides, and one clear sentence for everything that is wrong."""

from __future__ import annotations

import difflib
import json
import math
import random
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from diffvocsep import config as config_module
from diffvocsep.config import (
    Config,
    DiffusionConfig,
    from_dict,
    ignored_keys,
    ignored_settings,
    load_config,
    save_config,
    to_dict,
)
from diffvocsep.util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {f.name: [k.name for k in fields(getattr(Config(), f.name))] for f in fields(Config)}
KEYS = [f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys]
DEFAULT = {
    f"{section}.{key}": getattr(getattr(Config(), section), key) for section in SECTIONS for key in SECTIONS[section]
}


def hint(name: str) -> Any:
    section, key = name.split(".")
    return get_type_hints(get_type_hints(Config)[section])[key]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert text and "\n" not in text and not re.search(r"(?<!\.)\. ", text), "one sentence"
    return text


# ---- config.yaml and the presets -----------------------------------------------------------------------------------


def lines_of_keys() -> list[tuple[str, str, str]]:
    """(section.key, value, comment) of config.yaml, read by eye: without a YAML parser."""
    found, section = [], ""
    for line in (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+):", line):
            section = match[1]
        elif match := re.fullmatch(r"  (\w+): (.*?) *# (.+)", line):
            found.append((f"{section}.{match[1]}", match[2], match[3]))
        else:
            assert not line or line.startswith("#"), f"a line that is no section, key with comment, or comment: {line}"
    return found


def test_config_yaml_lists_every_key_once_in_order_with_its_default() -> None:
    assert [name for name, _, _ in lines_of_keys()] == KEYS
    values = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    plain = {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
    assert plain == {name: list(v) if isinstance(v, tuple) else v for name, v in DEFAULT.items()}
    assert load_config(ROOT / "config.yaml") == Config()


def test_config_yaml_is_aligned_and_names_every_choice() -> None:
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    columns = {line.index("#") for line in text.splitlines() if re.match(r"  \w", line)}
    assert len(columns) == 1 and max(map(len, text.splitlines())) <= 120
    for name, _, comment in lines_of_keys():
        for choice in get_args(hint(name)):
            if isinstance(choice, str) and choice != "diffusers_unet":  # of the benchmarks, if one was imported
                assert re.search(rf"\b{choice}\b", comment), f"the comment of {name} does not name {choice}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_hold_only_what_differs_and_what_is_used(path: Path) -> None:
    config = load_config(path)
    for section, keys in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for key in keys:
            assert getattr(getattr(config, section), key) != DEFAULT[f"{section}.{key}"], (
                f"{section}.{key} is the default"
            )
    assert ignored_settings(config) == []


def test_log1p_preset_is_the_literal_recipe() -> None:
    config = load_config(ROOT / "configs" / "log1p.yaml")
    assert (config.audio.representation, config.audio.statistics, config.audio.log1p_scale) == (
        "magnitude",
        "item",
        0.1,
    )
    assert (config.diffusion.prediction_type, config.diffusion.sampler, config.diffusion.ddim_steps) == (
        "x_0",
        "ddim",
        20,
    )
    assert config.separation.subtract == "normalized"


def test_names_of_the_contract(tmp_path: Path) -> None:
    """The names and values that the project's contract fixes; no other test may rename them."""
    text = """
data: {dataset: musdb, musdb_root: a, musdbhq_root: b, segment_seconds: 4}
audio: {sample_rate: 22050, n_fft: 2048, hop_length: 512, win_length: 2048}
train: {batch_size: 2, epochs: 3, lr: 1e-4, weight_decay: 0, amp: true, grad_clip: 0, loss_voc_weight: 0.5,
        val_every_steps: 10, val_batches: 2}
diffusion: {timesteps: 50, beta_start: 1e-4, beta_end: 2e-2, beta_schedule: linear, sampler: ddim, use_ddim: true,
            ddim_steps: 50, eta: 0.5}
model: {base_channels: 48, channels_mult: [1, 2, 4, 8]}
log: {tb_log_dir: logs/x}
"""
    config = load_config(write(tmp_path / "c.yaml", text))
    assert (config.data.dataset, config.data.segment_seconds) == ("musdb", 4.0)
    assert (config.train.lr, config.train.amp, config.diffusion.beta_end) == (1e-4, "auto", 0.02)
    assert config.model.channels_mult == (1, 2, 4, 8)
    assert Config().train.val_every_steps == 1000 and Config().log.tb_log_dir == "logs/tb"


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "audio:\ntrain: {}\n"])
def test_nothing_set_means_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path / "c.yaml", text)) == load_config() == Config() == from_dict({})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_are_utf8_with_or_without_bom(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "설정.yaml"
    path.write_bytes("data: {root: 음악/노래 #1}\ntrain: {lr: 2e-4}\r\n".encode(encoding).replace(b" #1", b""))
    config = load_config(path)
    assert (config.data.root, config.train.lr) == ("음악/노래", 2e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audio:\n  n_fft: 4096\n   hop_length: 3\n", ["line 3"]),
        ("audio:\n\tn_fft: 4096\n", ["line 2"]),
        ("audio: [1, 2\n", ["line 2"]),
        ("audio: {}\n---\naudio: {}\n", ["line 2"]),
        ("data:\n  root: 2024-99-99\n", ["not valid YAML"]),
        ("data:\n  root: \x07\n", ["not valid YAML"]),
        ("data:\n  root: !!python/object:os.system x\n", ["line 2"]),
        ("- audio\n", ["sections", "audio"]),
        ("audio\n", ["sections", "audio"]),
        ("false\n", ["sections", "false"]),
        ("audio: 3\n", ["audio is 3", "sample_rate"]),
        ("audio: [n_fft]\n", ["audio is [n_fft]"]),
        ("audoi: {n_fft: 4096}\n", ["audoi", "nearest valid section is audio"]),
        ("n_fft: 2048\n", ["n_fft is a key of the section audio"]),
        ("audio.n_fft: 2048\n", ["n_fft is a key of the section audio"]),
        ("1: 2\n", ["unknown section", "1"]),
        ("audio: {nfft: 2048}\n", ["audio.nfft", "nearest valid key is audio.n_fft"]),
        ("audio: {lr: 1}\n", ["audio.lr", "nearest valid key is train.lr"]),
        ("audio: {7: 2048}\n", ["audio.7", "nearest valid key is audio."]),
        ("train:\n  lr: 1\n  seed: 2\n  lr: 3\n", ["train.lr", "second time", "line 4"]),
        ("train: {lr: 1}\nlog: {}\ntrain: {seed: 3}\n", ["train", "second time", "line 3"]),
    ],
)
def test_broken_files(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path / "broken.yaml", text)
    text = message(load_config, path)
    assert text.startswith(f"{path}: ")
    assert all(part in text for part in expected), text


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "없음.yaml"
    assert str(missing) in message(load_config, missing) and "not exist" in message(load_config, missing)
    assert "cannot be read" in message(load_config, tmp_path)
    korean = tmp_path / "cp949.yaml"
    korean.write_bytes("data: {root: 노래}".encode("cp949"))
    assert "UTF-8" in message(load_config, korean)


# ---- types ---------------------------------------------------------------------------------------------------------

WRONG_TYPES = [
    ("audio.n_fft", "4096.0", "a whole number"),
    ("audio.n_fft", "'4096'", "a whole number"),
    ("audio.n_fft", "true", "a whole number"),
    ("audio.n_fft", "null", "a whole number"),
    ("audio.n_fft", "", "a whole number"),
    ("audio.n_fft", "[4096]", "a whole number"),
    ("train.max_steps", "1e5", "a whole number"),
    ("train.lr", "fast", "a finite number"),
    ("train.lr", "'1e-3'", "a finite number"),
    ("train.lr", ".nan", "a finite number"),
    ("train.lr", "-.inf", "a finite number"),
    ("train.lr", "1e999", "a finite number"),
    ("train.lr", "1" + "0" * 400, "a finite number"),
    ("train.lr", "true", "a finite number"),
    ("train.lr", "null", "a finite number"),
    ("train.compile", "1", "true or false"),
    ("train.compile", "'yes'", "true or false"),
    ("diffusion.use_ddim", "1", "true or false or null"),
    ("data.root", "2024", "text"),
    ("data.root", "null", "text"),
    ("data.root", "[a]", "text"),
    ("data.root", '"C:\\tracks"', "single quotes"),
    ("data.root", "C: music", "text"),
    ("model.patch", "4", "a list of 2 whole numbers"),
    ("model.patch", "[4]", "a list of 2 whole numbers"),
    ("model.patch", "[4, 2, 1]", "a list of 2 whole numbers"),
    ("model.patch", "[4, true]", "a list of 2 whole numbers"),
    ("model.channels_mult", "[1, 2, x]", "a list of whole numbers"),
    ("model.channels_mult", "'123'", "a list of whole numbers"),
    ("model.channels_mult", "{1: 2}", "a list of whole numbers"),
    ("data.set_weights", "[a, b]", "names with numbers, such as {name: 2}"),
    ("data.set_weights", "{a: b}", "names with numbers, such as {name: 2}"),
    ("data.held_out_voices", "tenor", "a list of texts"),
    ("data.held_out_voices", "[1]", "a list of texts"),
    ("data.dataset", "musdb18", "synthetic, stems, musdb or musdbhq: the nearest is musdb"),
    ("data.dataset", "MUSDBHQ", "the nearest is musdbhq"),
    ("data.dataset", "노래", "data.dataset is 노래 but must be synthetic, stems, musdb or musdbhq"),
    ("data.dataset", "[musdb]", "synthetic, stems, musdb or musdbhq"),
    ("diffusion.sampler", "DDIM", "ddpm, ddim or dpmpp: the nearest is ddim"),
    ("train.amp", "1", "auto, none, bf16 or fp16"),
    ("train.amp", "fp32", "the nearest is fp16"),
    ("separation.subtract", "waveform", "complex, mask, magnitude or normalized"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG_TYPES)
def test_wrong_types_in_file_and_override(tmp_path: Path, name: str, value: str, expected: str) -> None:
    section, key = name.split(".")
    path = write(tmp_path / "c.yaml", f"{section}:\n  {key}: {value}\n")
    if value != "C: music":  # in a file this is a syntax error
        text = message(load_config, path)
        assert f"{name} is " in text and expected in text, text
    text = message(load_config, None, [f"{name}={value}"])
    assert f"{name} is " in text and expected in text, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-3", 1e-3), ("+2.E4", 2e4), (".5e1", 5.0), ("1E-05", 1e-5), ("3", 3.0), ("0x10", 16.0), ("1.5", 1.5)],
)
def test_floats_as_people_write_them(tmp_path: Path, text: str, expected: float) -> None:
    for config in (
        load_config(write(tmp_path / "c.yaml", f"train: {{weight_decay: {text}}}")),
        load_config(None, [f"train.weight_decay={text}"]),
    ):
        assert config.train.weight_decay == expected and type(config.train.weight_decay) is float


def test_other_types_come_out_as_declared() -> None:
    config = load_config(
        None, ["model.patch=[2, 2]", "data.held_out_voices=[가, b]", r"data.root=C:\music\test", "log.every_steps=1_0"]
    )
    assert config.model.patch == (2, 2) and config.data.held_out_voices == ("가", "b")
    assert config.data.root == r"C:\music\test" and config.log.every_steps == 10


@pytest.mark.parametrize(
    ("text", "amp"), [("true", "auto"), ("on", "auto"), ("false", "none"), ("none", "none"), ("bf16", "bf16")]
)
def test_amp_aliases(text: str, amp: str) -> None:
    assert load_config(None, [f"train.amp={text}"]).train.amp == amp


# ---- values --------------------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ("audio.sample_rate", "7999", "between 8000 and 192000"),
    ("audio.sample_rate", "192001", "between 8000 and 192000"),
    ("audio.channels", "0", "1 or 2"),
    ("audio.channels", "3", "1 or 2"),
    ("audio.n_fft", "-4096", "between 16 and 65536"),
    ("audio.n_fft", "65537", "between 16 and 65536"),
    ("audio.hop_length", "0", "at least 1"),
    ("audio.hop_length", "2049", "at most half of audio.win_length (4096)"),
    ("audio.win_length", "4097", "at most audio.n_fft (4096)"),
    ("audio.compression", "0", "more than 0 and at most 1"),
    ("audio.compression", "1.01", "more than 0 and at most 1"),
    ("audio.log1p_scale", "0", "more than 0"),
    ("audio.bandwidth", "1000", "0 (everything) or more than 1000"),
    ("audio.bandwidth", "-1", "0 (everything)"),
    ("data.root", "' '", "the path of a folder"),
    ("log.tb_log_dir", "''", "the path of a folder"),
    ("data.synthetic_songs", "0", "at least 1"),
    ("data.synthetic_seconds", "0.5", "at least 1"),
    ("data.segment_seconds", "0.09", "long enough for one audio.n_fft (4096 samples at 44100 Hz)"),
    ("data.segment_seconds", "-3", "long enough"),
    ("data.download_id", "https://drive.google.com/file/d/x", "only letters, digits, - and _"),
    ("data.workers", "-1", "at least 0"),
    ("data.set_weights", "{a: 0}", "names with numbers above 0"),
    ("data.set_weights", "{a: 1.0e-300}", "at least 0.001"),
    ("data.remix_probability", "1.1", "between 0 and 1"),
    ("data.gain_db", "-6", "at least 0"),
    ("data.channel_swap", "-0.1", "between 0 and 1"),
    ("data.polarity_flip", "2", "between 0 and 1"),
    ("data.silent_vocals", "50", "between 0 and 1"),
    ("data.silent_accompaniment", "50", "between 0 and 1"),
    ("data.level_db", "-1", "at least 0"),
    ("data.speed_semitones", "13", "between 0 and 12"),
    ("data.equalizer_db", "-1", "at least 0"),
    ("data.reverb", "1.5", "between 0 and 1"),
    ("data.turn", "-0.1", "between 0 and 1"),
    ("data.pitch_semitones", "12.5", "between 0 and 12"),
    *[
        (f"data.{name}", value, "between 0 and 1")
        for name in ("second_voice", "doubling", "harmony", "compressor", "saturation", "echo", "limiter")
        for value in ("-0.1", "1.1")
    ],
    ("model.base_channels", "0", "at least 1"),
    ("model.channels_mult", "[1, 2]", "at least three numbers"),
    ("model.channels_mult", "[1, 0, 2]", "each at least 1"),
    ("model.blocks", "0", "at least 1"),
    ("model.patch", "[0, 2]", "between 1 and 16"),
    ("model.patch", "[4, 17]", "between 1 and 16"),
    ("model.frequency_linear", "-8", "at least 0"),
    ("model.attention", "[4]", "0 to 3"),
    ("model.attention", "[-1]", "0 to 3"),
    ("model.attention_heads", "0", "at least 1"),
    ("diffusion.timesteps", "1", "at least 2"),
    ("diffusion.beta_start", "0", "more than 0"),
    ("diffusion.beta_start", "0.02", "less than diffusion.beta_end (0.02)"),
    ("diffusion.beta_end", "1", "less than 1"),
    ("diffusion.terminal_share", "1.5", "between 0 and 1"),
    ("diffusion.ddim_steps", "0", "at least 1"),
    ("diffusion.ddim_steps", "1001", "at most diffusion.timesteps (1000)"),
    ("diffusion.eta", "1.5", "between 0 and 1"),
    ("diffusion.temperature", "-0.1", "between 0 and 1"),
    ("model.refine_rank", "-1", "between 0 and 4096"),
    ("train.parts", "refine", "unless model.refine_rank and train.refine_share are above 0"),
    ("diffusion.samples", "0", "at least 1"),
    ("separation.chunk_seconds", "0", "more than 0"),
    ("separation.margin_seconds", "-1", "at least 0"),
    ("separation.batch_chunks", "0", "at least 1"),
    ("train.seed", "-1", "between 0 and 4294967295"),
    ("train.batch_size", "0", "at least 1"),
    ("train.accumulate", "0", "at least 1"),
    ("train.epochs", "0", "at least 1"),
    ("train.steps_per_epoch", "0", "at least 1"),
    ("train.max_steps", "-1", "at least 0"),
    ("train.max_minutes", "-1", "at least 0"),
    ("train.lr", "0", "more than 0"),
    ("train.weight_decay", "-0.1", "at least 0"),
    ("train.warmup_steps", "-1", "at least 0"),
    ("train.grad_clip", "-1", "at least 0"),
    ("train.ema_decay", "1", "less than 1"),
    ("train.ema_decay", "-0.5", "at least 0"),
    ("train.loss_voc_weight", "-1", "at least 0"),
    ("train.loss_log_weight", "-1", "at least 0"),
    ("train.refine_share", "1.1", "between 0 and 1"),
    ("train.consistency_share", "1.1", "between 0 and 1"),
    ("train.val_every_steps", "0", "at least 1"),
    ("train.val_batches", "0", "at least 1"),
    ("train.val_seconds", "0", "more than 0"),
    ("log.every_steps", "0", "at least 1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), IMPOSSIBLE)
def test_impossible_values(name: str, value: str, expected: str) -> None:
    text = message(load_config, None, [f"{name}={value}"])
    assert text.startswith(f"{name} is ") and expected in text, text
    shown = text.removeprefix(f"{name} is ").partition(" but must be ")[0]
    assert yaml.safe_load(shown) == yaml.safe_load(value), "the message shows the value"


NUMBERS = [name for name in KEYS if hint(name) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_an_upper_bound_and_a_lower_one(name: str) -> None:
    """One that no computer could do, or wait for, is a sentence and not a traceback minutes later."""
    for value in (10**13, -(10**13)):
        text = message(load_config, None, [f"{name}={value}"])
        assert text.startswith(f"{name} is ") and len(text) < 300, text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("model.channels_mult", "[1, 1000000000, 1]", "at most 64"),
        ("model.channels_mult", "[1, 1, 1, 1, 1, 1, 1, 1, 1]", "at most 8 scales"),
        ("model.channels_mult", "1e9", "a list of whole numbers"),
        ("model.attention", "[1000000000]", "0 to 3"),
        ("data.set_weights", "{a: 1e9}", "at most 1000"),
    ],
)
def test_lists_of_numbers_have_bounds_too(name: str, value: str, expected: str) -> None:
    assert expected in message(load_config, None, [f"{name}={value}"])


def test_no_network_is_wider_than_a_computer_can_hold() -> None:
    text = message(load_config, None, ["model.base_channels=4096", "model.channels_mult=[1, 2, 4]"])
    assert text.startswith(
        "model.channels_mult is [1, 2, 4] but must be such that no scale has more than 4096 channels"
    )


def test_every_number_and_path_has_a_tested_limit() -> None:
    """Whoever adds a number or a path says what it may be, and tests it."""
    limited = {name for name, one in config_module.KEYS.items() if one.metadata["limit"]} | {"model.attention"}
    numbers = {n for n in KEYS if hint(n) in (int, float, str, dict[str, float]) or n.startswith("model.")}
    numbers.remove("model.network")
    assert numbers == limited
    tested = {name for name, _, _ in IMPOSSIBLE} | set(NUMBERS)
    assert limited - tested <= {name for name in KEYS if hint(name) is str}


@pytest.mark.parametrize(
    "overrides",
    [
        ["audio.hop_length=2048"],
        ["audio.bandwidth=0"],
        ["audio.bandwidth=22050"],
        ["audio.compression=1"],
        ["data.segment_seconds=0.1"],
        ["model.patch=[16, 1]", "model.frequency_linear=0"],
        ["model.attention=[0, 2]"],
        ["diffusion.ddim_steps=1000"],
        ["diffusion.timesteps=2"],
        ["diffusion.timesteps=10"],
        ["train.ema_decay=0", "train.grad_clip=0", "train.warmup_steps=0", "train.seed=4294967295"],
    ],
)
def test_the_edges_of_the_possible(overrides: list[str]) -> None:
    config = load_config(None, overrides)
    assert from_dict(to_dict(config)) == config != Config()


@pytest.mark.parametrize(
    ("overrides", "name", "expected"),
    [
        (["diffusion.timesteps=20", "diffusion.ddim_steps=21"], "diffusion.ddim_steps", "diffusion.timesteps (20)"),
        (["model.attention=[1]", "model.attention_heads=5"], "model.attention_heads", "[64]"),
        (["model.attention=[4]", "model.attention_heads=5"], "model.attention", "4 scales"),
        (["audio.n_fft=2048"], "audio.win_length", "audio.n_fft (2048)"),
    ],
)
def test_impossible_combinations(overrides: list[str], name: str, expected: str) -> None:
    text = message(load_config, None, overrides)
    assert text.startswith(f"{name} is ") and expected in text, text


def test_configurations_made_in_python_are_checked_too() -> None:
    config = Config()
    assert "diffusion.eta is 2.0" in message(replace, config, diffusion=replace(config.diffusion, eta=2.0))
    with pytest.raises(FrozenInstanceError):
        config.audio.n_fft = 8  # type: ignore[misc]


# ---- use_ddim ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({}, "ddim"),
        ({"use_ddim": None, "sampler": "dpmpp"}, "dpmpp"),
        ({"use_ddim": True}, "ddim"),
        ({"use_ddim": True, "sampler": "ddim"}, "ddim"),
        ({"use_ddim": False}, "ddpm"),
        ({"use_ddim": False, "sampler": "ddpm"}, "ddpm"),
        ({"use_ddim": False, "sampler": "dpmpp"}, "dpmpp"),
    ],
)
def test_use_ddim_is_an_alias(settings: dict[str, Any], sampler: str) -> None:
    for diffusion in (from_dict({"diffusion": settings}).diffusion, DiffusionConfig(**settings)):
        assert (diffusion.sampler, diffusion.use_ddim) == (sampler, None)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_use_ddim_against_another_sampler_names_both(sampler: str) -> None:
    text = message(load_config, None, [f"diffusion.sampler={sampler}", "diffusion.use_ddim=true"])
    assert "diffusion.use_ddim" in text and f"diffusion.sampler is {sampler}" in text


# ---- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "train: {lr: 1, seed: 5}\ndiffusion: {use_ddim: false}\n")
    config = load_config(path, ["train.lr=2", "train.lr = 3", "diffusion.use_ddim=true", "data.root=a=b"])
    assert (config.train.lr, config.train.seed, config.diffusion.sampler, config.data.root) == (3.0, 5, "ddim", "a=b")


def test_an_override_can_complete_what_the_file_leaves_impossible(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "audio: {n_fft: 2048, hop_length: 512}\n")
    assert "audio.win_length" in message(load_config, path)
    assert load_config(path, ["audio.win_length=2048"]).audio.win_length == 2048


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.lr", ["train.lr", "section.key=value"]),
        ("config.yaml", ["config.yaml", "did you mean --config before it?"]),
        ("train.lr 3", ["train.lr 3", "section.key=value"]),
        ("--train.lr:3", ["section.key=value"]),
        ("lr=3", ["lr=3", "section.key=value"]),
        ("=3", ["section.key=value"]),
        ("", ["section.key=value"]),
        ("trian.lr=3", ["trian.lr=3", "nearest valid section is train"]),
        ("trian.foo=3", ["trian", "nearest valid section is train"]),
        ("train.lrr=3", ["train.lrr", "nearest valid key is train.lr"]),
        ("train.learning_rate=3", ["train.learning_rate", "nearest valid key is train.lr"]),
        ("train.=3", ["train.", "nearest valid key is train."]),
        ("train.lr.x=3", ["train.lr.x", "nearest valid key is train.lr"]),
        ("model.patch=[1, 2", ["model.patch=[1, 2", "not valid YAML"]),
        ("data.root=@x", ["data.root=@x", "not valid YAML"]),
    ],
)
def test_broken_overrides(override: str, expected: list[str]) -> None:
    text = message(load_config, None, [override])
    assert all(part in text for part in expected), text


# ---- properties ----------------------------------------------------------------------------------------------------


def misspelled(name: str, rng: random.Random) -> str:
    """`name` with one letter dropped, doubled, replaced or exchanged with the next."""
    i = rng.randrange(len(name) - 1)
    return rng.choice(
        [
            name[:i] + name[i + 1 :],
            name[:i] + name[i] + name[i:],
            name[:i] + "q" + name[i + 1 :],
            name[:i] + name[i + 1] + name[i] + name[i + 2 :],
            name.upper(),
        ]
    )


@pytest.mark.parametrize("name", KEYS)
def test_an_unknown_key_suggests_the_nearest(name: str) -> None:
    section, key = name.split(".")
    rng = random.Random(name)
    everywhere = {key for keys in SECTIONS.values() for key in keys}
    random_words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz_가", k=rng.randint(1, 15))) for _ in range(5)]
    for wrong in [misspelled(key, rng) for _ in range(15)] + random_words:
        if wrong in everywhere:
            continue
        text = message(from_dict, {section: {wrong: 1}})
        suggested = re.search(rf"nearest valid key is {section}\.(\w+)$", text)
        assert suggested and suggested[1] in SECTIONS[section], text

        def likeness(valid: str, wrong: str = wrong) -> float:
            return difflib.SequenceMatcher(None, valid, wrong.lower()).ratio()

        assert likeness(suggested[1]) == max(map(likeness, SECTIONS[section]))
        if wrong.lower() == key:
            assert suggested[1] == key


STRANGE: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        7,
        10**400,
        2**63,
        0.5,
        -0.0,
        1e308,
        5e-324,
        math.nan,
        math.inf,
        "",
        " ",
        "x",
        "1e-3",
    ),
    *(
        "none",
        "a\nb",
        "\ud55c",
        "x" * 5000,
        [],
        [[]],
        [1, 2, 3],
        [None],
        ["a"],
        (1, 2),
        {},
        {"a": 1},
        b"x",
        object(),
        1j,
    ),
]


@pytest.mark.parametrize("name", KEYS)
def test_any_value_is_taken_or_refused_by_name(name: str) -> None:
    """No value gets past the checks into a wrong type, and none ends in anything but a UserError."""
    section, key = name.split(".")
    for value in STRANGE:
        try:
            config = from_dict({section: {key: value}})
        except UserError as error:
            assert name in str(error) and "but" in str(error)
            assert len(str(error)) < 300 and "\n" not in str(error)
        else:
            result = getattr(getattr(config, section), key)
            kind = bool if DEFAULT[name] is None else type(DEFAULT[name])  # null: the program decides
            assert result is None or type(result) is kind
            assert from_dict(to_dict(config)) == config


def test_every_setting_survives_dict_json_and_file(tmp_path: Path) -> None:
    values = {
        "audio": {"representation": "magnitude", "n_fft": 2048, "hop_length": 512, "win_length": 1024, "bandwidth": 0},
        "data": {"root": "노래: #1 'x'", "held_out_voices": ["a", "null", "1"], "gain_db": 1e-5},
        "model": {"patch": [1, 1], "attention": [0, 2], "channels_mult": [1, 1, 2, 4]},
        "diffusion": {"use_ddim": False, "beta_start": 1.25e-7, "ddim_steps": 3},
        "train": {"lr": 3e-4, "amp": False, "compile": True},
        "log": {"tb_log_dir": "2024"},
    }
    config = from_dict(values)
    plain = to_dict(config)
    assert json.loads(json.dumps(plain)) == plain and {f"{s}.{k}" for s, keys in plain.items() for k in keys} == set(
        KEYS
    )
    assert from_dict(plain) == config != Config()
    path = tmp_path / "저장.yaml"
    path.write_text("older", encoding="utf-8")
    save_config(config, path)
    assert load_config(path) == config
    assert "노래" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file stays"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.yaml", "train: {seed: 7}\n")

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        save_config(Config(), path)
    assert path.read_text(encoding="utf-8") == "train: {seed: 7}\n" and len(list(tmp_path.iterdir())) == 1


# ---- ignored keys --------------------------------------------------------------------------------------------------

IGNORED = [
    ("audio.log1p_scale=0.1", "audio.representation is complex", "audio.representation=magnitude"),
    ("audio.statistics=batch", "audio.representation is complex", "audio.representation=magnitude"),
    ("data.root=x", "data.dataset is synthetic", "data.dataset=stems"),
    ("data.dev_root=x", "data.dataset is synthetic", "data.dataset=stems"),
    ("data.set_weights={a: 2.0}", "data.dataset is synthetic", "data.dataset=stems"),
    ("data.musdb_root=x", "data.dataset is synthetic", "data.dataset=musdb"),
    ("data.musdbhq_root=x", "data.dataset is synthetic", "data.dataset=musdbhq"),
    ("data.download=false", "data.dataset is synthetic", "data.dataset=musdbhq"),
    ("data.download_source=zenodo", "data.dataset is synthetic", "data.dataset=musdbhq"),
    ("data.download_id=x", "data.dataset is synthetic", "data.dataset=musdbhq"),
    ("data.cache_dir=x", "data.dataset is synthetic", "data.dataset=stems"),
    ("model.attention_heads=2", "model.attention is []", "model.attention=[1]"),
    ("diffusion.beta_start=0.001", "diffusion.beta_schedule is cosine", "diffusion.beta_schedule=linear"),
    ("diffusion.beta_end=0.03", "diffusion.beta_schedule is cosine", "diffusion.beta_schedule=linear"),
    ("diffusion.sampler=dpmpp", "diffusion.ddim_steps is 1", "diffusion.ddim_steps=2"),
    ("diffusion.eta=0.5", "diffusion.ddim_steps is 1", "diffusion.ddim_steps=2"),
]
USED_BY_DEFAULT = [
    ("audio.compression=0.3", "audio.representation is magnitude", "audio.representation=magnitude"),
    ("data.synthetic_songs=3", "data.dataset is musdb", "data.dataset=musdb"),
    ("data.synthetic_seconds=3", "data.dataset is stems", "data.dataset=stems"),
    ("data.held_out_voices=[a]", "data.dataset is musdbhq", "data.dataset=musdbhq"),
    ("data.held_out_families=[a]", "data.dataset is stems", "data.dataset=stems"),
    ("data.workers=2", "data.cache is device", "data.cache=device"),
    ("data.channel_swap=0.1", "audio.channels is 1", "audio.channels=1"),
    ("data.turn=0.1", "audio.channels is 1", "audio.channels=1"),
    ("train.epochs=9", "train.max_steps is 100", "train.max_steps=100"),
    ("train.max_steps=9", "train.max_minutes is 5.0", "train.max_minutes=5"),
    ("train.loss_log_weight=0.5", "train.loss_voc_weight is 0.0", "train.loss_voc_weight=0"),
]


def line(setting: str, reason: str) -> str:
    name, value = setting.split("=")
    return f"{name} = {value} is ignored: {reason}"


@pytest.mark.parametrize(("setting", "reason", "choice"), IGNORED)
def test_settings_without_effect_by_default(setting: str, reason: str, choice: str) -> None:
    name = setting.split("=")[0]
    settings = ignored_settings(load_config(None, [setting]))
    assert [re.sub(r"(\d)\.0 is", r"\1 is", text) for text in settings] == [line(setting, reason)]
    assert ignored_keys(Config())[name] == reason
    used = load_config(None, [setting, choice])
    assert name not in ignored_keys(used) and not any(name in text for text in ignored_settings(used))


@pytest.mark.parametrize(("setting", "reason", "choice"), USED_BY_DEFAULT)
def test_settings_without_effect_under_a_choice(setting: str, reason: str, choice: str) -> None:
    name = setting.split("=")[0]
    assert name not in ignored_keys(Config()) and ignored_settings(load_config(None, [setting])) == []
    config = load_config(None, [setting, choice])
    assert ignored_keys(config)[name] == reason
    settings = ignored_settings(config)
    assert [re.sub(r"(\d)\.0 is", r"\1 is", text) for text in settings] == [line(setting, reason)]
    assert ignored_settings(load_config(None, [choice])) == [], "the default is nobody's setting"


def test_a_key_with_two_conditions_needs_both() -> None:
    config = load_config(None, ["data.dataset=stems", "data.cache=none", "data.cache_dir=x"])
    assert ignored_settings(config) == ["data.cache_dir = x is ignored: data.cache is none"]
    for choice, sampler in (("diffusion.sampler=dpmpp", "dpmpp"), ("diffusion.use_ddim=false", "ddpm")):
        config = load_config(None, ["diffusion.ddim_steps=2", choice, "diffusion.eta=0.5"])
        assert ignored_settings(config) == [f"diffusion.eta = 0.5 is ignored: diffusion.sampler is {sampler}"]


def test_every_rule_of_the_table_is_tested() -> None:
    tested = {setting.split("=")[0] for setting, _, _ in IGNORED + USED_BY_DEFAULT}
    assert {name for name, one in config_module.KEYS.items() if one.metadata["used"]} == tested


@pytest.mark.parametrize("path", ["songs #2", "C:\\노래 # 1\\x", "한국 #음악"])
def test_a_hash_in_a_path_is_no_comment(path: str) -> None:
    """The shell has its own comments; a cut path would name another folder."""
    assert load_config(None, [f"data.root={path}"]).data.root == path
    assert load_config(None, [f"data.root='{path}'"]).data.root == path
    assert "finite number" in message(load_config, None, ["train.lr=0.1 # high"])
