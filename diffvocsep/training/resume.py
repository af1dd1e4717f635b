"""Resuming a run exactly: which checkpoint, whether it fits the config, and what a change of the config means.

`training_state` is what `last.pt` holds; `load_initial_state` reads and checks it, `restore` puts it into network,
average and optimizer. What a run draws is a function of `Progress.samples` (util/rng.py), so no state of a random
generator is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load_checkpoint, load_weights, require_weights_fit, saved_config
from ..config import Config, differences, is_fixed, require_same_network, to_dict
from ..util.atomic import numbered_names, replace_file
from ..util.errors import UserError
from ..util.strict_yaml import show
from ..util.untrusted import is_finite, is_plain_tensor
from .progress import Progress
from .run_folder import checkpoint_folder_of

# Keys whose change makes dev scores incomparable with earlier ones.
VALIDATION_KEYS = """data.dataset data.dev_root data.musdb_root data.musdbhq_root data.synthetic_seconds
    train.seed train.val_batches train.val_seconds
    diffusion.sampler diffusion.ddim_steps diffusion.eta diffusion.samples diffusion.temperature
    separation.subtract separation.chunk_seconds separation.margin_seconds"""

REQUIRED_FIELDS = ("step", "model", "ema", "optimizer", "scaler", "run_id", "best_sdr")  # every version has saved these


def find_checkpoint(resume: str, last: Path) -> Path | None:
    """The checkpoint that `--resume` names, if any: `auto` is `last`, if it is there."""
    if resume == "none" or (resume == "auto" and not last.exists()):
        return None
    return last if resume == "auto" else Path(resume)


def is_copied_run(last: Path, run: str, curves: Path) -> bool:
    """Whether `last` is a copy: the run `run` still has its own last checkpoint in another folder, and may go on from
    there, so its curves in the folder `curves` must stay as they are."""
    folder = checkpoint_folder_of(curves)
    try:
        if folder is None or folder.resolve() == last.parent.resolve():
            return False
        return load_checkpoint(folder / last.name).get("run_id") == run
    except (UserError, ValueError, RuntimeError):  # not there, damaged, or no possible path: nobody goes on there
        return False


def is_same_run(path: Path, last: Path, progress: Progress, curves: Path, say: Callable[[str], None]) -> bool:
    """Whether training from the checkpoint `path` goes on with its run and its curves in the folder `curves`. Otherwise
    a new run begins with its weights, as it does from any checkpoint but `last`."""
    if path.resolve() != last.resolve():
        return False
    if is_copied_run(last, progress.run_id, curves):
        say(f"{last} is a copy, whose original can go on as well: this run gets curves of its own")
        return False
    return True


def keep_aside(path: Path, say: Callable[[str], None]) -> None:
    """Rename a checkpoint, if it is there, to `last.<its run>.pt`, so that no other run replaces it."""
    if not path.exists():
        return
    try:
        run = load_checkpoint(path).get("run_id", "old")
    except UserError:  # damaged, or of another version
        run = "old"
    names = (path.with_name(f"{name}.pt") for name in numbered_names(f"{path.stem}.{run}"))
    kept = next(name for name in names if not name.exists())
    replace_file(path, kept)
    say(f"what {path} has held so far is kept as {kept.name}")


@dataclass
class InitialState:
    """What a run begins with.

    Attributes:
        weights, average: of the network, and their EMA; None where they begin anew.
        optimizer: its state; None where it begins anew.
        scaler: state of the loss scaler, empty where none was in use.
        changes: a line for each setting that differs from those of the checkpoint.
    """

    progress: Progress = field(default_factory=Progress)
    weights: dict[str, Tensor] | None = None
    average: dict[str, Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def load_initial_state(path: Path, config: Config, automatic: bool, say: Callable[[str], None]) -> InitialState:
    """The training state in `path`, or the weights of a released file. The best score is forgotten where a change of
    the config makes scores incomparable.

    Args:
        automatic: the file was found by `--resume auto`, not named by the user.
        say: called with a line of text for everything that is not as it was.

    Raises:
        UserError: no checkpoint, or one of another network or of other data.
    """
    if path.suffix == ".safetensors":
        weights, released = load_weights(path)
        require_same_network(released, config, str(path))
        say(f"a new run begins with the weights of {path}; it holds no more, so this is no exact resume")
        return InitialState(weights=weights)
    try:
        saved = load_checkpoint(path)
        before = _checked_config(saved, path)
    except UserError as error:
        advice = "; --resume none starts anew and keeps this file aside" if automatic else ""
        raise UserError(f"{error}{advice}") from None
    progress, changed = Progress.from_checkpoint(saved), differences(before, config)
    if progress.step == 0:  # nothing is learnt, so every setting may change; but the weights may be a released file's
        same = not any(map(is_fixed, changed)) and "train.seed" not in changed
        return InitialState(progress, weights=saved["model"] if same else None)
    if automatic:
        _require_same_data_and_optimizer(path, before, config)
    changes = [f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in changed.items() if not is_fixed(key)]
    if changes:
        say(f"changed since {path} was written, and accepted: {', '.join(changes)}")
    require_same_network(before, config, str(path))
    optimizer = saved["optimizer"]
    if "train.optimizer" in changed:
        optimizer = None
        say("the optimizer is another one, and begins without what the one before had gathered")
    elif "train.parts" in changed:
        optimizer = None
        say("the optimizer trains other weights, and begins without what it had gathered")
    if "validated" not in saved:  # such checkpoints were written after the validation
        say(f"{path} is of an older version, which did not count skipped steps: they count from here")
        progress.validated = progress.step
    if "samples" not in saved:
        progress.samples = progress.step * before.train.accumulate * before.train.batch_size
    validation = [key for key in changed if key in VALIDATION_KEYS.split()]
    if validation:
        say(f"{', '.join(validation)} changed what is validated: the best SDR so far is forgotten")
        progress.best_sdr = -math.inf
    say(f"resumed {path} at step {progress.step}")
    # What is not trained any more stays as the average has it, for that is what separates.
    weights = saved["ema"] if "train.parts" in changed and config.train.parts == "refine" else saved["model"]
    return InitialState(progress, weights, saved["ema"], optimizer, saved["scaler"], changes)


def _checked_config(saved: dict[str, Any], path: Path) -> Config:
    """The config of a training state; raises UserError where a part is missing or does not fit the others."""
    missing = [name for name in REQUIRED_FIELDS if name not in saved]
    if missing:
        raise UserError(f"'{path}' holds no training to go on with: it has no {', '.join(missing)}; use another file")
    config = saved_config(path, saved["config"])
    for weights in ("ema", "model"):
        require_weights_fit(saved[weights], config, f"'{path}'")
        if not is_finite(saved[weights]):
            raise UserError(f"'{path}' is damaged, or somebody has changed it: its weights are not finite")
    require_optimizer_state(saved, path)
    return config


def _require_same_data_and_optimizer(path: Path, before: Config, config: Config) -> None:
    """Where `--resume auto` found the checkpoint, other data or another optimizer may be a mistake.

    Raises:
        UserError: which says how to go on.
    """
    if before.data.dataset != config.data.dataset:
        raise UserError(
            f"{path} was trained with data.dataset {before.data.dataset}, not {config.data.dataset}; use "
            f"--resume none to start anew, --resume {path} to go on with it, or another log.checkpoint_dir"
        )
    if before.train.optimizer != config.train.optimizer:
        raise UserError(
            f"{path} was trained with train.optimizer {before.train.optimizer}, whose learning rates are others: "
            f"train.optimizer={before.train.optimizer} train.lr={before.train.lr:g} goes on as before, --resume {path} "
            f"with {config.train.optimizer}, and --resume none starts anew"
        )


def training_state(
    config: Config,
    progress: Progress,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> dict[str, Any]:
    """All that a run needs to go on, as tensors and plain values: what is saved is read by `load_initial_state`, and
    put back by `restore`."""
    return {
        "config": to_dict(config),
        "model": model.state_dict(),
        "ema": average,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        **progress.to_dict(),
    }


def restore(
    state: InitialState,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Put a state into network, average, optimizer and scaler, which keep their memory layout."""
    if state.weights is not None:
        model.load_state_dict(state.weights)
        for name, weight in model.state_dict().items():
            average[name] = _in_layout_of(weight, (state.average or state.weights)[name])
    if state.optimizer is not None:
        _restore_moments(optimizer, state.optimizer)
    if state.scaler.keys() == scaler.state_dict().keys():  # empty where it was, or is, not in use
        scaler.load_state_dict(state.scaler)


def _restore_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put the saved moments into the optimizer, whose settings stay those of the config; every step sets the learning
    rate anew."""
    groups = [
        own | {name: group[name] for name in ("params", "lr")}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, moments in optimizer.state.items():
        moments |= {
            name: _in_layout_of(parameter, value)
            for name, value in moments.items()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        }


def _in_layout_of(tensor: Tensor, values: Tensor) -> Tensor:
    """`values` in the memory layout of `tensor`: optimizers that take many weights in one kernel read weights and
    moments side by side, and the device that a checkpoint is from may have had another layout."""
    return torch.empty_like(tensor).copy_(values)


def require_optimizer_state(saved: dict[str, Any], path: Path) -> None:
    """Check that the scaler of a training state has plain numbers, and that its optimizer fits its weights.

    Raises:
        UserError: they do not.
    """
    scale = saved["scaler"]
    if not isinstance(scale, dict) or not all(
        isinstance(name, str) and type(value) in (int, float) and 0 <= value < 2**127 for name, value in scale.items()
    ):
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its scaler is none")
    try:
        fits = _is_optimizer_state(saved["optimizer"], list(saved["model"].values()))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):  # a tensor in the place of a list
        fits = False
    if not fits:
        raise UserError(f"'{path}' is damaged, or somebody has changed it: its optimizer does not fit its weights")


def _is_optimizer_state(optimizer: dict[str, Any], weights: list[Tensor]) -> bool:
    """Whether these are groups and moments of one of our optimizers for a network with these weights."""
    groups, state = optimizer["param_groups"], optimizer["state"]
    # Insist on lists: a tensor can be iterated too, and a few bytes in a file can stand for any number of elements.
    lists = isinstance(groups, list) and all(isinstance(group["params"], list) for group in groups)
    if not (lists and isinstance(state, dict)):
        return False
    muon = any("matrices" in group for group in groups)
    order = weights if not muon else [w for w in weights if w.ndim > 1] + [w for w in weights if w.ndim <= 1]
    places = [i for group in groups for i in group["params"]]
    rates = all(type(group["lr"]) in (int, float) and 0 <= group["lr"] < 2**64 for group in groups)
    if not rates or places != list(range(len(order))) or any(type(i) is not int for i in places):
        return False
    sizes = [len(group["params"]) for group in groups]
    matrices = sum(w.ndim > 1 for w in weights)
    if sizes != ([n for n in (matrices, len(weights) - matrices) if n] if muon else [len(weights)]):
        return False
    return all(type(i) is int and _is_moments(values, order[i], muon) for i, values in state.items())


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
    possible = shaped and is_finite(moments) and bool((moments.get("exp_avg_sq", torch.zeros(())) >= 0).all())
    return moments.keys() == names and possible and bool(counted)
