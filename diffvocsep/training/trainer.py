"""The training loop. A run is a function of its config: interrupted and resumed, it draws what it would have drawn."""

from __future__ import annotations

import copy
import math
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checkpoint import is_finite, release, save_checkpoint
from ..config import Config, to_dict
from ..data import Segments, Track, dev_tracks, train_tracks
from ..data.loader import load_segments, with_noise
from ..data.stems import fill_cache
from ..separator import Separator
from ..unet import make_network
from ..util.atomic import remove_leftovers, require_folder
from ..util.device import amp_dtype, channels_last
from ..util.errors import UserError, WorkFailed
from ..util.interrupt import Interruption
from .backends import Backend
from .monitor import EXAMPLES, Monitor
from .objective import Objective
from .progress import Course, Progress
from .resume import find_checkpoint, is_copy, keep_aside, load_state, restore
from .run_folder import alone_in, describe_run, new_folder
from .schedule import ema_decay
from .validation import dev_clips, median_sdr, validate

BAD_STEPS = 20  # so many non-finite steps in a row end a run
SAVE_SECONDS = 600.0  # last.pt is at most so old, or one validation
TERMS = ("loss", "diffusion", "vocals")  # of the objective, as logged
SEEDED = threading.Lock()  # torch's random stream belongs to all threads, and on some TPUs each device has one


class Trainer:
    """Trains a UNet as its config says.

    Args:
        where: a device, or how several of them work together.
        resume: `auto` goes on from `last.pt` of `log.checkpoint_dir` if there is one, `none` starts anew, anything else
            is the path of a checkpoint.

    Raises:
        UserError: impossible data, or a checkpoint that does not fit the config.
    """

    def __init__(self, config: Config, where: Backend | torch.device, resume: str = "auto") -> None:
        self.backend = where if isinstance(where, Backend) else Backend(where)
        self.config, self.device = config, self.backend.device
        train = config.train
        self.folder = Path(config.log.checkpoint_dir)
        self.course = Course(train)
        self.objective = Objective(config)
        self.objective.diffusion.check()
        with SEEDED:
            torch.manual_seed(train.seed)
            self.model = make_network(config).to(self.device)
        self.dtype = amp_dtype(train.amp, self.device)
        if channels_last(train.channels_last, self.device, self.dtype):
            self.model = self.model.to(memory_format=torch.channels_last)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.optimizer = self.backend.optimizer(train.optimizer, self.model.parameters(), train.lr, train.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.progress = Progress(run_id=time.strftime("%Y%m%d-%H%M%S"))
        self.bad_steps = 0  # in a row
        self.anew = True  # no run of this folder goes on
        self.without = ", without --resume," if resume != "auto" else ""  # the same command goes on
        self.changes: list[str] = []  # what a resumed run does differently
        self.interruption, self.agreed = Interruption(self._say), False  # the latter: of any process, all know
        # When a checkpoint and released weights were last written, and a step last taken.
        self.saved = self.released = self.clock = time.monotonic()
        self.asked, self.waited = 0.0, 0.0  # when the last batches were asked for, and how long they took, s
        if path := find_checkpoint(resume, self.folder / "last.pt"):
            self._go_on(path, automatic=resume == "auto")
        network = self.backend.wrap(self.model)
        self.network = torch.compile(network) if train.compile else network
        with self.backend.main_first():
            if self.backend.main:
                require_folder(self.folder)
                require_folder(Path(config.log.tb_log_dir))
            dev = dev_tracks(config) if self.backend.main else []
            self._compare_with([track.name for track in dev])
            self.clips = dev_clips(dev, config) if self.backend.main else []
            tracks = train_tracks(config)
            fill_cache(tracks, config.audio.sample_rate)
        self.per_step = self.backend.world_size * train.accumulate * train.batch_size
        left = 2**40 if self.course.timed else max(0, self.course.steps - self.progress.step) * self.per_step
        self.segments = Segments(tracks, config, self.progress.samples + left)

    # Going on

    def state(self) -> dict:
        """Everything that `_go_on` needs, as tensors and plain values."""
        return {
            "config": to_dict(self.config),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **self.progress.saved(),
        }

    def _go_on(self, path: Path, automatic: bool) -> None:
        """Take the state of a checkpoint; raises UserError as `load_state` does."""
        state = load_state(path, self.config, automatic, self._say)
        last = self.folder / "last.pt"
        before, curves = state.progress, Path(self.config.log.tb_log_dir) / state.progress.run_id
        if path.resolve() != last.resolve():
            self.anew = True  # it is another run, whose curves stay its own
        elif is_copy(last, before.run_id, curves):
            self._say(f"{last} is a copy, whose original can go on as well: this run gets curves of its own")
        else:
            self.anew = False
        if self.anew:
            before = replace(before, run_id=self.progress.run_id, best_sdr=-math.inf, dev_songs=[])
        self.progress, self.changes = before, state.changes
        restore(state, self.model, self.ema, self.optimizer, self.scaler)

    def _compare_with(self, songs: list[str]) -> None:
        """The songs that validate now: on others, scores cannot be compared."""
        if self.backend.main and self.progress.dev_songs not in ([], songs):
            self.progress.best_sdr = -math.inf
            self._say("the dev songs are others than before: the best SDR so far is forgotten")
        self.progress.dev_songs = songs

    def _save(self, name: str) -> None:
        """Write a checkpoint, unless there is something in it that is not finite.

        Raises:
            UserError: there is; the file stays what it was.
        """
        if not self.backend.main:
            return
        state = self.backend.to_host(self.state())
        if not is_finite(state):
            raise UserError(
                f"the weights are not finite at step {self.progress.step}, so {self.folder / name} was left as it was; "
                "lower train.lr or set train.amp to none, and the same command goes on from last.pt"
            )
        save_checkpoint(self.folder / name, state)
        self.saved = time.monotonic()

    def _release(self, name: str) -> None:
        """The averaged weights in half precision, if `log.release_minutes` asks for them: small enough to be fetched
        from a rented computer, and ready for `inference.py`."""
        if self.config.log.release_minutes:
            state = {"ema": self.backend.to_host(self.ema), "config": to_dict(self.config), "step": self.progress.step}
            release(state, self.folder / f"{name}.safetensors", torch.float16)
            self.released = time.monotonic()

    # The loop

    def run(self) -> int:
        """Train to the end; returns the exit code: 0, or 130 after Ctrl-C or a polite kill.

        Raises:
            ConnectionError: another process of this run is gone.
            UserError: another training writes into the same folder.
        """
        last = self.folder / "last.pt"
        if self.ended and self.progress.validated == self.progress.step:
            self._say(f"{last} has all its {self.progress.step} steps; --resume none starts anew")
            return 0
        with alone_in(self.folder) if self.backend.main else nullcontext():
            return self._run(last)

    def _run(self, last: Path) -> int:
        monitor = self._monitor() if self.backend.main else None
        try:
            if self.anew:
                if monitor:
                    keep_aside(last, self._say)
                self._save("last.pt")  # so that a run that is killed before its first validation keeps its folder
            if (
                monitor and self.progress.best_sdr == -math.inf
            ):  # there is none yet that this run's can be compared with
                keep_aside(self.folder / "best.pt", self._say)
            with self.interruption:
                self._train(monitor)
                finished = self.ended and self.progress.validated == self.progress.step
                if monitor:
                    self._release("last")
                if finished and monitor:
                    monitor.finish()
                elif monitor:
                    monitor.flush()
                    self._save("last.pt")
                with self._together():
                    self.backend.wait()
        finally:
            if monitor:
                monitor.close()
        if finished:
            self._say_what_is_there()
            return 0
        self._say(f"stopped at step {self.progress.step}; the same command{self.without} goes on from {last}")
        return 130

    def _monitor(self) -> Monitor:
        """Describe the run, in the terminal and in its folder."""
        remove_leftovers(self.folder)
        folder = Path(self.config.log.tb_log_dir) / self.progress.run_id
        if self.anew:
            folder = new_folder(folder)
            self.progress.run_id = folder.name
        about = describe_run(folder, self.config, self.progress.step, str(self.backend), self.changes)
        parameters = sum(p.numel() for p in self.model.parameters())
        minutes = self.config.train.max_minutes
        length = f"{minutes:g} minutes" if minutes else f"{self.course.steps} steps"
        self._say(
            f"training on {self.backend}: {parameters / 1e6:.2f} M parameters, {len(self.segments.tracks)} tracks, "
            f"{len(self.clips)} dev clips, {length}; config, versions and history in {folder}"
        )
        total = None if minutes else self.course.steps
        return Monitor(folder, self.config, self.backend.host, self.progress.step, total, self.progress.best_sdr, about,
                       self.backend.report, self.progress.validated == self.progress.step)  # fmt: skip

    def _say_what_is_there(self) -> None:
        """Where the weights are, how good they are, and the command that uses them."""
        best = self.folder / "best.pt"
        if best.exists():
            command = f"python inference.py --input song.mp3 --output vocals.wav --model_path {shlex.quote(str(best))}"
            self._say(f"the best weights are in {best}, {self.progress.best_sdr:.2f} dB on the dev songs: {command}")

    def _say(self, text: str) -> None:
        if self.backend.main:
            tqdm.write(text)

    def _train(self, monitor: Monitor | None) -> None:
        """All steps and validations, or those until Ctrl-C."""
        if self.due:  # Ctrl-C came before it
            self._validate_alone(monitor)
        with closing(self.steps()) as steps:
            for batches in steps:
                terms = self.optimize(batches)
                seconds, rate = time.perf_counter() - self.asked, self.optimizer.param_groups[0]["lr"]
                if monitor:
                    monitor.step(
                        self.progress.step, terms, seconds, self.waited, rate, self.progress.skipped, self.ended
                    )
                if self.due and not self.stopping:
                    self._validate_alone(monitor)
                elif monitor and time.monotonic() - self.saved > SAVE_SECONDS:
                    monitor.flush()
                    self._save("last.pt")
                if monitor and time.monotonic() - self.released > 60 * self.config.log.release_minutes:
                    self._release("last")

    @property
    def ended(self) -> bool:
        return self.course.ended(self.progress)

    @property
    def due(self) -> bool:
        return self.course.due(self.progress)

    @property
    def stopping(self) -> bool:
        """Alone, at once; of several processes, all after the same step."""
        return self.interruption.asked if self.backend.world_size == 1 else self.agreed

    def steps(self) -> Iterator[list[dict[str, Tensor]]]:
        """Lists of `train.accumulate` batches, one list per optimizer step, from the current step on."""
        train, backend = self.config.train, self.backend
        made = load_segments(self.segments, self.progress.samples, backend.host, backend.rank, backend.world_size)
        there = backend.host if self.config.data.cache == "device" else None
        stream = backend.batches(with_noise(made, self.objective.shape(), train.seed, there))
        self.clock = time.monotonic()
        try:
            while not self.ended and not self.stopping:
                self.asked = time.perf_counter()
                batches = [next(stream) for _ in range(train.accumulate)]
                self.waited = time.perf_counter() - self.asked
                yield batches
        except WorkFailed:  # Ctrl-C ends spawned loaders that have not come to ignore it yet
            if not self.stopping:
                raise
        finally:
            made.close()
            stream.close()

    def optimize(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One optimizer step over accumulated batches.

        Returns their mean loss terms, the norm of the gradient, and of all items the losses `per_item` and the
        timesteps `t`, `(N,)`.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate(self.progress)
        with self._together():
            terms, stop, seconds = self._gradients(batches)
        self.progress.step += 1
        self.progress.samples += self.per_step
        scalars = torch.stack([stop, seconds, *(value for value in terms.values() if value.ndim == 0)])
        values = scalars.tolist()  # the one wait for the GPU in a step
        self.agreed = values[0] > 0
        self.progress.seconds += values[1]
        if all(map(math.isfinite, values)):
            self.bad_steps = 0
            self.backend.update(self.scaler, self.optimizer)
            self.average()
            self.backend.finish_step()
        else:
            with self._together():
                indices = self.backend.gather(torch.cat([batch["index"] for batch in batches]))
            self._skip(terms["loss"], terms["per_item"], indices.tolist())
        self.scaler.update()
        return terms

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What needs all processes. Raises ConnectionError if one of them is gone; the last whole step is saved."""
        try:
            yield
        except RuntimeError as error:
            if not self.backend.lost(error):
                raise
            self._save("last.pt")
            why = str(error).strip().splitlines()[0]
            raise ConnectionError(
                f"another process of this run was lost after step {self.progress.step} ({why}); "
                f"the same command goes on from {self.folder / 'last.pt'}, with any number of processes"
            ) from error

    def _gradients(self, batches: list[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The clipped gradients of accumulated batches of all processes; their terms as `optimize` returns them, the
        share of the processes that want to stop, and the seconds since the step before, by the mean of their clocks."""
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
        names = [name for name in TERMS if name in parts[0]]
        means = [torch.stack([part[name] for part in parts]).mean() for name in names]
        asked = torch.full_like(means[0], float(self.interruption.asked))
        now = time.monotonic()
        passed, self.clock = torch.full_like(means[0], now - self.clock), now
        *means, stop, seconds = self.backend.mean(torch.stack([*means, asked, passed]))
        items = {name: self.backend.gather(torch.cat([part[name] for part in parts])) for name in ("per_item", "t")}
        return {**dict(zip(names, means, strict=True)), "gradient_norm": norm.to(stop.device), **items}, stop, seconds

    def _skip(self, loss: Tensor, per_item: Tensor, indices: list[int]) -> None:
        """Count a step whose loss or gradient is not finite, and name its songs.

        Raises:
            UserError: it is one too many.
        """
        self.bad_steps += 1
        self.progress.skipped += 1
        finite = per_item.isfinite().tolist()
        spoilt = [index for index, good in zip(indices, finite, strict=True) if not good] or indices
        songs = "; ".join(dict.fromkeys(_title(*self.segments.songs(index)) for index in spoilt))
        if self.bad_steps >= BAD_STEPS:
            last = self.progress.step
            raise UserError(
                f"the loss or its gradient was not finite for {BAD_STEPS} steps in a row ("
                f"steps {last - BAD_STEPS + 1} to {last}, the last with the songs {songs}): "
                "lower train.lr, set train.amp to none, or look into these songs; no weights were changed by them"
            )
        if not self.scaler.is_enabled() or not loss.isfinite():  # else it is the scaler, looking for its scale
            self._say(f"step {self.progress.step} was skipped: loss or gradient not finite with the songs {songs}")

    @torch.no_grad()
    def average(self) -> None:
        """EMA of the weights."""
        decay = ema_decay(self.progress.step, self.config.train.ema_decay)
        weights = self.model.state_dict()
        torch._foreach_lerp_([self.ema[name] for name in weights], list(weights.values()), 1 - decay)

    def _validate_alone(self, monitor: Monitor | None) -> None:
        """The first process validates, and the others wait for it. If Ctrl-C came meanwhile, all stop here: after one
        more step, a validation that it ended would never be made up for."""
        self._validate(monitor)
        asked = torch.full((1,), float(self.interruption.asked), device=self.backend.host)
        with self._together():
            self.backend.wait()
            self.agreed = self.agreed or bool(self.backend.mean(asked) > 0)

    def _validate(self, monitor: Monitor | None) -> None:
        """Separate the dev clips with the EMA weights; keep the best. After Ctrl-C it is left for the next start."""
        if not self.backend.main or monitor is None:
            self.progress.scored()
            return
        model = copy.deepcopy(self.model).to(self.backend.host)  # not UNet(...), which would draw random weights
        model.load_state_dict(self.ema)
        try:
            result = validate(
                Separator(model, self.config, self.backend.host), self.clips, EXAMPLES, lambda: self.interruption.asked
            )
        except KeyboardInterrupt:  # the second
            self._save("last.pt")
            raise
        if result is None:
            return
        median = median_sdr(result.scores)
        better = median > self.progress.best_sdr
        self.progress.best_sdr = max(median, self.progress.best_sdr)
        previous = self.progress.validated
        self.progress.scored()
        monitor.validated(
            self.progress.step, previous, result, self.progress.best_sdr, self.course.share(self.progress)
        )
        monitor.flush()
        if better:
            self._save("best.pt")
            self._release("best")
        self._save("last.pt")


def _title(singer: Track, band: Track) -> str:
    return f"'{singer.name}'" if singer is band else f"'{singer.name}' over '{band.name}'"
