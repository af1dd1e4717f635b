"""Configuration: YAML <-> frozen dataclasses. Every key is explained in `config.yaml`.

A file or an override names only what differs from the defaults below:

    config = load_config("configs/log1p.yaml", ["train.lr=3e-4"])
    config.audio.n_fft

`strict_yaml` checks names and types, `LIMITS` and `_relations` check values: a `Config` that exists is a possible one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from .util import strict_yaml
from .util.atomic import write_atomic
from .util.errors import UserError
from .util.strict_yaml import blame, shorten, show


@dataclass(frozen=True)
class AudioConfig:
    sample_rate: int = 44100
    channels: int = 2
    n_fft: int = 4096
    hop_length: int = 1024
    win_length: int = 4096
    representation: Literal["complex", "magnitude"] = "complex"
    compression: float = 0.5
    log1p_scale: float = 1.0
    statistics: Literal["item", "batch"] = "item"
    bandwidth: float = 8270.0


@dataclass(frozen=True)
class DataConfig:
    dataset: Literal["synthetic", "stems", "musdb", "musdbhq"] = "synthetic"
    root: str = "data/stems"
    dev_root: str = "data/stems_dev"
    musdb_root: str = "data/musdb18"
    musdbhq_root: str = "data/musdb18hq"
    download: bool = True
    download_source: Literal["gdrive", "zenodo"] = "gdrive"
    download_id: str = ""
    synthetic_songs: int = 1200
    synthetic_seconds: float = 4.0
    held_out_voices: tuple[str, ...] = ()
    held_out_families: tuple[str, ...] = ()
    segment_seconds: float = 3.0
    cache: Literal["none", "memory", "device"] = "memory"
    cache_dir: str = "data/cache"
    workers: int = 0
    set_weights: dict[str, float] = field(default_factory=dict, hash=False)
    remix_probability: float = 0.5
    gain_db: float = 3.0
    channel_swap: float = 0.5
    polarity_flip: float = 0.5
    silent_vocals: float = 0.05
    level_db: float = 3.0
    speed_semitones: float = 0.0
    equalizer_db: float = 0.0
    reverb: float = 0.0
    turn: float = 0.0
    pitch_semitones: float = 0.0
    second_voice: float = 0.0
    doubling: float = 0.0
    harmony: float = 0.0
    compressor: float = 0.0
    saturation: float = 0.0
    echo: float = 0.0
    limiter: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    base_channels: int = 32
    channels_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 1
    patch: tuple[int, int] = (4, 2)
    frequency_linear: int = 4
    attention: tuple[int, ...] = ()
    attention_heads: int = 4


@dataclass(frozen=True)
class DiffusionConfig:
    timesteps: int = 1000
    beta_schedule: Literal["linear", "cosine"] = "cosine"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_terminal_snr: bool = True
    prediction_type: Literal["epsilon", "v", "x_0", "residual"] = "residual"
    terminal_share: float = 0.75
    sampler: Literal["ddpm", "ddim", "dpmpp"] = "ddim"
    use_ddim: bool | None = None
    ddim_steps: int = 1
    eta: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        """Turn the alias `use_ddim` into `sampler`, the only one of the two that is read elsewhere."""
        if self.use_ddim and self.sampler != "ddim":
            raise UserError(
                f"diffusion.use_ddim is true but diffusion.sampler is {self.sampler}: keep one of the two settings"
            )
        if self.use_ddim is False and self.sampler == "ddim":
            object.__setattr__(self, "sampler", "ddpm")
        object.__setattr__(self, "use_ddim", None)


@dataclass(frozen=True)
class SeparationConfig:
    subtract: Literal["complex", "mask", "magnitude", "normalized"] = "complex"
    chunk_seconds: float = 8.0
    margin_seconds: float = 1.5
    batch_chunks: int = 1


@dataclass(frozen=True)
class TrainConfig:
    seed: int = 0
    batch_size: int = 4
    accumulate: int = 1
    epochs: int = 4
    steps_per_epoch: int = 90
    max_steps: int = 0
    max_minutes: float = 0.0
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 5e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    amp: Literal["auto", "none", "bf16", "fp16"] = "auto"
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    loss_voc_weight: float = 0.3
    refine_share: float = 0.0
    val_every_steps: int = 1000
    val_batches: int = 16
    val_seconds: float = 10.0
    channels_last: bool | None = None
    compile: bool = False


@dataclass(frozen=True)
class LogConfig:
    tb_log_dir: str = "logs/tb"
    checkpoint_dir: str = "checkpoints"
    every_steps: int = 10


@dataclass(frozen=True)
class Config:
    audio: AudioConfig = field(default_factory=AudioConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    separation: SeparationConfig = field(default_factory=SeparationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        """Raises UserError where a value is impossible, in `dataclasses.replace` too."""
        for key, possible, must_be in chain(_limits(self), _relations(self)):
            if not possible:
                raise UserError(f"{key} is {show(_value(self, key))} but must be {must_be}")


# What a value must be, the test of it, and the keys that it applies to.
LIMITS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "at least 0",
        lambda v: v >= 0,
        """data.workers data.gain_db data.level_db data.equalizer_db model.frequency_linear
        separation.margin_seconds train.max_steps train.max_minutes train.weight_decay train.warmup_steps
        train.grad_clip train.loss_voc_weight""",
    ),
    (
        "at least 1",
        lambda v: v >= 1,
        """audio.hop_length data.synthetic_songs data.synthetic_seconds model.base_channels model.blocks
        model.attention_heads diffusion.ddim_steps diffusion.samples separation.batch_chunks train.batch_size
        train.accumulate train.epochs train.steps_per_epoch train.val_every_steps train.val_batches log.every_steps""",
    ),
    (
        "more than 0",
        lambda v: v > 0,
        """audio.log1p_scale diffusion.beta_start separation.chunk_seconds
        train.lr train.val_seconds""",
    ),
    ("names with numbers above 0", lambda v: all(weight > 0 for weight in v.values()), "data.set_weights"),
    (
        "between 0 and 1",
        lambda v: 0 <= v <= 1,
        """data.remix_probability data.channel_swap data.polarity_flip data.silent_vocals data.reverb data.turn
        data.second_voice data.doubling data.harmony data.compressor data.saturation data.echo data.limiter
        diffusion.terminal_share diffusion.eta train.refine_share""",
    ),
    (
        "the path of a folder",
        lambda v: v.strip() != "",
        "data.root data.dev_root data.musdb_root data.musdbhq_root data.cache_dir log.tb_log_dir log.checkpoint_dir",
    ),
    (
        "empty or the id from the file's link, only letters, digits, - and _",
        lambda v: all(c.isalnum() or c in "-_" for c in v),
        "data.download_id",
    ),
    ("between 8000 and 192000", lambda v: 8000 <= v <= 192000, "audio.sample_rate"),
    ("between 0 and 12", lambda v: 0 <= v <= 12, "data.speed_semitones data.pitch_semitones"),
    ("1 or 2", lambda v: v in (1, 2), "audio.channels"),
    ("at least 2", lambda v: v >= 2, "diffusion.timesteps"),
    ("between 16 and 65536", lambda v: 16 <= v <= 65536, "audio.n_fft"),
    ("more than 0 and at most 1", lambda v: 0 < v <= 1, "audio.compression"),
    ("at least three numbers, each at least 1", lambda v: len(v) >= 3 and min(v) >= 1, "model.channels_mult"),
    ("two numbers between 1 and 16", lambda v: all(1 <= size <= 16 for size in v), "model.patch"),
    ("less than 1", lambda v: v < 1, "diffusion.beta_end"),
    ("between 0 and 4294967295", lambda v: 0 <= v < 2**32, "train.seed"),
    ("at least 0 and less than 1", lambda v: 0 <= v < 1, "train.ema_decay"),
)

# Keys that matter only under one choice: the key that decides, a test of its value, and the keys.
USED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("audio.representation", lambda v: v == "magnitude", "audio.log1p_scale audio.statistics"),
    ("audio.representation", lambda v: v == "complex", "audio.compression"),
    ("audio.channels", lambda v: v == 2, "data.channel_swap data.turn"),
    ("data.dataset", lambda v: v == "stems", "data.root data.dev_root data.set_weights"),
    ("data.dataset", lambda v: v == "musdb", "data.musdb_root"),
    ("data.dataset", lambda v: v == "musdbhq", "data.musdbhq_root data.download data.download_source data.download_id"),
    ("data.download", lambda v: v, "data.download_source data.download_id"),
    ("data.download_source", lambda v: v == "gdrive", "data.download_id"),
    ("data.dataset", lambda v: v == "synthetic", "data.synthetic_songs data.synthetic_seconds"),
    ("data.dataset", lambda v: v == "synthetic", "data.held_out_voices data.held_out_families"),
    ("data.dataset", lambda v: v != "synthetic", "data.cache_dir"),
    ("data.cache", lambda v: v != "none", "data.cache_dir"),
    ("data.cache", lambda v: v != "device", "data.workers"),
    ("model.attention", lambda v: len(v) > 0, "model.attention_heads"),
    ("diffusion.beta_schedule", lambda v: v == "linear", "diffusion.beta_start diffusion.beta_end"),
    ("diffusion.sampler", lambda v: v == "ddim", "diffusion.eta"),
    ("diffusion.ddim_steps", lambda v: v > 1, "diffusion.sampler diffusion.eta"),
    ("train.max_steps", lambda v: v == 0, "train.epochs"),
    ("train.max_minutes", lambda v: v == 0, "train.epochs train.max_steps"),
)

# What weights are bound to.
FIXED = """audio.* model.* diffusion.timesteps diffusion.beta_schedule diffusion.beta_start diffusion.beta_end
diffusion.zero_terminal_snr diffusion.prediction_type"""

# Booleans that stand for a choice (`use_ddim` is resolved in `DiffusionConfig`).
ALIASES = {"train.amp": {True: "auto", False: "none"}}


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _limits(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Yields (key, whether its value is possible, what it must be)."""
    for must_be, test, keys in LIMITS:
        for key in keys.split():
            yield key, test(_value(config, key)), must_be


def _relations(config: Config) -> Iterator[tuple[str, bool, str]]:
    """The same for keys that depend on other keys."""
    audio, model, diffusion = config.audio, config.model, config.diffusion

    yield "audio.win_length", audio.win_length <= audio.n_fft, f"at most audio.n_fft ({audio.n_fft})"
    overlap = f"at most half of audio.win_length ({audio.win_length}), so that the STFT can be inverted"
    yield "audio.hop_length", 2 * audio.hop_length <= audio.win_length, overlap
    yield "audio.bandwidth", audio.bandwidth == 0 or audio.bandwidth > 1000, "0 (everything) or more than 1000"

    window = f"long enough for one audio.n_fft ({audio.n_fft} samples at {audio.sample_rate} Hz)"
    yield "data.segment_seconds", config.data.segment_seconds * audio.sample_rate >= audio.n_fft, window

    scales = len(model.channels_mult)
    known = f"empty or indices of the {scales} scales in model.channels_mult: 0 to {scales - 1}"
    yield "model.attention", all(0 <= scale < scales for scale in model.attention), known
    widths = [model.base_channels * model.channels_mult[scale] for scale in model.attention]
    divisor = f"a divisor of the channels of every scale with attention: {show(widths)}"
    yield "model.attention_heads", not any(width % model.attention_heads for width in widths), divisor

    betas = f"less than diffusion.beta_end ({diffusion.beta_end})"
    yield "diffusion.beta_start", diffusion.beta_start < diffusion.beta_end, betas
    steps = f"at most diffusion.timesteps ({diffusion.timesteps})"
    yield "diffusion.ddim_steps", diffusion.ddim_steps <= diffusion.timesteps, steps


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), base: Config | None = None) -> Config:
    """`base` (or the defaults), changed by the YAML file `path`, changed by `overrides` ("section.key=value", value in
    YAML).

    Raises UserError, one sentence, for anything that is not a possible setting.
    """
    sections: strict_yaml.Sections = _typed(to_dict(base)) if base else {}
    if path is not None:
        with blame(path):
            for section, keys in _typed(strict_yaml.read(Path(path))).items():
                sections.setdefault(section, {}).update(keys)
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise UserError(f'override "{shorten(override)}" must be section.key=value, such as train.lr=0.001')
        with blame(f'override "{shorten(override)}"'):
            typed = _typed({section: {key: _override_value(value.strip())}})
        sections.setdefault(section, {}).update(typed[section])
    return _build(sections)


def _override_value(text: str) -> object:
    """The value of an override: YAML, but ` #` in plain text is part of a name, for nobody comments on a command."""
    return text if " #" in text and text[0] not in "'\"[{#" else strict_yaml.parse(text)


def _typed(mapping: object) -> strict_yaml.Sections:
    return strict_yaml.typed(Config, mapping, ALIASES)


def _build(sections: strict_yaml.Sections) -> Config:
    classes = get_type_hints(Config)
    return Config(**{section: classes[section](**values) for section, values in sections.items()})


def from_dict(mapping: Mapping[str, Any]) -> Config:
    """The configuration of `{section: {key: value}}`, checked like a file; what it leaves out has its default."""
    return _build(_typed(mapping))


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """All sections and keys as plain YAML types: tuples become lists."""
    return {
        section: {key: list(value) if isinstance(value, tuple) else value for key, value in vars(keys).items()}
        for section, keys in vars(config).items()
    }


def save_config(config: Config, path: str | Path) -> None:
    """Write every key as YAML; `load_config(path)` gives `config` back. Raises OSError."""
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_atomic(Path(path), lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, each with its two values, but for those that have no effect in
    either."""
    keys = [f"{section}.{key}" for section, keys in to_dict(before).items() for key in keys]
    ignored = ignored_keys(before).keys() & ignored_keys(after).keys()
    changed = [key for key in keys if _value(before, key) != _value(after, key) and key not in ignored]
    return {key: (_value(before, key), _value(after, key)) for key in changed}


def key_of(override: str) -> str:
    """`section.key` of "section.key=value"."""
    return override.partition("=")[0].strip()


def is_fixed(key: str) -> bool:
    """Whether trained weights are bound to the value of `key`."""
    return key in FIXED.split() or f"{key.split('.')[0]}.*" in FIXED.split()


def require_same_network(trained: Config, wanted: Config, name: str) -> None:
    """Refuse to use weights under settings that they were not trained with.

    Raises UserError that names the `FIXED` keys in which the two differ.
    """
    fixed = {key: values for key, values in differences(trained, wanted).items() if is_fixed(key)}
    if fixed:
        before = ", ".join(f"{key} = {show(value)}" for key, (value, _) in fixed.items())
        after = ", ".join(show(value) for _, value in fixed.values())
        raise UserError(
            f"{name} was trained with {before} and cannot be used with {after}; "
            "change it back or train anew (--resume none, or another log.checkpoint_dir)"
        )


def ignored_keys(config: Config) -> dict[str, str]:
    """The keys that have no effect in `config`, each with the reason."""
    ignored = {}
    for decider, used, keys in USED:
        value = _value(config, decider)
        if not used(value):
            ignored.update(dict.fromkeys(keys.split(), f"{decider} is {show(value)}"))
    return ignored


def ignored_settings(config: Config, asked: Collection[str] | None = None) -> list[str]:
    """One line for each ignored key (of those in `asked`, if given) that was set to something else than its default,
    for scripts to warn about."""
    defaults = Config()
    return [
        f"{key} = {show(_value(config, key))} is ignored: {reason}"
        for key, reason in ignored_keys(config).items()
        if _value(config, key) != _value(defaults, key) and (asked is None or key in asked)
    ]
