"""Configuration: YAML <-> frozen dataclasses. Every key is explained in `config.yaml`.

A file or an override names only what differs from the defaults below:

    config = load_config("configs/log1p.yaml", ["train.lr=3e-4"])
    config.audio.n_fft

What a key may be, when it matters, and whether trained weights are bound to it stands at the key; `_relations` holds
what depends on several. A `Config` that exists is a possible one. A new key wants a case in tests/test_every_key.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from .registry import DATASETS, NETWORKS, REPRESENTATIONS, SAMPLERS
from .util import strict_yaml
from .util.atomic import write_atomic
from .util.errors import UserError
from .util.keys import Condition, Limit, at_least, between, field_metadata, key, more_than, unless, when
from .util.strict_yaml import prefix_errors, shorten, show

SHARE = between(0, 1)
FOLDER = Limit("the path of a folder", lambda v: v.strip() != "")
DOWNLOAD_ID = Limit(
    "empty or the id from the file's link, only letters, digits, - and _",
    lambda v: all(c.isalnum() or c in "-_" for c in v),
)
WEIGHTS = Limit(
    "names with numbers above 0, at least 0.001 and at most 1000",
    lambda v: all(0.001 <= weight <= 1000 for weight in v.values()),
)
PATCH = Limit("two numbers between 1 and 16", lambda v: all(1 <= size <= 16 for size in v))
BANDWIDTH = Limit(
    "0 (everything) or more than 1000 and at most 96000 (half of the highest audio.sample_rate)",
    lambda v: v == 0 or 1000 < v <= 96_000,
)
SCALES = Limit(
    "at least three numbers, each at least 1 and at most 64, for at most 8 scales",
    lambda v: 3 <= len(v) <= 8 and min(v) >= 1 and max(v) <= 64,
)
MAX_CHANNELS = 4096  # of a scale; one convolution has 151 million weights then
MAX_STEPS = 1_000_000_000  # more than anybody trains

MAGNITUDE, COMPLEX = when("audio.representation", "magnitude"), when("audio.representation", "complex")
STEMS, MUSDB, MUSDBHQ = (when("data.dataset", name) for name in ("stems", "musdb", "musdbhq"))
OWN_ROOT = unless("data.dataset", "synthetic", "musdb", "musdbhq")  # stems, and a dataset that somebody adds
SYNTHETIC, REAL = when("data.dataset", "synthetic"), unless("data.dataset", "synthetic")
LINEAR = when("diffusion.beta_schedule", "linear")
SEVERAL_STEPS = unless("diffusion.ddim_steps", 1)
READS_ETA = Condition("diffusion.sampler", lambda name: SAMPLERS[name].reads_eta)


@dataclass(frozen=True)
class AudioConfig:
    sample_rate: int = key(44100, between(8000, 192000), fixed=True)
    channels: int = key(2, Limit("1 or 2", lambda v: v in (1, 2)), fixed=True)
    n_fft: int = key(4096, between(16, 65536), fixed=True)
    hop_length: int = key(1024, at_least(1, 32768), fixed=True)
    win_length: int = key(4096, at_least(2, 65536), fixed=True)
    representation: Literal[tuple(REPRESENTATIONS)] = key("complex", fixed=True)
    compression: float = key(0.5, more_than(0, 1), COMPLEX, fixed=True)
    log1p_scale: float = key(1.0, more_than(0, 1_000_000), MAGNITUDE, fixed=True)
    statistics: Literal["item", "batch"] = key("item", None, MAGNITUDE, fixed=True)
    bandwidth: float = key(8270.0, BANDWIDTH, fixed=True)


@dataclass(frozen=True)
class DataConfig:
    dataset: Literal[tuple(DATASETS)] = key("synthetic")
    root: str = key("data/stems", FOLDER, OWN_ROOT)
    dev_root: str = key("data/stems_dev", FOLDER, OWN_ROOT)
    musdb_root: str = key("data/musdb18", FOLDER, MUSDB)
    musdbhq_root: str = key("data/musdb18hq", FOLDER, MUSDBHQ)
    download: bool = key(True, None, MUSDBHQ)
    download_source: Literal["gdrive", "zenodo"] = key("gdrive", None, MUSDBHQ, when("data.download", True))
    download_id: str = key(
        "", DOWNLOAD_ID, MUSDBHQ, when("data.download", True), when("data.download_source", "gdrive")
    )
    synthetic_songs: int = key(1200, at_least(1, 1_000_000), SYNTHETIC)
    synthetic_seconds: float = key(4.0, at_least(1, 3600), SYNTHETIC)
    held_out_voices: tuple[str, ...] = key((), None, SYNTHETIC)
    held_out_families: tuple[str, ...] = key((), None, SYNTHETIC)
    segment_seconds: float = key(3.0, Limit("at most 600", lambda v: v <= 600))
    cache: Literal["none", "memory", "device"] = key("memory")
    cache_dir: str = key("data/cache", FOLDER, REAL, unless("data.cache", "none"))
    workers: int = key(0, at_least(0, 256), unless("data.cache", "device"))
    set_weights: dict[str, float] = field(default_factory=dict, hash=False, metadata=field_metadata(WEIGHTS, STEMS))
    remix_probability: float = key(0.5, SHARE)
    gain_db: float = key(3.0, at_least(0, 60))
    channel_swap: float = key(0.5, SHARE, when("audio.channels", 2))
    polarity_flip: float = key(0.5, SHARE)
    silent_vocals: float = key(0.05, SHARE)
    silent_accompaniment: float = key(0.0, SHARE)
    level_db: float = key(3.0, at_least(0, 60))
    speed_semitones: float = key(0.0, between(0, 12))
    equalizer_db: float = key(0.0, at_least(0, 60))
    reverb: float = key(0.0, SHARE)
    turn: float = key(0.0, SHARE, when("audio.channels", 2))
    pitch_semitones: float = key(0.0, between(0, 12))
    second_voice: float = key(0.0, SHARE)
    doubling: float = key(0.0, SHARE)
    harmony: float = key(0.0, SHARE)
    compressor: float = key(0.0, SHARE)
    saturation: float = key(0.0, SHARE)
    echo: float = key(0.0, SHARE)
    limiter: float = key(0.0, SHARE)


@dataclass(frozen=True)
class ModelConfig:
    network: Literal[tuple(NETWORKS)] = key("unet", fixed=True)
    base_channels: int = key(32, at_least(1, MAX_CHANNELS), fixed=True)
    channels_mult: tuple[int, ...] = key((1, 2, 4, 4), SCALES, fixed=True)
    blocks: int = key(1, at_least(1, 64), fixed=True)
    patch: tuple[int, int] = key((4, 2), PATCH, fixed=True)
    frequency_linear: int = key(4, at_least(0, 65536), fixed=True)
    attention: tuple[int, ...] = key((), fixed=True)
    attention_heads: int = key(4, at_least(1, MAX_CHANNELS), unless("model.attention", ()), fixed=True)
    refine_rank: int = key(0, between(0, MAX_CHANNELS), fixed=True)


@dataclass(frozen=True)
class DiffusionConfig:
    timesteps: int = key(1000, at_least(2, 100_000), fixed=True)
    beta_schedule: Literal["linear", "cosine"] = key("cosine", fixed=True)
    beta_start: float = key(1e-4, more_than(0, 1), LINEAR, fixed=True)
    beta_end: float = key(0.02, Limit("more than 0 and less than 1", lambda v: 0 < v < 1), LINEAR, fixed=True)
    zero_terminal_snr: bool = key(True, fixed=True)
    prediction_type: Literal["epsilon", "v", "x_0", "residual"] = key("residual", fixed=True)
    terminal_share: float = key(0.75, SHARE)
    sampler: Literal[tuple(SAMPLERS)] = key("ddim", None, SEVERAL_STEPS, separates=True)
    use_ddim: bool | None = key(None, separates=True)
    ddim_steps: int = key(1, at_least(1, 100_000), separates=True)
    eta: float = key(0.0, SHARE, READS_ETA, SEVERAL_STEPS, separates=True)
    temperature: float = key(1.0, SHARE, separates=True)
    samples: int = key(1, at_least(1, 10_000), separates=True)

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
    subtract: Literal["complex", "mask", "magnitude", "normalized"] = key("complex", separates=True)
    chunk_seconds: float = key(8.0, more_than(0, 3600), separates=True)
    margin_seconds: float = key(1.5, at_least(0, 600), separates=True)
    batch_chunks: int = key(1, at_least(1, 4096), separates=True)


@dataclass(frozen=True)
class TrainConfig:
    seed: int = key(0, between(0, 2**32 - 1), separates=True)
    batch_size: int = key(4, at_least(1, 65536))
    accumulate: int = key(1, at_least(1, 65536))
    epochs: int = key(4, at_least(1, MAX_STEPS), when("train.max_steps", 0), when("train.max_minutes", 0))
    steps_per_epoch: int = key(90, at_least(1, MAX_STEPS))
    max_steps: int = key(0, at_least(0, MAX_STEPS), when("train.max_minutes", 0))
    max_minutes: float = key(0.0, at_least(0, 525_600))
    optimizer: Literal["muon", "adamw"] = key("muon")
    lr: float = key(5e-3, more_than(0, 100))
    weight_decay: float = key(1e-2, at_least(0, 1_000_000))
    warmup_steps: int = key(50, at_least(0, MAX_STEPS))
    amp: Literal["auto", "none", "bf16", "fp16"] = key("auto", separates=True)
    grad_clip: float = key(1.0, at_least(0, 1_000_000))
    ema_decay: float = key(0.999, Limit("at least 0 and less than 1", lambda v: 0 <= v < 1))
    loss_voc_weight: float = key(0.3, at_least(0, 1_000_000))
    loss_log_weight: float = key(0.0, at_least(0, 1_000_000), unless("train.loss_voc_weight", 0.0))
    refine_share: float = key(0.0, SHARE)
    parts: Literal["all", "refine"] = key("all")
    consistency_share: float = key(0.0, SHARE)
    val_every_steps: int = key(1000, at_least(1, MAX_STEPS))
    val_minutes: float = key(0.0, at_least(0, 525_600))
    val_batches: int = key(16, at_least(1, 1_000_000))
    val_seconds: float = key(10.0, more_than(0, 3600))
    channels_last: bool | None = key(None)
    compile: bool = key(False)


@dataclass(frozen=True)
class LogConfig:
    tb_log_dir: str = key("logs/tb", FOLDER)
    checkpoint_dir: str = key("checkpoints", FOLDER)
    every_steps: int = key(10, at_least(1, MAX_STEPS))
    release_minutes: float = key(0.0, at_least(0, 525_600))


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
        for name, possible, must_be in chain(_limits(self), _relations(self)):
            if not possible:
                raise UserError(f"{name} is {show(_value(self, name))} but must be {must_be}")


KEYS: dict[str, Field] = {  # section.key -> dataclass field
    f"{section}.{spec.name}": spec for section, cls in get_type_hints(Config).items() for spec in fields(cls)
}
# Booleans that stand for a choice (`use_ddim` is resolved in `DiffusionConfig`).
ALIASES = {"train.amp": {True: "auto", False: "none"}}


def _value(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _limits(config: Config) -> Iterator[tuple[str, bool, str]]:
    """Yields (key, whether its value is possible, what it must be)."""
    for name, spec in KEYS.items():
        if limit := spec.metadata["limit"]:
            yield name, limit.allows(_value(config, name)), limit.must_be


def _relations(config: Config) -> Iterator[tuple[str, bool, str]]:
    """The same for keys that depend on other keys."""
    audio, model, diffusion = config.audio, config.model, config.diffusion

    yield "audio.win_length", audio.win_length <= audio.n_fft, f"at most audio.n_fft ({audio.n_fft})"
    overlap = f"at most half of audio.win_length ({audio.win_length}), so that the STFT can be inverted"
    yield "audio.hop_length", 2 * audio.hop_length <= audio.win_length, overlap

    window = f"long enough for one audio.n_fft ({audio.n_fft} samples at {audio.sample_rate} Hz)"
    yield "data.segment_seconds", config.data.segment_seconds * audio.sample_rate >= audio.n_fft, window

    scales = len(model.channels_mult)
    widest = f"such that no scale has more than {MAX_CHANNELS} channels (model.base_channels is {model.base_channels})"
    yield "model.channels_mult", model.base_channels * max(model.channels_mult) <= MAX_CHANNELS, widest
    known = f"empty or indices of the {scales} scales in model.channels_mult: 0 to {scales - 1}"
    yield "model.attention", all(0 <= scale < scales for scale in model.attention), known
    widths = [model.base_channels * model.channels_mult[scale] for scale in model.attention]
    divisor = f"a divisor of the channels of every scale with attention: {show(widths)}"
    yield "model.attention_heads", not any(width % model.attention_heads for width in widths), divisor

    refines = model.refine_rank > 0 and config.train.refine_share > 0 and diffusion.terminal_share < 1
    needs = "all, unless model.refine_rank and train.refine_share are above 0 and diffusion.terminal_share below 1"
    yield "train.parts", config.train.parts == "all" or refines, needs

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
        with prefix_errors(path):
            for section, keys in _typed(strict_yaml.read(Path(path))).items():
                sections.setdefault(section, {}).update(keys)
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            meant = "; did you mean --config before it?" if name.endswith((".yaml", ".yml")) else ""
            raise UserError(f'override "{shorten(override)}" must be section.key=value, such as train.lr=0.001{meant}')
        with prefix_errors(f'override "{shorten(override)}"'):
            strict_yaml.require_text(value)
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
    return KEYS[key].metadata["fixed"]


def affects_separation(key: str) -> bool:
    """Whether a separation reads `key`, of those that trained weights are not bound to."""
    return KEYS[key].metadata["separates"]


def require_same_network(trained: Config, wanted: Config, name: str) -> None:
    """Refuse to use weights under settings that they were not trained with.

    Raises UserError that names the keys that weights are bound to and in which the two differ.
    """
    fixed = {key: values for key, values in differences(trained, wanted).items() if is_fixed(key)}
    if fixed:
        now = ", ".join(f"{key} = {show(value)}" for key, (_, value) in fixed.items())
        before = " ".join(f'"{key}={show(value)}"' for key, (value, _) in fixed.items())
        raise UserError(
            f"{name} cannot be used with {now}: give {before}, with which it was trained, "
            "or train anew (--resume none, or another log.checkpoint_dir)"
        )


def ignored_keys(config: Config) -> dict[str, str]:
    """The keys that have no effect in `config`, each with the reason: the last of its conditions that does not hold."""
    return {
        name: f"{condition.key} is {show(_value(config, condition.key))}"
        for name, spec in KEYS.items()
        for condition in spec.metadata["used"]
        if not condition.holds(_value(config, condition.key))
    }


def ignored_settings(config: Config, asked: Collection[str] | None = None) -> list[str]:
    """One line for each ignored key (of those in `asked`, if given) that was set to something else than its default,
    for scripts to warn about."""
    defaults = Config()
    return [
        f"{key} = {show(_value(config, key))} is ignored: {reason}"
        for key, reason in ignored_keys(config).items()
        if _value(config, key) != _value(defaults, key) and (asked is None or key in asked)
    ]
