"""The training loop. A run is a function of its config: interrupted and resumed, it draws what it would have drawn."""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from .checkpoint import load_checkpoint, save_checkpoint
from .config import Config, from_dict, require_same_network, to_dict
from .data import Segments, Track, dev_tracks, train_tracks
from .data.loading import load_segments
from .data.mixing import to_channels
from .device import amp_dtype
from .errors import UserError
from .metrics import sdr
from .objective import Objective
from .separator import Separator, first_timestep
from .streams import generator, normal
from .unet import UNet

BAD_STEPS = 20  # so many non-finite steps in a row end a run
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
        self.step, self.best_sdr, self.bad_steps = 0, -math.inf, 0
        self.run_id = time.strftime("%Y%m%d-%H%M%S")
        self.stop = False
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
            "best_sdr": self.best_sdr,
            "run_id": self.run_id,
        }

    def _resume(self, resume: str) -> None:
        path = self.folder / "last.pt" if resume == "auto" else Path(resume)
        if resume == "none" or (resume == "auto" and not path.exists()):
            return
        state = load_checkpoint(path)
        before = from_dict(state["config"])
        require_same_network(before, self.config, str(path))
        if resume == "auto" and before.data.dataset != self.config.data.dataset:
            raise UserError(
                f"{path} was trained with data.dataset {before.data.dataset}, not {self.config.data.dataset}; use "
                f"--resume none to start anew, --resume {path} to go on with it, or another log.checkpoint_dir"
            )
        self.model.load_state_dict(state["model"])
        self.ema = {name: tensor.to(self.device) for name, tensor in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.train.weight_decay
        if state["scaler"]:  # empty where it was not in use
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.run_id = state["step"], state["run_id"]
        if _decided_by(before) == _decided_by(self.config):
            self.best_sdr = state["best_sdr"]
        else:
            tqdm.write("the dev clips have changed: the best SDR so far is forgotten")
        tqdm.write(f"resumed {path} at step {self.step}")

    # The loop

    def run(self) -> int:
        """Train to the end; returns the exit code: 0, or 130 after Ctrl-C."""
        train = self.config.train
        if self.step >= self.total_steps:
            tqdm.write(f"{self.folder / 'last.pt'} has all its {self.total_steps} steps; --resume none starts anew")
            return 0
        previous = signal.signal(signal.SIGINT, self._interrupt)
        writer = SummaryWriter(str(Path(self.config.log.tb_log_dir) / self.run_id), purge_step=self.step + 1)
        parameters = sum(p.numel() for p in self.model.parameters())
        tqdm.write(
            f"training on {self.device}: {parameters / 1e6:.2f} M parameters, {len(self.segments.tracks)} tracks, "
            f"{len(self.clips)} dev clips, {self.total_steps} steps"
        )
        bar = tqdm(total=self.total_steps, initial=self.step, desc="Train", unit="step")
        terms: list[dict[str, Tensor]] = []
        began = time.monotonic()
        try:
            for batches in self._steps():
                terms += [self._optimize(batches)]
                bar.update()
                stop, last = self.stop, self.step == self.total_steps
                if self.step % self.config.log.every_steps == 0 or last:
                    seconds = (time.monotonic() - began) / len(terms)
                    self._log(writer, bar, terms, seconds)
                    terms = []
                if stop:  # saved at once: a second Ctrl-C, during the validation, loses nothing
                    save_checkpoint(self.folder / "last.pt", self.state())
                ended_epoch = self.step % train.steps_per_epoch == 0
                if self.step % train.val_every_steps == 0 or ended_epoch or last:
                    self._validate(writer)
                    save_checkpoint(self.folder / "last.pt", self.state())
                if stop:
                    break
                if not terms:
                    began = time.monotonic()
        finally:
            bar.close()
            writer.close()
            signal.signal(signal.SIGINT, previous)
        if stop and not last:
            tqdm.write(f"stopped at step {self.step}; the same command goes on from {self.folder / 'last.pt'}")
            return 130
        return 0

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
        for _ in range(self.step, self.total_steps):
            try:
                batches = [next(stream) for _ in range(train.accumulate)]
            except UserError as error:  # from a worker it comes with a traceback, the sentence last
                raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[-1]) from None
            yield batches

    def _optimize(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step over accumulated batches; returns their mean loss terms and the norm of the gradient."""
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
            parts.append({name: terms[name].detach() for name in TERMS if name in terms})
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip or math.inf)
        self.step += 1
        if torch.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self._average()
        self.scaler.update()
        self.bad_steps = 0 if torch.isfinite(norm) else self.bad_steps + 1
        if self.bad_steps >= BAD_STEPS:
            raise UserError(
                f"the loss was not finite for {BAD_STEPS} steps in a row (step {self.step}); "
                "lower train.lr or set train.amp to none"
            )
        return {name: torch.stack([p[name] for p in parts]).mean() for name in parts[0]} | {"gradient_norm": norm}

    @torch.no_grad()
    def _average(self) -> None:
        """EMA of the weights, with a warm-up so that it forgets the first ones: min(decay, (1 + n) / (10 + n))."""
        decay = min(self.config.train.ema_decay, (1 + self.step) / (10 + self.step))
        for name, tensor in self.model.state_dict().items():
            self.ema[name].lerp_(tensor, 1 - decay)

    def _log(self, writer: SummaryWriter, bar: tqdm, terms: list[dict[str, Tensor]], seconds: float) -> None:
        means = {name: float(torch.stack([t[name] for t in terms]).mean()) for name in terms[-1]}
        for name, mean in means.items():
            writer.add_scalar(f"train/{name}", mean, self.step)
        writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.step)
        writer.add_scalar("train/seconds_per_step", seconds, self.step)
        best = f"{self.best_sdr:.2f} dB" if math.isfinite(self.best_sdr) else "none yet"
        bar.set_postfix(loss=f"{means['loss']:.4f}", best=best)

    def _validate(self, writer: SummaryWriter) -> None:
        """Separate the dev clips with the EMA weights; keep the best."""
        model = UNet(self.config)
        model.load_state_dict(self.ema)
        scores = score_clips(Separator(model, self.config, self.device), self.clips)
        median = statistics.median(scores)
        writer.add_scalar("dev/sdr_median", median, self.step)
        tqdm.write(f"step {self.step}: median SDR of the vocals on {len(scores)} dev clips {median:.2f} dB")
        if median > self.best_sdr:
            self.best_sdr = median
            save_checkpoint(self.folder / "best.pt", self.state())


def _decided_by(config: Config) -> tuple:
    """What the dev score depends on besides the weights: scores under different settings cannot be compared."""
    train = config.train
    return config.data.dataset, config.data.dev_root, train.val_batches, train.val_seconds, train.seed


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


def dev_clips(tracks: list[Track], config: Config) -> list[tuple[Tensor, Tensor]]:
    """Fixed clips `(vocals, accompaniment)`, at most `val_seconds` from the middle of at most `val_batches` tracks.

    A clip in which nobody sings is left out: it has no SDR.

    Raises:
        UserError: no clip is left.
    """
    train, audio = config.train, config.audio
    count = min(train.val_batches, len(tracks))
    clips = []
    for track in (tracks[i * len(tracks) // count] for i in range(count)):
        seconds = min(train.val_seconds, track.seconds)
        start = (track.seconds - seconds) / 2
        vocals, accompaniment = (
            to_channels(track.read(side, start, seconds, audio.sample_rate), audio.channels)
            for side in ("vocals", "accompaniment")
        )
        if vocals.any():
            clips.append((vocals, accompaniment))
    if not clips:
        raise UserError("no dev track has accompaniment and, in its middle, vocals; see data.dev_root")
    return clips


def score_clips(separator: Separator, clips: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Global SDR of the vocals of each clip, dB."""
    rate = separator.config.audio.sample_rate
    return [sdr(vocals, separator.separate(vocals + rest, rate)[0]) for vocals, rest in tqdm(clips, "Dev", leave=False)]
