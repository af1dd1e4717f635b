"""Checkpoints: all that a run needs to go on (`.pt`), and released weights with their config (`.safetensors`).

python -m diffvocsep.checkpoint checkpoints/stems/best.pt checkpoints/pretrained.safetensors
python -m diffvocsep.checkpoint early.pt late.pt released.safetensors      # the mean of the weights of two models
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from .config import Config, from_dict, load_config, require_same_network, to_dict
from .unet import make_network
from .util.atomic import write_atomic
from .util.cli import main
from .util.errors import UserError
from .util.strict_yaml import blame, show

FORMAT = 2
# Where things lie on the computer that trained is nobody else's business.
PLACES = """data.root data.dev_root data.musdb_root data.musdbhq_root data.cache_dir log.tb_log_dir
    log.checkpoint_dir"""
# Settings that are gone, with the values that say what the program does now.
FORMER = (
    ("train", "loss", "l1_l2"),
    ("separation", "contrast", 1.0),
    ("diffusion", "loss_weighting", "none"),
    ("diffusion", "min_snr_gamma", 5.0),
    ("diffusion", "start", "noise"),
    ("diffusion", "start_step", 500),
)


def versions() -> dict[str, str]:
    """The packages and the Python that results depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values) atomically; format and versions are added."""
    write_atomic(path, lambda part: torch.save({"format": FORMAT, "versions": versions(), **state}, part))


def is_finite(state: Any) -> bool:
    """Whether all numbers in the tensors of a nested state are."""
    if isinstance(state, dict):
        return all(map(is_finite, state.values()))
    return not isinstance(state, Tensor) or bool(state.isfinite().all())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt` written by `save_checkpoint`, onto the CPU.

    Raises:
        UserError: missing, damaged, or not a checkpoint of this program and format.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint '{path}'; name one that is there, or train one with train.py")
    if not zipfile.is_zipfile(path):  # what torch.save writes
        raise UserError(f"'{path}' is no checkpoint, or only a part of one; name another file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise UserError(f"'{path}' cannot be read as a checkpoint ({reason}); it may be damaged") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "ema" not in state:
        raise UserError(
            f"'{path}' is not a checkpoint of this version of Diff-VocSep; use another file, or train anew with "
            "train.py --resume none"
        )
    return state


def config_in(path: Path, mapping: dict[str, Any]) -> Config:
    """The config saved in `path`; raises UserError that names the file, for one that this version cannot have."""
    mapping = copy.deepcopy(mapping)
    sections = mapping if isinstance(mapping, dict) else {}
    if isinstance(sections.get("train"), dict):
        sections["train"].setdefault("optimizer", "adamw")  # once the only one
    for section, key, stayed in FORMER:
        settings = sections.get(section)
        value = settings.pop(key, stayed) if isinstance(settings, dict) else stayed
        if value != stayed:
            raise UserError(
                f"'{path}' was saved with {section}.{key} = {show(value)}, which this version no longer has; use the "
                "version that saved it, or another file"
            )
    with blame(f"the config in '{path}'"):
        return from_dict(mapping)


def release(state: dict[str, Any], path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the EMA weights of a training state as `.safetensors`, and its config but for `PLACES` as metadata.

    In float16 the file is half as large, and every weight keeps 11 significant bits, of which bf16 uses 8.
    """
    from safetensors.torch import save

    weights = {name: tensor.to(dtype).contiguous() for name, tensor in state["ema"].items()}
    config, defaults = copy.deepcopy(state["config"]), to_dict(Config())
    for section, key in (place.split(".") for place in PLACES.split()):
        config[section][key] = defaults[section][key]
    metadata = {"config": json.dumps(config), "step": str(state["step"]), "format": str(FORMAT)}
    write_atomic(path, lambda part: part.write_bytes(save(weights, metadata)))


def mean_state(paths: Sequence[Path]) -> dict[str, Any]:
    """The state in the last of `paths`, with the mean of the averaged weights of all; one named twice counts twice.

    Along one run, the mean lies in a flatter place than its parts and serves unheard songs better (Izmailov et al.
    2018).

    Raises:
        UserError: no models, or different networks.
    """
    states = [load_any(path) for path in paths]
    for path, state in zip(paths, states, strict=True):
        require_same_network(config_in(path, state["config"]), config_in(paths[-1], states[-1]["config"]), f"'{path}'")
    ema = {name: torch.stack([state["ema"][name] for state in states]).mean(0) for name in states[-1]["ema"]}
    return states[-1] | {"ema": ema}


def load_any(path: Path) -> dict[str, Any]:
    """At least `ema`, `config` and `step` of a `.pt` or `.safetensors` file; raises UserError as `load_checkpoint`."""
    if path.suffix != ".safetensors":
        return load_checkpoint(path)
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"there is no model '{path}'; name one that is there")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["format"] != str(FORMAT):
                raise UserError(f"'{path}' is not a model of this version of Diff-VocSep; use the one that is shipped")
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            return {"ema": weights, "config": json.loads(metadata["config"]), "step": int(metadata.get("step", 0))}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"'{path}' is not a released model of Diff-VocSep ({error})") from None


def load_weights(path: Path) -> tuple[dict[str, Tensor], Config]:
    """EMA weights and config of a `.pt` or `.safetensors` file."""
    state = load_any(path)
    return state["ema"], config_in(path, state["config"])


def load_model(path: Path) -> tuple[nn.Module, Config]:
    """The network with its EMA weights, and the config it was trained with."""
    weights, config = load_weights(path)
    model = make_network(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights in '{path}' do not fit its own config ({str(error).splitlines()[1].strip()})"
        ) from None
    return model, config


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make a small file for others from a training checkpoint.")
    parser.add_argument("checkpoint", type=Path, nargs="+", help="last.pt or best.pt of a run; the mean of several")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="a setting to ship")
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")
    parser.add_argument("released", type=Path, help="the .safetensors to write: averaged weights and config, no more")
    args = parser.parse_args(argv)
    if args.released.suffix != ".safetensors":
        raise UserError(f"'{args.released}' must end in .safetensors")
    state = mean_state(args.checkpoint)
    trained = config_in(args.checkpoint[-1], state["config"])
    config = load_config(None, args.set, base=trained)
    require_same_network(trained, config, f"'{args.checkpoint[-1]}'")
    state |= {"config": to_dict(config)}
    release(state, args.released, torch.float16 if args.half else torch.float32)
    print(f"{args.released}: step {state['step']}, {args.released.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    main(run)
