"""The training loop. Interrupted and resumed, a run draws what it would have drawn.

`run` -> `_train` (the loop) -> `steps` (batches), `optimize` (one step), `update_ema`, `_validate`. What a run consists
of and how it is saved is in run.py, the loss in objective.py, the learning rate in schedule.py, what each kind of
hardware does its own way in backends.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import Config
from ..data import Segments, dev_tracks, train_tracks
from ..data.loader import load_segments, with_noise
from ..data.stems import fill_cache
from ..util.errors import UserError, WorkFailed
from ..util.interrupt import Interruption
from .backends import Backend
from .monitor import EXAMPLES, Monitor, NoMonitor
from .nonfinite import NonFiniteSteps
from .objective import Objective
from .progress import Progress
from .run import Run
from .run_folder import FolderLock
from .schedule import ema_decay
from .validation import Validation, dev_clips, ema_separator, median_sdr, validate

MANY_STEPS = 2**30  # more than any run by the clock takes
SAVE_SECONDS = 600.0  # the most that last.pt may lag behind, beside the time of a validation


class Trainer(Run):
    """Trains the network that its config names.

    Args:
        where: a device, or how several of them work together.
        resume: `auto` goes on from `last.pt` of `log.checkpoint_dir` if there is one, `none` starts anew, anything else
            is the path of a checkpoint.

    Raises:
        UserError: impossible data, or a checkpoint that does not fit the config.
    """

    def __init__(self, config: Config, where: Backend | torch.device, resume: str = "auto") -> None:
        self.objective = Objective(config)
        self.objective.diffusion.require_samplable()
        super().__init__(config, where if isinstance(where, Backend) else Backend(where), resume)
        train, main = config.train, self.backend.main
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.averages, self.trained = [self.ema[name] for name in trained], list(trained.values())
        network = self.backend.wrap(self.model)
        self.network = torch.compile(network) if train.compile else network
        with self.backend.main_first():
            if main:
                self.require_folders()
            dev = dev_tracks(config) if main else []
            self.set_dev_songs([track.name for track in dev])
            self.clips = dev_clips(dev, config) if main else []
            tracks = train_tracks(config)
            fill_cache(tracks, config.audio.sample_rate)
        self.samples_per_step = self.backend.world_size * train.accumulate * train.batch_size
        steps_left = MANY_STEPS if self.schedule.timed else max(0, self.schedule.steps - self.progress.step)
        self.segments = Segments(tracks, config, self.progress.samples + steps_left * self.samples_per_step)
        self.non_finite = NonFiniteSteps(self.segments)
        self.interruption, self.agreed_to_stop = Interruption(self.say), False
        self.last_time = time.monotonic()  # when the seconds of the run were last counted
        self.step_started, self.data_wait = 0.0, 0.0  # s: when the step began, and how long it waited for its batches

    def run(self) -> int:
        """Train to the end; returns the exit code: 0, or 130 after Ctrl-C or SIGTERM.

        Raises:
            ConnectionError: another process of this run is gone.
            UserError: another training writes into the same folder.
        """
        last = self.folder / "last.pt"
        if self.complete:
            self.say(f"{last} has all its {self.progress.step} steps; --resume none starts anew")
            return 0
        with ExitStack() as stack:
            with self.backend.main_first():
                self.lock = stack.enter_context(FolderLock(self.folder)) if self.backend.main else None
            return self._run(last)

    def _run(self, last: Path) -> int:
        monitor = self._open_monitor() if self.backend.main else NoMonitor()
        try:
            if self.is_new:
                self.keep_aside(last)
                self.save("last.pt")  # so that a run that is killed before its first validation keeps its folder
            if self.progress.best_sdr == -math.inf:  # an older best.pt has a score that cannot be compared
                self.keep_aside(self.folder / "best.pt")
            with self.interruption, self._save_if_process_lost(), self._save_if_disk_full():
                self._train(monitor)
                if self.complete:
                    monitor.finish()
                else:
                    monitor.flush()
                    self.save("last.pt")
                self.release("last")
                self.backend.barrier()
        finally:
            monitor.close()
        if self.complete:
            self.say_how_to_use_it()
            return 0
        self.say(f"stopped at step {self.progress.step}; {self.command} goes on from {last}")
        return 130

    def _open_monitor(self) -> Monitor:
        progress, steps = self.progress, None if self.schedule.timed else self.schedule.steps
        about = self.record_beginning(f"{len(self.segments.tracks)} tracks, {len(self.clips)} dev clips")
        return Monitor(self.curves, self.config, self.backend.host, progress.step, steps, progress.best_sdr, about,
                       self.backend.extra_curves, progress.validated == progress.step)  # fmt: skip

    @contextmanager
    def _save_if_process_lost(self) -> Iterator[None]:
        """Around what needs all processes: if one of them is gone, save the last whole step.

        Raises:
            ConnectionError: one is gone.
        """
        try:
            yield
        except RuntimeError as error:
            if not self.backend.is_process_lost(error):
                raise
            self.save("last.pt")
            why = str(error).strip().splitlines()[0]
            raise ConnectionError(
                f"another process of this run was lost after step {self.progress.step} ({why}); "
                f"the same command goes on from {self.folder / 'last.pt'}, with any number of processes"
            ) from error

    @contextmanager
    def _save_if_disk_full(self) -> Iterator[None]:
        """Where curves cannot be written, nor the terminal, checkpoints may: the last whole step is not lost."""
        try:
            yield
        except OSError:
            with suppress(OSError, UserError):
                self.save("last.pt")
            raise

    def _train(self, monitor: Monitor | NoMonitor) -> None:
        """All steps and validations, or those until Ctrl-C."""
        self.last_time = time.monotonic()
        if self.validation_due:  # Ctrl-C came before it
            self._validate(monitor)
        with closing(self.steps()) as steps:
            for batches in steps:
                terms = self.optimize(batches)
                seconds, rate = time.perf_counter() - self.step_started, self.optimizer.param_groups[0]["lr"]
                progress = self.progress
                monitor.step(progress.step, terms, seconds, self.data_wait, rate, progress.skipped, self.ended)
                if self.validation_due and not self.stopping:
                    self._validate(monitor)
                elif self.backend.main and time.monotonic() - self.last_saved > SAVE_SECONDS:
                    monitor.flush()
                    self.save("last.pt")
                if time.monotonic() - self.last_released > 60 * self.config.log.release_minutes:
                    self.release("last")

    @property
    def stopping(self) -> bool:
        """Whether no further step begins. One process stops as soon as a signal has come; several stop together, after
        the step in which all of them have learnt of it."""
        return self.interruption.requested if self.backend.world_size == 1 else self.agreed_to_stop

    def steps(self) -> Iterator[list[dict[str, Tensor]]]:
        """Lists of `train.accumulate` batches, one list per optimizer step, from the current step on."""
        train, backend = self.config.train, self.backend
        loaded = load_segments(self.segments, self.progress.samples, backend.host, backend.rank, backend.world_size)
        there = backend.host if self.config.data.cache == "device" else None
        stream = backend.batches(with_noise(loaded, self.objective.shape(), train.seed, there))
        try:
            while not self.ended and not self.stopping:
                self.step_started = time.perf_counter()
                batches = [next(stream) for _ in range(train.accumulate)]
                self.data_wait = time.perf_counter() - self.step_started
                yield batches
        except WorkFailed:  # Ctrl-C ends spawned workers that do not ignore it yet
            if not self.stopping:
                raise
        finally:
            loaded.close()
            stream.close()

    def optimize(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step over accumulated batches.

        Returns their mean loss terms, the norm of the gradient, and of all items the losses `per_item` and the
        timesteps `t`, `(N,)`.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr(self.progress)
        terms, stop, seconds = self._gradients(batches)
        scalars = torch.stack([stop, seconds, *(value for value in terms.values() if value.ndim == 0)])
        stop_share, passed, *values = scalars.tolist()  # waits for the GPU
        self.progress.step += 1
        self.progress.samples += self.samples_per_step
        self.progress.seconds += passed
        self.agreed_to_stop = stop_share > 0
        if all(map(math.isfinite, values)):
            self.non_finite.in_a_row = 0
            self.backend.update(self.scaler, self.optimizer)
            self.update_ema()
            self.backend.finish_step()
        else:
            self._skip(terms, batches)
        self.scaler.update()
        return terms

    def _gradients(self, batches: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The clipped gradients of accumulated batches of all processes; their terms as `optimize` returns them, the
        share of the processes that want to stop, and the seconds since they were last counted, by the mean of their
        clocks."""
        train, parts = self.config.train, []
        self.optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            with self.backend.accumulating(self.network, batch is batches[-1]):
                terms = self.objective(self.network, batch, batch["uniform"], batch["noise"], self.dtype)
                self.scaler.scale(terms["loss"] / train.accumulate).backward()
            parts.append({name: value.detach() for name, value in terms.items()})
        self.scaler.unscale_(self.optimizer)
        self.backend.reduce_gradients(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.grad_clip or math.inf)
        names = [name for name, value in parts[0].items() if value.ndim == 0]
        means = [torch.stack([part[name] for part in parts]).mean() for name in names]
        stop = torch.full_like(means[0], float(self.interruption.requested))
        passed = torch.full_like(means[0], self._seconds_passed())
        *means, stop, seconds = self.backend.mean(torch.stack([*means, stop, passed]))
        items = {name: self.backend.gather(torch.cat([part[name] for part in parts])) for name in ("per_item", "t")}
        return {**dict(zip(names, means, strict=True)), "gradient_norm": norm.to(stop.device), **items}, stop, seconds

    def _skip(self, terms: dict[str, Tensor], batches: list[dict[str, Tensor]]) -> None:
        """Count a step whose loss or gradient is not finite, and name its songs.

        Raises:
            UserError: it is one too many.
        """
        indices = self.backend.gather(torch.cat([batch["index"] for batch in batches]))
        self.progress.skipped += 1
        songs = self.non_finite.count(self.progress.step, indices.tolist(), terms["per_item"])
        if not self.scaler.is_enabled() or not terms["loss"].isfinite():  # else the scaler is looking for its scale
            self.say(f"step {self.progress.step} was skipped: loss or gradient not finite with the songs {songs}")

    @torch.no_grad()
    def update_ema(self) -> None:
        """One step of the average of what is trained: ema <- decay * ema + (1 - decay) * weights."""
        decay = ema_decay(self.progress.step, self.config.train.ema_decay)
        torch._foreach_lerp_(self.averages, self.trained, 1 - decay)

    def _seconds_passed(self) -> float:
        """By the clock of this process, since this was last called."""
        now = time.monotonic()
        passed, self.last_time = now - self.last_time, now
        return passed

    def _validate(self, monitor: Monitor | NoMonitor) -> None:
        """The first process separates the dev clips, and the others wait for it; that takes of the run's time as steps
        do. If Ctrl-C ended it, all stop here: the next start can catch up on it only if no further step is taken."""
        result = self._separate_clips() if self.backend.main else None
        self.backend.barrier()
        own = torch.tensor([[float(self.interruption.requested)], [self._seconds_passed()]], device=self.backend.host)
        stop_share, passed = (float(self.backend.mean(value)) for value in own)  # the graph that the barrier has in XLA
        self.agreed_to_stop = self.agreed_to_stop or stop_share > 0
        self.progress.seconds += passed
        if self.backend.main and result is None:
            return
        before = replace(self.progress)
        self.progress.mark_validated()
        if result is not None:
            self._take_note(monitor, result, before)

    def _separate_clips(self) -> Validation | None:
        """The dev clips with the EMA weights; None if Ctrl-C ended it."""
        separator = ema_separator(self.model, self.ema, self.config, self.backend.host)
        try:
            return validate(separator, self.clips, EXAMPLES, lambda: self.interruption.requested)
        except KeyboardInterrupt:  # the second
            self.save("last.pt")
            raise

    def _take_note(self, monitor: Monitor | NoMonitor, result: Validation, before: Progress) -> None:
        """Show a validation, and keep the best. If a full disk forbids it, the run is as it was `before`, and the next
        start validates: nothing shows this score."""
        progress, median = self.progress, median_sdr(result.scores)
        better = median > progress.best_sdr
        progress.best_sdr = max(median, progress.best_sdr)
        try:
            monitor.log_validation(
                progress.step, before.validated, result, progress.best_sdr, self.schedule.fraction_done(progress)
            )
            monitor.flush()
            if better:
                self.save("best.pt")
        except OSError:
            self.progress = before
            raise
        self.save("last.pt")
        if better:
            self.release("best")
