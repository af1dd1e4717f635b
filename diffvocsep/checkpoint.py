"""Checkpoints: all that a run needs to go on (`.pt`), and released weights with their config (`.safetensors`).

A `.pt`, such as `last.pt`, holds a dictionary: the `config`, the weights `model` and their average `ema`, the states of
`optimizer` and `scaler`, the fields of `training.progress.Progress`, and the `format` and `versions` of the program.
`training.resume.training_state` makes it; here it is written, and read as a file from elsewhere may be: with distrust.

python -m diffvocsep.checkpoint checkpoints/stems/best.pt checkpoints/pretrained.safetensors
python -m diffvocsep.checkpoint early.pt late.pt released.safetensors      # the mean of the weights of two models
"""

from __future__ import annotations

import copy
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .config import Config, from_dict, load_config, require_same_network, to_dict
from .uncertainty import ScaleHead
from .unet import make_network
from .util.atomic import write_atomic
from .util.cli import Parser, main, print_notes
from .util.errors import UserError
from .util.strict_yaml import prefix_errors, shorten, show
from .util.untrusted import (
    MAX_COUNT,
    is_count,
    is_finite,
    is_plain_config,
    is_plain_name,
    require_plain_archive,
    require_tensors,
)

FORMAT = 2
HEAD_PREFIX = "uncertainty."  # of the names of a `ScaleHead`'s weights, beside the network's
# Paths on the computer that trained: left out of a released file, for they are nobody else's business.
LOCAL_PATHS = """data.root data.dev_root data.musdb_root data.musdbhq_root data.cache_dir log.tb_log_dir
    log.checkpoint_dir"""
# Settings that were removed, each with the one value that this version still stands for; None: any value.
REMOVED_SETTINGS = (
    ("train", "loss", "l1_l2"),
    ("separation", "contrast", 1.0),
    ("diffusion", "loss_weighting", "none"),
    ("diffusion", "min_snr_gamma", None),
    ("diffusion", "start", "noise"),
    ("diffusion", "start_step", None),
)
MAX_NUMBER = 10**6  # in the config of a file from elsewhere, for settings that decide about memory


def _is_format(value: Any) -> bool:
    return type(value) is int and value == FORMAT


# Fields of a training state beside weights and config: a test of the value, and what the test asks for.
RUN_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "step": (is_count, "a count"),
    "samples": (is_count, "a count"),
    "validated": (is_count, "a count"),
    "skipped": (is_count, "a count"),
    "seconds": (lambda v: type(v) in (int, float) and 0 <= v < MAX_COUNT, "a number of seconds"),
    "validated_seconds": (lambda v: type(v) in (int, float) and 0 <= v < MAX_COUNT, "a number of seconds"),
    "best_sdr": (lambda v: type(v) in (int, float) and -math.inf <= v < 1e4, "a score"),
    "dev_songs": (lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v), "a list of names"),
    "run_id": (lambda v: isinstance(v, str) and is_plain_name(v), "a plain name"),
}
# Of two such fields, the first is never larger than the second.
ORDERED_FIELDS = (("validated", "step"), ("skipped", "step"), ("validated_seconds", "seconds"))


def versions() -> dict[str, str]:
    """The packages and the Python that results depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values) atomically; format and versions are added. Raises OSError."""

    def save(part: Path) -> None:
        try:
            with open(part, "wb") as file:
                torch.save({"format": FORMAT, "versions": versions(), **state}, file)
        except RuntimeError as error:  # torch names positions in an archive; the reason is the error before
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    write_atomic(path, save)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt` written by `save_checkpoint`, onto the CPU.

    Raises:
        UserError: missing, damaged, or not a checkpoint of this program and format.
    """
    if not os.path.isfile(path):  # of an impossible name, Path.is_file raises
        remedy = "name one that is there, such as checkpoints/pretrained.safetensors, or train one with train.py"
        if path.name == "best.pt" and os.path.isfile(last := path.with_name("last.pt")):
            remedy = f"the first validation writes it, until then there is '{shorten(last, 150)}'"
        if os.path.isdir(path):
            raise UserError(f"'{shorten(path, 150)}' is a folder, where a checkpoint belongs; move it away")
        raise UserError(f"there is no checkpoint '{shorten(path, 150)}'; {remedy}")
    require_plain_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise UserError(f"'{path}' cannot be read as a checkpoint ({reason}); it may be damaged") from None
    if not isinstance(state, dict) or not _is_format(state.get("format")) or "ema" not in state:
        raise UserError(
            f"'{path}' is not a checkpoint of this version of Diff-VocSep; use another file, or train anew with "
            "train.py --resume none"
        )
    for name in ("config", "step"):
        if name not in state:
            raise UserError(f"'{path}' is no whole checkpoint: it has no {name}; use another file")
    for name, (test, must_be) in RUN_FIELDS.items():
        if name in state and not test(state[name]):
            raise UserError(f"'{path}' is damaged, or somebody has changed it: its {name} is not {must_be}")
    for name, most in ORDERED_FIELDS:
        if state.get(name, 0) > state.get(most, math.inf):
            raise UserError(f"'{path}' is damaged, or somebody has changed it: its {name} is larger than its {most}")
    for name in {"ema", "model"} & state.keys():
        require_tensors(state[name], path)
    return state


def require_weights_fit(weights: Mapping[str, Tensor], config: Config, name: str) -> None:
    """Compare names and shapes of weights with the network that `config` describes, built without memory.

    Raises:
        UserError: they differ.
    """
    why = ""
    try:
        with torch.device("meta"):
            expected = {key: weight.shape for key, weight in make_network(config).state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError, MemoryError):  # larger than any computer holds
        raise UserError(f"the weights in {name} do not fit its own config (no such network is possible)") from None
    for key in sorted(expected.keys() | weights.keys()):
        if key not in weights or key not in expected:
            why = f"{key[:80]} is {'missing' if key in expected else 'not expected'}"
        elif weights[key].shape != expected[key]:
            why = f"{key} has shape {list(weights[key].shape)[:8]}, not {list(expected[key])}"
        if why:
            raise UserError(f"the weights in {name} do not fit its own config ({why})")


def saved_config(path: Path, mapping: dict[str, Any]) -> Config:
    """The config saved in `path`; raises UserError that names the file, for one that this version cannot have."""
    if not is_plain_config(mapping):
        raise UserError(f"the config in '{path}' is none: it must have sections with keys; use another file")
    mapping = copy.deepcopy(mapping)
    if isinstance(mapping.get("train"), dict):
        mapping["train"].setdefault("optimizer", "adamw")  # the only one of older versions
    for section, key, allowed in REMOVED_SETTINGS:
        settings = mapping.get(section)
        value = settings.pop(key, allowed) if isinstance(settings, dict) else allowed
        if allowed is not None and value != allowed:
            raise UserError(
                f"'{path}' was saved with {section}.{key} = {show(value)}, which this version no longer has; use the "
                "version that saved it, or another file"
            )
    with prefix_errors(f"the config in '{path}'"):
        config = from_dict(mapping)
    for section in ("audio", "model", "diffusion", "separation"):
        for key, value in vars(getattr(config, section)).items():
            values = value if isinstance(value, tuple) else (value,)
            if any(isinstance(v, int | float) and v > MAX_NUMBER for v in values):
                must = f"must be at most {MAX_NUMBER}"
                raise UserError(f"the config in '{path}': {section}.{key} is {show(value)} but {must}")
    return config


def release(state: dict[str, Any], path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the EMA weights of a training state as `.safetensors`, with the weights of its `ScaleHead`, if it has a
    `head`, and its config as metadata, without `LOCAL_PATHS`.

    In float16 the file is half as large, and every weight keeps 11 significant bits, of which bf16 uses 8.

    Raises:
        UserError: a weight is not finite, or too large for `dtype`; the file stays what it was.
    """
    from safetensors.torch import save

    tensors = state["ema"] | {HEAD_PREFIX + name: tensor for name, tensor in state.get("head", {}).items()}
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    if not is_finite(weights):
        raise UserError(
            f"the weights of step {state['step']} are not all finite in {str(dtype).removeprefix('torch.')}, so "
            f"'{path}' was left as it was; use a checkpoint from before the training went wrong, and a lower train.lr"
        )
    config, defaults = copy.deepcopy(state["config"]), to_dict(Config())
    for section, key in (name.split(".") for name in LOCAL_PATHS.split()):
        config[section][key] = defaults[section][key]
    metadata = {"config": json.dumps(config), "step": str(state["step"]), "format": str(FORMAT)}
    write_atomic(path, lambda part: part.write_bytes(save(weights, metadata)))


def mean_of_models(paths: Sequence[Path]) -> dict[str, Any]:
    """The state in the last of `paths`, with the mean of the averaged weights of all; one named twice counts twice.

    Along one run, the mean lies in a flatter place than its parts and serves unheard songs better (Izmailov et al.
    2018).

    Raises:
        UserError: no models, or different networks.
    """
    states = [load_model_state(path) for path in paths]
    for path, state in zip(paths, states, strict=True):
        require_weights_fit(state["ema"], saved_config(path, state["config"]), f"'{path}'")
        require_same_network(
            saved_config(path, state["config"]), saved_config(paths[-1], states[-1]["config"]), f"'{path}'"
        )
    ema = {name: torch.stack([state["ema"][name] for state in states]).mean(0) for name in states[-1]["ema"]}
    return states[-1] | {"ema": ema, "head": states[-1].get("head", {}) if len(states) == 1 else {}}


def load_model_state(path: Path) -> dict[str, Any]:
    """At least `ema`, `config` and `step` of a `.pt` or `.safetensors` file; of the latter also `head`, the weights of
    its `ScaleHead`, if any. Raises UserError as `load_checkpoint`."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise UserError(f"there is no model '{shorten(path, 150)}'; name one that is there")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata is None:
                raise KeyError
            if metadata.get("format") != str(FORMAT):
                raise UserError(f"'{path}' is not a model of this version of Diff-VocSep; use the one that is shipped")
            config, step = json.loads(metadata["config"]), int(metadata.get("step", 0))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise UserError(f"'{path}' is not a released model of Diff-VocSep (it has no config)") from None
    except (SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UserError(f"'{path}' is not a released model of Diff-VocSep ({reason})") from None
    require_tensors(weights, path)
    if not is_count(step):
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its step is not a count")
    head = {
        name.removeprefix(HEAD_PREFIX): weights.pop(name).float()
        for name in sorted(weights)
        if name.startswith(HEAD_PREFIX)
    }
    ema = {name: weight.float() for name, weight in weights.items()}
    return {"ema": ema, "head": head, "config": config, "step": step}


def load_weights(path: Path) -> tuple[dict[str, Tensor], Config]:
    """EMA weights and config of a `.pt` or `.safetensors` file; they fit each other."""
    state, config = _load_fitting(path)
    return state["ema"], config


def load_model(path: Path) -> tuple[nn.Module, Config]:
    """The network with its EMA weights, and the config it was trained with."""
    model, config, _ = load_model_and_head(path)
    return model, config


def load_model_and_head(path: Path) -> tuple[nn.Module, Config, ScaleHead | None]:
    """As `load_model`, with the head that estimates the model's error; None if none was fitted.

    Raises:
        UserError: see `load_model_state`; or weights do not fit the config.
    """
    state, config = _load_fitting(path)
    model = make_network(config)
    model.load_state_dict(state["ema"])
    if not state.get("head"):
        return model, config, None
    head = ScaleHead(config)
    try:
        head.load_state_dict(state["head"])
    except RuntimeError:
        raise UserError(f"the weights of the uncertainty in '{path}' do not fit its own config") from None
    return model, config, head


def _load_fitting(path: Path) -> tuple[dict[str, Any], Config]:
    """A state as `load_model_state` reads it, and its config, which its EMA weights fit."""
    state = load_model_state(path)
    config = saved_config(path, state["config"])
    require_weights_fit(state["ema"], config, f"'{path}'")
    return state, config


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description="Make a small file for others from a training checkpoint.")
    parser.add_argument("checkpoint", type=Path, nargs="+", help="last.pt or best.pt of a run; the mean of several")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="a setting to ship")
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")
    parser.add_argument("released", type=Path, help="the .safetensors to write: averaged weights and config, no more")
    args = parser.parse_args(argv)
    if args.released.suffix != ".safetensors":
        raise UserError(f"'{args.released}' must end in .safetensors")
    state = mean_of_models(args.checkpoint)
    trained = saved_config(args.checkpoint[-1], state["config"])
    config = load_config(None, args.set, base=trained)
    require_same_network(trained, config, f"'{args.checkpoint[-1]}'")
    changed = ScaleHead(trained).settings_not_fitted(config) if state.get("head") else []
    if changed:
        names, program = ", ".join(changed), "python -m scripts.fit_uncertainty"
        print_notes([f"the uncertainty is left out: it was not fitted under this {names}; fit it anew with {program}"])
        state["head"] = {}
    state |= {"config": to_dict(config)}
    release(state, args.released, torch.float16 if args.half else torch.float32)
    print(f"{args.released}: step {state['step']}, {args.released.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    main(run)
