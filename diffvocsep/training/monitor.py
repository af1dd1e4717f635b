"""What a run shows: progress bars, TensorBoard's curves, pictures and sounds, and the same curves as a table.

Nothing here draws a random number, and nothing waits for a GPU but every `log.every_steps` steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from tqdm.auto import tqdm

from ..config import Config, to_dict
from ..plot import draw_separation
from .events import EventFile
from .history import History
from .validation import Validation, median_sdr

EXAMPLES = 3  # dev clips that are drawn and can be listened to
PICTURES = 10  # how often in a run, about
QUARTERS = 4

# Columns of history.csv and the names of their curves.
CURVES = {
    "loss": "train/loss",
    "diffusion": "train/diffusion",
    "vocals": "train/vocals",
    "consistency": "train/consistency",
    "gradient_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "skipped_steps": "train/skipped_steps",
    **{f"loss_quarter_{k}": f"loss_by_noise/quarter_{k}" for k in range(1, QUARTERS + 1)},
    "loss_pure_noise": "loss_by_noise/pure_noise",
    "steps_per_second": "speed/steps_per_second",
    "data_wait": "speed/data_wait",
    "memory_gib": "memory/program_gib",
    "gpu_memory_gib": "memory/gpu_gib",
    "compilations": "speed/compilations",
    "sdr_median": "dev/sdr_median",
    "sdr_median_one_step": "dev/sdr_median_one_step",
    "sdr_best": "dev/sdr_best",
}
SCORES = ("sdr_median", "sdr_median_one_step", "sdr_best")


class Monitor:
    """The bars, the TensorBoard folder and the table of one run.

    Args:
        folder: of the run; a run that goes on writes into the same folder, from `step` on.
        step, total: steps already done, and steps of the whole run; None where the clock ends it.
        scored: whether a validation that is due at `step` has been done; if not, it will be done (again).
        best: the highest dev score so far, dB.
        about: what was started, as text.
        more_curves: gives further values for the curves, whenever a point is drawn.
    """

    def __init__(
        self, folder: Path, config: Config, device: torch.device, step: int, total: int | None, best: float, about: str,
        extra_curves: Callable[[], dict[str, float]] = dict, scored: bool = True,
    ) -> None:  # fmt: skip
        self.extra_curves = extra_curves
        self.config, self.device, self.total, self.best = config, device, total, best
        table = folder / "history.csv"
        self.writer = EventFile(folder, purge_step=step + scored)
        self.settings = {f"{s}.{key}": value for s, keys in to_dict(config).items() for key, value in keys.items()}
        self.writer.text("config", "\n".join(f"    {key}: {value}" for key, value in self.settings.items()), step)
        self.writer.text("run", "\n".join(f"    {line}" for line in about.splitlines()), step)
        experiment, start, self.end = self._hparams()
        if not table.exists():  # the run begins, be it at a step that another one has come to
            self.writer.add(experiment)
            self.writer.add(start)
            self.flush()
        self.history = History(table, tuple(CURVES), step, redone=() if scored else SCORES)
        if not scored:  # with the scores at `step`, the writer has purged what stays
            for name, value in self.history.values_at(step):
                self.writer.scalar(CURVES[name], value, step)
        self.per_epoch = config.train.steps_per_epoch
        epochs, done = total and math.ceil(total / self.per_epoch), step // self.per_epoch
        self.epochs = tqdm(total=epochs, initial=done, desc="Epochs", unit="epoch")
        self.bar: tqdm | None = None
        self.reference_written, self.pictures_drawn = False, 0
        self.terms: list[dict[str, Tensor]] = []
        self.seconds, self.waited = 0.0, 0.0
        self.epoch_loss = torch.zeros(2, device=device)  # sum and number of the epoch's finite losses

    def step(
        self, step: int, terms: dict[str, Tensor], seconds: float, waited: float, rate: float, skipped: int,
        last: bool = False,
    ) -> None:  # fmt: skip
        """Take note of a step.

        Args:
            terms: its losses; those of them that are no curves but items' (`per_item`, `t`) become the loss by noise.
            seconds, waited: how long it took, and how much of that it waited for data, s.
            rate: its learning rate.
            skipped: steps skipped so far.
            last: the clock ends the run with this step; where steps do, it is known.
        """
        last, self.latest = last or step == self.total, (step, rate, skipped)
        if self.bar is None:
            self._open_bar(step)
        self.terms.append(terms)
        loss = terms["loss"]
        self.epoch_loss = self.epoch_loss + torch.stack([loss.nan_to_num(0, 0, 0), loss.isfinite().float()])
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        self.bar.update()
        if step % self.config.log.every_steps == 0 or last:
            self._log(step, rate, skipped)
        if step % self.per_epoch == 0 or last:
            self._close_bar()

    def _open_bar(self, step: int) -> None:
        """The bar of the epoch that `step` belongs to."""
        epoch, done = divmod(step - 1, self.per_epoch)
        length = min(self.per_epoch, self.total - epoch * self.per_epoch) if self.total else self.per_epoch
        name = f"Train {epoch + 1}/{self.epochs.total}" if self.total else f"Train {epoch + 1}"
        self.bar = tqdm(total=length, initial=done, desc=name, unit="step", leave=False)
        self.epoch_loss = torch.zeros_like(self.epoch_loss)

    def _close_bar(self) -> None:
        """The epoch is over."""
        self.bar.close()
        self.bar = None
        self.epochs.update()
        self._show()

    def _log(self, step: int, rate: float, skipped: int) -> None:
        """Write the means over the steps since the last time."""
        names = [name for name, value in self.terms[-1].items() if value.ndim == 0]
        if unknown := set(names) - CURVES.keys():
            raise ValueError(f"monitor.CURVES names no curve for the loss terms {', '.join(sorted(unknown))}")
        values = {name: finite_mean(torch.stack([t[name] for t in self.terms])) for name in names}
        if "per_item" in self.terms[-1]:
            per_item, t = (torch.cat([terms[name] for terms in self.terms]).cpu() for name in ("per_item", "t"))
            values |= loss_by_noise(per_item, t, self.config.diffusion.timesteps)
        self.seconds = max(self.seconds, 1e-9)
        wait = self.waited / self.seconds
        values |= {"learning_rate": rate, "skipped_steps": skipped, "data_wait": wait}
        values |= {"steps_per_second": len(self.terms) / self.seconds, **memory(self.device), **self.extra_curves()}
        self._write(step, values)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{rate:.2g}", wait=f"{wait:.0%}")
        self._show()
        self.terms, self.seconds, self.waited = [], 0.0, 0.0

    def _show(self) -> None:
        best = f"{self.best:.2f} dB" if math.isfinite(self.best) else "none yet"
        total, steps = self.epoch_loss.tolist()
        self.epochs.set_postfix(loss=f"{total / max(1, steps):.4f}", best=best)

    def log_validation(
        self, step: int, previous: int, result: Validation, best: float, progress: float | None = None
    ) -> None:
        """Write the scores of a validation; about `PICTURES` times a run, and the first time, pictures and sounds too.

        Args:
            previous: the step of the validation before this one.
            best: the highest median so far, dB.
            progress: the share of the time that is over, where the clock ends the run.
        """
        self.best = best
        one_step, several = median_sdr(result.one_step), median_sdr(result.scores)
        values = {"sdr_median": several, "sdr_median_one_step": one_step, "sdr_best": best}
        self._write(step, {name: value for name, value in values.items() if math.isfinite(value)})
        steps = self.config.diffusion.ddim_steps
        also = f": one step {one_step:.2f} dB, {steps} steps" if steps > 1 else ""
        tqdm.write(f"step {step}: median SDR of the vocals on {len(result.scores)} dev clips{also} {several:.2f} dB")
        self._show()
        if self.total is None:
            before, self.pictures_drawn = self.pictures_drawn, int((progress or 0) * PICTURES)
        else:
            before, self.pictures_drawn = (at * PICTURES // self.total for at in (previous, step))
        if not self.reference_written or self.pictures_drawn > before:
            self._examples(step, result.examples)

    def _examples(self, step: int, examples: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Spectrograms and sounds (mono); the sounds of mixture and truth do not change and are written once."""
        rate = self.config.audio.sample_rate
        for n, (mixture, vocals, truth) in enumerate(examples, 1):
            self.writer.image(f"clip_{n}/spectrograms", picture(mixture, vocals, truth, rate), step)
            sounds = {"vocals": vocals, "counterfactual": mixture - vocals}
            if not self.reference_written:
                sounds |= {"mixture": mixture, "true_vocals": truth}
            sounds = {name: sound.mean(0) for name, sound in sounds.items()}
            peak = max([1.0, *(float(sound.abs().max()) for sound in sounds.values())])
            for name, sound in sounds.items():
                self.writer.audio(f"clip_{n}/{name}", sound / peak, step, rate)
        self.reference_written = True

    def _write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.scalar(CURVES[name], value, step)
        self.writer.flush()
        self.history.add(step, values)

    def _hparams(self) -> tuple[Summary, Summary, Summary]:
        """The settings beside the dev scores in TensorBoard's table of runs, where the last score is the final one."""
        settings = {
            f"{s}.{key}": value for s, keys in to_dict(self.config).items() if s != "log" for key, value in keys.items()
        }
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        metrics = {CURVES[name]: 0.0 for name in SCORES}
        return hparams(plain, metrics)

    def flush(self) -> None:
        """Write to disk what TensorBoard still holds back: what a checkpoint has done must be in the curves."""
        self.writer.flush()

    def finish(self) -> None:
        """The run has all its steps. Where the clock ended it in a validation, the last of them are written here."""
        if self.terms:
            self._log(*self.latest)
        if self.bar is not None:
            self._close_bar()
        self.writer.add(self.end)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.epochs.close()
        self.writer.close()
        self.history.write()
        if self.history.pending:
            tqdm.write(f"{self.history.path} is open elsewhere: its last {len(self.history.pending)} rows are missing")


class NoMonitor:
    """Stands for the monitor in processes that show nothing: all of a run but the first."""

    def step(self, *_: object) -> None: ...

    def flush(self) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


def finite_mean(values: Tensor) -> float:
    """Mean of the finite ones of `(N,)` values; NaN if there is none."""
    return float(values[values.isfinite()].mean())


def loss_by_noise(per_item: Tensor, t: Tensor, timesteps: int) -> dict[str, float]:
    """Mean of the losses `(N,)` of items in each quarter of the timesteps `(N,)`, and of those at t = T - 1, which is
    nothing but noise; levels without items are left out."""
    levels = {f"loss_quarter_{k + 1}": t * QUARTERS // timesteps == k for k in range(QUARTERS)}
    last = t == timesteps - 1
    levels = {name: at & ~last for name, at in levels.items()} | {"loss_pure_noise": last}
    return {name: finite_mean(per_item[at]) for name, at in levels.items() if per_item[at].isfinite().any()}


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process now, and the most that tensors took on its GPU, GiB."""
    values = {"memory_gib": psutil.Process().memory_info().rss / 2**30}
    if device.type == "cuda":
        values["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values


def picture(mixture: Tensor, vocals: Tensor, truth: Tensor, rate: int) -> np.ndarray:
    """The spectrograms of a separation, `(H, W, 3)` of 8 bit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw_separation(mixture, vocals, rate, true_vocals=truth)
    figure.set_dpi(80)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
