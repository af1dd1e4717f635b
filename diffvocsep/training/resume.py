"""Going on with a run: which checkpoint, whether it fits the config, and what a change of the config means."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import config_in, is_plain_tensor, load_checkpoint, load_weights, require_fit
from ..config import Config, differences, is_fixed, require_same_network
from ..util.atomic import replace_file
from ..util.errors import UserError
from ..util.strict_yaml import show
from .muon import Muon
from .run_folder import home_of, numbered

# Under other values of these, dev scores cannot be compared.
DECISIVE = """data.dataset data.dev_root data.musdb_root data.musdbhq_root data.synthetic_seconds
    train.seed train.val_batches train.val_seconds
    diffusion.sampler diffusion.ddim_steps diffusion.eta diffusion.samples diffusion.start diffusion.start_step
    separation.subtract separation.chunk_seconds separation.margin_seconds"""

NEEDED = ("step", "model", "ema", "optimizer", "scaler", "run_id", "best_sdr")  # older versions saved no more


def find_checkpoint(resume: str, last: Path) -> Path | None:
    """The checkpoint that `--resume` names, if any: `auto` is `last`, if it is there."""
    if resume == "none" or (resume == "auto" and not last.exists()):
        return None
    return last if resume == "auto" else Path(resume)


def is_copy(last: Path, run: str, curves: Path) -> bool:
    """Whether `last` is a copy of the last checkpoint of `run`, which lies elsewhere still and owns the curves in
    `curves`: those must stay as they are."""
    home = home_of(curves)
    if home is None or home.resolve() == last.parent.resolve() or not (home / last.name).is_file():
        return False
    try:
        return load_checkpoint(home / last.name).get("run_id") == run
    except UserError:  # damaged: nobody goes on there
        return False


def keep_aside(path: Path, say: Callable[[str], None]) -> None:
    """Give a checkpoint, if it is there, a name of its own, `last.<its run>.pt`: no other run replaces it."""
    if not path.exists():
        return
    try:
        run = load_checkpoint(path).get("run_id", "old")
    except UserError:  # damaged, or of another version
        run = "old"
    names = (path.with_name(f"{name}.pt") for name in numbered(f"{path.stem}.{run}"))
    kept = next(name for name in names if not name.exists())
    replace_file(path, kept)
    say(f"what {path} has held so far is kept as {kept.name}")


def load_state(path: Path, config: Config, automatic: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The training state in `path`, with `changes` (a line for each setting that differs) and what older versions did
    not save; under another validation, the best score is forgotten. Of a released file, `step` 0 and its `weights`.

    Args:
        automatic: nobody named this file.
        say: told of everything that is not as it was.

    Raises:
        UserError: no checkpoint, or one of another network or of other data.
    """
    if path.suffix == ".safetensors":
        weights, released = load_weights(path)
        require_same_network(released, config, str(path))
        say(f"a new run begins with the weights of {path}; it holds no more, so this is no exact resume")
        return {"step": 0, "weights": weights}
    try:
        state = load_checkpoint(path)
    except UserError as error:
        advice = "; --resume none starts anew and keeps this file aside" if automatic else ""
        raise UserError(f"{error}{advice}") from None
    state["changes"] = []
    before = config_in(path, state["config"])
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise UserError(f"'{path}' holds no training to go on with: it has no {', '.join(missing)}; use another file")
    for weights in ("ema", "model"):
        require_fit(state[weights], before, f"'{path}'")
    if state["step"] == 0:  # nothing is learnt, so nothing binds; but its weights may be those of a released file
        changed = differences(before, config)
        return state if any(map(is_fixed, changed)) or "train.seed" in changed else state | {"weights": state["model"]}
    if automatic and before.data.dataset != config.data.dataset:
        raise UserError(
            f"{path} was trained with data.dataset {before.data.dataset}, not {config.data.dataset}; use "
            f"--resume none to start anew, --resume {path} to go on with it, or another log.checkpoint_dir"
        )
    changed = differences(before, config)
    if automatic and "train.optimizer" in changed:
        raise UserError(
            f"{path} was trained with train.optimizer {before.train.optimizer}, whose learning rates are others: "
            f"train.optimizer={before.train.optimizer} train.lr={before.train.lr:g} goes on as before, --resume {path} "
            f"with {config.train.optimizer}, and --resume none starts anew"
        )
    state["changes"] = [
        f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in changed.items() if not is_fixed(key)
    ]
    if state["changes"]:
        say(f"changed since {path} was written, and accepted: {', '.join(state['changes'])}")
    require_same_network(before, config, str(path))
    if "train.optimizer" in changed:
        del state["optimizer"]
        say("the optimizer is another one, and begins without what the one before had gathered")
    if "validated" not in state:  # such checkpoints were written after the validation
        say(f"{path} is of an older version, which did not count skipped steps: they count from here")
    state.setdefault("validated", state["step"])
    state.setdefault("skipped", 0)
    state.setdefault("samples", state["step"] * before.train.accumulate * before.train.batch_size)
    decisive = [key for key in changed if key in DECISIVE.split()]
    if decisive:
        say(f"{', '.join(decisive)} changed what is validated: the best SDR so far is forgotten")
        state["best_sdr"] = -math.inf
    say(f"resumed {path} at step {state['step']}")
    return state


def require_fitting(state: dict[str, Any], optimizer: torch.optim.Optimizer, path: Path) -> None:
    """See that the optimizer and the scaler of a training state are of this optimizer and its parameters.

    Raises:
        UserError: they are not.
    """
    scale = state["scaler"]
    if not isinstance(scale, dict) or not all(
        isinstance(name, str) and type(value) in (int, float) and 0 <= value < 2**127 for name, value in scale.items()
    ):
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its scaler is none")
    try:
        fits = "optimizer" not in state or _fits(state["optimizer"], optimizer)
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise UserError(
            f"'{path}' is damaged, or somebody has changed it: its optimizer does not fit its weights; a new run "
            "begins with the weights alone once python -m diffvocsep.checkpoint has written them as .safetensors"
        )


def _fits(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Whether groups, parameters and moments are those that `optimizer` has or would have."""
    groups, own = saved["param_groups"], optimizer.param_groups
    if [list(map(type, group["params"])) for group in groups] != [[int] * len(group["params"]) for group in own]:
        return False
    parameters = [parameter for group in own for parameter in group["params"]]
    places = dict(zip([i for group in groups for i in group["params"]], parameters, strict=True))
    rates = all(type(group.get("lr")) in (int, float) and 0 <= group["lr"] < 2**64 for group in groups)
    if not rates or not saved["state"].keys() <= places.keys() or len(places) != len(parameters):
        return False
    return all(_is_moments(values, places[i], isinstance(optimizer, Muon)) for i, values in saved["state"].items())


def _is_moments(values: dict[str, Any], parameter: Tensor, muon: bool) -> bool:
    """Whether these are what the optimizer keeps of one parameter."""
    count = values.get("step")
    if muon:
        names, counted = {"exp_avg"}, parameter.ndim > 1 or (type(count) is int and 0 < count < 2**53)
    else:
        names, counted = {"exp_avg", "exp_avg_sq"}, is_plain_tensor(count) and count.shape == () and count > 0
    if muon and parameter.ndim <= 1:
        names = names | {"exp_avg_sq"}
    moments = {name: value for name, value in values.items() if name != "step"}
    shaped = all(is_plain_tensor(value) and value.shape == parameter.shape for value in moments.values())
    return moments.keys() == names and shaped and bool(counted)
