"""The training loop. A run is a function of its config: interrupted and resumed, it draws what it would have drawn."""

from __future__ import annotations

import copy
import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .atomic import remove_leftovers
from .checkpoint import load_checkpoint, save_checkpoint
from .config import Config, differences, from_dict, is_fixed, require_same_network, to_dict
from .data import Segments, Track, dev_tracks, train_tracks
from .data.loading import load_segments
from .device import amp_dtype
from .errors import UserError
from .monitor import EXAMPLES, Monitor
from .objective import Objective
from .runfolder import describe_run
from .separator import Separator, first_timestep
from .streams import generator, normal
from .strict_yaml import show
from .unet import UNet
from .validation import dev_clips, validate

BAD_STEPS = 20  # so many non-finite steps in a row end a run
SAVE_SECONDS = 600.0  # last.pt is at most so old, or one validation
# Under other values of these (and of `separation.*`), dev scores cannot be compared.
DECISIVE = """data.dataset data.dev_root data.synthetic_seconds train.seed train.val_batches train.val_seconds
    diffusion.sampler diffusion.ddim_steps diffusion.eta diffusion.samples diffusion.start diffusion.start_step"""
TERMS = ("loss", "diffusion", "vocals")  # of the objective, as logged


class Trainer:
    """Trains a UNet as its config says.

    Args:
        resume: `auto` goes on from `last.pt` of `log.checkpoint_dir` if there is one, `none` starts anew, anything else
            is the path of a checkpoint.

    Raises:
        UserError: impossible data, or a checkpoint that does not fit the config.
    """

    def __init__(self, config: Config, device: torch.device, resume: str = "auto") -> None:
        self.config, self.device = config, device
        train = config.train
        self.folder = Path(config.log.checkpoint_dir)
        self.total_steps = train.max_steps or train.epochs * train.steps_per_epoch
        self.objective = Objective(config)
        self.objective.diffusion.check(first_timestep(config))
        torch.manual_seed(train.seed)
        self.model = UNet(config).to(device)
        if train.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), train.lr, weight_decay=train.weight_decay)
        self.dtype = amp_dtype(train.amp, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.step, self.validated, self.skipped, self.bad_steps = 0, 0, 0, 0
        self.best_sdr = -math.inf
        self.run_id = time.strftime("%Y%m%d-%H%M%S")
        self.changes: list[str] = []  # what a resumed run does differently
        self.stop = False
        self.saved = time.monotonic()  # when a checkpoint was last written
        self.asked, self.waited = 0.0, 0.0  # when the last batches were asked for, and how long they took, s
        self._resume(resume)
        self.network = torch.compile(self.model) if train.compile else self.model
        self.clips = dev_clips(dev_tracks(config), config)
        self.segments = Segments(train_tracks(config), config, self.total_steps * train.accumulate * train.batch_size)

    # Going on

    def state(self) -> dict:
        """Everything that `_resume` needs, as tensors and plain values."""
        return {
            "config": to_dict(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "validated": self.validated,
            "skipped": self.skipped,
            "best_sdr": self.best_sdr,
            "run_id": self.run_id,
        }

    def _resume(self, resume: str) -> None:
        path = self.folder / "last.pt" if resume == "auto" else Path(resume)
        if resume == "none" or (resume == "auto" and not path.exists()):
            return
        state = load_checkpoint(path)
        before = from_dict(state["config"])
        if resume == "auto" and before.data.dataset != self.config.data.dataset:
            raise UserError(
                f"{path} was trained with data.dataset {before.data.dataset}, not {self.config.data.dataset}; use "
                f"--resume none to start anew, --resume {path} to go on with it, or another log.checkpoint_dir"
            )
        changed = differences(before, self.config)
        self.changes = [
            f"{key}: {show(old)} -> {show(new)}" for key, (old, new) in changed.items() if not is_fixed(key)
        ]
        if self.changes:
            tqdm.write(f"changed since {path} was written, and accepted: {', '.join(self.changes)}")
        require_same_network(before, self.config, str(path))
        self.model.load_state_dict(state["model"])
        self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.train.weight_decay
        if state["scaler"]:  # empty where it was not in use
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if path.resolve() == (self.folder / "last.pt").resolve():  # else it is another run, whose curves stay its own
            self.run_id = state["run_id"]
        if "validated" not in state:  # such checkpoints were written after the validation
            tqdm.write(f"{path} is of an older version, which did not count skipped steps: they count from here")
        self.validated, self.skipped = state.get("validated", self.step), state.get("skipped", 0)
        decisive = [key for key in changed if key in DECISIVE.split() or key.startswith("separation.")]
        if decisive:
            tqdm.write(f"{', '.join(decisive)} changed what is validated: the best SDR so far is forgotten")
        else:
            self.best_sdr = state["best_sdr"]
        tqdm.write(f"resumed {path} at step {self.step}")

    def _save(self, name: str) -> None:
        """Write a checkpoint, unless there is something in it that is not finite.

        Raises:
            UserError: there is; the file stays what it was.
        """
        state = self.state()
        if not torch.stack([tensor.isfinite().all().cpu() for tensor in _tensors(state)]).all():
            raise UserError(
                f"the weights are not finite at step {self.step}, so {self.folder / name} was left as it was; "
                "lower train.lr or set train.amp to none, and the same command goes on from last.pt"
            )
        save_checkpoint(self.folder / name, state)
        self.saved = time.monotonic()

    # The loop

    def run(self) -> int:
        """Train to the end; returns the exit code: 0, or 130 after Ctrl-C."""
        last = self.folder / "last.pt"
        if self.step >= self.total_steps and self.validated == self.step:
            tqdm.write(f"{last} has all its {self.total_steps} steps; --resume none starts anew")
            return 0
        remove_leftovers(self.folder)
        folder = Path(self.config.log.tb_log_dir) / self.run_id
        about = describe_run(folder, self.config, self.step, str(self.device), self.changes)
        parameters = sum(p.numel() for p in self.model.parameters())
        tqdm.write(
            f"training on {self.device}: {parameters / 1e6:.2f} M parameters, {len(self.segments.tracks)} tracks, "
            f"{len(self.clips)} dev clips, {self.total_steps} steps; config, versions and history in {folder}"
        )
        monitor = Monitor(folder, self.config, self.device, self.step, self.total_steps, self.best_sdr, about)
        previous = signal.signal(signal.SIGINT, self._interrupt)
        try:
            self._train(monitor)
            finished = self.step >= self.total_steps and self.validated == self.step
            if finished:
                monitor.finish()
            else:
                monitor.flush()
                self._save("last.pt")
        finally:
            monitor.close()
            signal.signal(signal.SIGINT, previous)
        if finished:
            return 0
        tqdm.write(f"stopped at step {self.step}; the same command, without --resume, goes on from {last}")
        return 130

    def _train(self, monitor: Monitor) -> None:
        """All steps and validations, or those until Ctrl-C."""
        if self._due():  # Ctrl-C came before it
            self._validate(monitor)
        for batches in self._steps():
            terms = self._optimize(batches)
            seconds, rate = time.perf_counter() - self.asked, self.optimizer.param_groups[0]["lr"]
            monitor.step(self.step, terms, seconds, self.waited, rate, self.skipped)
            if self._due() and not self.stop:
                self._validate(monitor)
            elif time.monotonic() - self.saved > SAVE_SECONDS:
                monitor.flush()
                self._save("last.pt")

    def _due(self) -> bool:
        """Whether a validation belongs to this step and has not been done."""
        train, step = self.config.train, self.step
        regular = step % train.val_every_steps == 0 or step % train.steps_per_epoch == 0 or step >= self.total_steps
        return regular and self.validated < step

    def _interrupt(self, *_: object) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        tqdm.write("stopping after this step (press Ctrl-C again to stop at once)")

    def _steps(self) -> Iterator[list[dict[str, Tensor]]]:
        """Lists of `train.accumulate` batches, one list per optimizer step, from the current step on."""
        train = self.config.train
        done = self.step * train.accumulate * train.batch_size
        stream = load_segments(self.segments, done, self.device)
        while self.step < self.total_steps and not self.stop:
            self.asked = time.perf_counter()
            try:
                batches = [next(stream) for _ in range(train.accumulate)]
            except UserError as error:  # from a worker it comes with a traceback, the sentence last
                raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[-1]) from None
            self.waited = time.perf_counter() - self.asked
            yield batches

    def _optimize(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step over accumulated batches.

        Returns their mean loss terms, the norm of the gradient, and of all items the losses `per_item` and the
        timesteps `t`, `(N,)`.
        """
        train = self.config.train
        self.model.train()
        lr = learning_rate(self.step, self.total_steps, train.warmup_steps) * train.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in batches:
            uniform, noise = draws(batch["index"], self.objective.shape(), train.seed)
            batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
            terms = self.objective(self.network, batch, uniform.to(self.device), noise.to(self.device), self.dtype)
            self.scaler.scale(terms["loss"] / train.accumulate).backward()
            parts.append({name: value.detach() for name, value in terms.items()})
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip or math.inf)
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in TERMS if name in parts[0]}
        items = {name: torch.cat([part[name] for part in parts]) for name in ("per_item", "t")}
        self.step += 1
        if torch.stack([norm, *means.values()]).isfinite().all():  # the one wait for the GPU in a step
            self.bad_steps = 0
            self.scaler.step(self.optimizer)
            self._average()
        else:
            self._skip(means["loss"], items["per_item"], [i for batch in batches for i in batch["index"].tolist()])
        self.scaler.update()
        return means | {"gradient_norm": norm} | items

    def _skip(self, loss: Tensor, per_item: Tensor, indices: list[int]) -> None:
        """Count a step whose loss or gradient is not finite, and name its songs.

        Raises:
            UserError: it is one too many.
        """
        self.bad_steps, self.skipped = self.bad_steps + 1, self.skipped + 1
        finite = per_item.isfinite().tolist()
        spoilt = [index for index, good in zip(indices, finite, strict=True) if not good] or indices
        songs = "; ".join(dict.fromkeys(_title(*self.segments.songs(index)) for index in spoilt))
        if self.bad_steps >= BAD_STEPS:
            raise UserError(
                f"the loss or its gradient was not finite for {BAD_STEPS} steps in a row ("
                f"steps {self.step - BAD_STEPS + 1} to {self.step}, the last with the songs {songs}): "
                "lower train.lr, set train.amp to none, or look into these songs; no weights were changed by them"
            )
        if not self.scaler.is_enabled() or not loss.isfinite():  # else it is the scaler, looking for its scale
            tqdm.write(f"step {self.step} was skipped: loss or gradient not finite with the songs {songs}")

    @torch.no_grad()
    def _average(self) -> None:
        """EMA of the weights, with a warm-up so that it forgets the first ones: min(decay, (1 + n) / (10 + n))."""
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.model.state_dict().items():
            self.ema[name].lerp_(tensor, 1 - decay)

    def _validate(self, monitor: Monitor) -> None:
        """Separate the dev clips with the EMA weights; keep the best. After Ctrl-C it is left for the next start."""
        model = copy.deepcopy(self.model)  # not UNet(...), which would draw random weights
        model.load_state_dict(self.ema)
        try:
            result = validate(Separator(model, self.config, self.device), self.clips, EXAMPLES, lambda: self.stop)
        except KeyboardInterrupt:  # the second
            self._save("last.pt")
            raise
        if result is None:
            return
        median = statistics.median(s if math.isfinite(s) else -math.inf for s in result.scores)
        better = median > self.best_sdr
        self.best_sdr = median if better else self.best_sdr
        previous, self.validated = self.validated, self.step
        monitor.validated(self.step, previous, result, self.best_sdr)
        monitor.flush()
        if better:
            self._save("best.pt")
        self._save("last.pt")


def _title(singer: Track, band: Track) -> str:
    return f"'{singer.name}'" if singer is band else f"'{singer.name}' over '{band.name}'"


def learning_rate(step: int, total: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero, as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, total - warmup))


def draws(indices: Tensor, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """What decides a training item's timestep `(B,)` in [0, 1) and its noise `(B, C, F, T)`, by its global index."""
    uniform = [generator(seed, "timestep", i).random() for i in indices.tolist()]
    noise = [normal(shape, seed, "noise", i) for i in indices.tolist()]
    return torch.tensor(uniform, dtype=torch.float32), torch.stack(noise)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of a nested state."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
