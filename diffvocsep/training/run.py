"""What a run consists of, what it leaves on disk, and how it goes on from there."""

from __future__ import annotations

import math
import shlex
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..checkpoint import release, save_checkpoint
from ..config import Config, to_dict
from ..registry import SAMPLERS
from ..unet import make_network
from ..util.atomic import remove_leftovers, require_folder
from ..util.cli import printable
from ..util.device import amp_dtype, channels_last
from ..util.errors import UserError
from ..util.strict_yaml import shorten
from ..util.untrusted import is_finite
from .backends import Backend
from .progress import Progress
from .resume import find_checkpoint, is_same_run, keep_aside, load_initial_state, restore, training_state
from .run_folder import FolderLock, make_run_folder, record_start
from .schedule import Schedule

SEED_LOCK = threading.Lock()  # all threads share torch's random stream, and on some TPUs each device is a thread


class Run:
    """A network, the average of its weights, its optimizer, and how far they have come.

    Args:
        resume: `auto` goes on from `last.pt` of `log.checkpoint_dir` if there is one, `none` starts anew, anything else
            is the path of a checkpoint.

    Raises:
        UserError: a checkpoint that does not fit the config, a network that cannot be resumed, or a folder that cannot
            be written.

    Attributes:
        model, ema, optimizer, scaler: the network, the average of its weights, and what changes them.
        progress, schedule: how far the run has come; its learning rate, validations and end.
        folder, curves: of its checkpoints, and of what TensorBoard shows.
        is_new: whether it begins, rather than goes on with a run of this folder.
        changes: a line for each setting that a resumed run has changed.
    """

    def __init__(self, config: Config, backend: Backend, resume: str) -> None:
        self.config, self.backend, self.device = config, backend, backend.device
        train = config.train
        with SEED_LOCK:
            torch.manual_seed(train.seed)
            self.model = make_network(config).to(self.device)
        self._require_parameters_only()
        self.dtype = amp_dtype(train.amp, self.device)
        if channels_last(train.channels_last, self.device, self.dtype):
            self.model = self.model.to(memory_format=torch.channels_last)
        if train.parts == "refine":
            self._freeze_all_but_refinement()
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.optimizer = backend.optimizer(train.optimizer, self.model.parameters(), train.lr, train.weight_decay)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.progress, self.schedule = Progress(run_id=time.strftime("%Y%m%d-%H%M%S")), Schedule(train)
        self.folder, self.is_new, self.changes = Path(config.log.checkpoint_dir), True, list[str]()
        self.command = f"the same command{', without --resume,' if resume != 'auto' else ''}"  # that goes on
        self.lock: FolderLock | None = None  # of `folder`, while the run trains
        self.last_saved = self.last_released = time.monotonic()  # when these files were last written
        if path := find_checkpoint(resume, self.folder / "last.pt"):
            self.resume_from(path, automatic=resume == "auto")

    def _require_parameters_only(self) -> None:
        """Raises UserError where the network keeps more than its parameters, each under one name: those alone are what
        is averaged, and what the state of the optimizer is checked against."""
        others = self.model.state_dict().keys() - dict(self.model.named_parameters()).keys()
        if others:
            raise UserError(
                f"the network {self.config.model.network} keeps what is no parameter of its own "
                f"({shorten(', '.join(sorted(others)), 150)}), and could not be resumed: register buffers with "
                "persistent=False, normalize without running statistics, and share no weights"
            )

    def _freeze_all_but_refinement(self) -> None:
        """For `train.parts=refine`. Raises UserError where the network has no such weights, or validation would not use
        them."""
        sampling = self.config.diffusion
        if sampling.ddim_steps < 2 or SAMPLERS[sampling.sampler].adds_noise(sampling.eta):
            raise UserError(
                "train.parts=refine trains steps after the first that add no noise, but validation has none: set "
                "diffusion.ddim_steps=2, and diffusion.sampler=ddim with diffusion.eta=0"
            )
        refining = [name for name, _ in self.model.named_parameters() if ".refine_" in f".{name}"]
        if not refining:
            raise UserError(
                f"the network {self.config.model.network} has no weights for guesses alone; use train.parts=all"
            )
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in refining)

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.schedule.ended(self.progress)

    @property
    def validation_due(self) -> bool:
        """Whether a validation belongs to this step and has not been done."""
        return self.schedule.validation_due(self.progress)

    @property
    def complete(self) -> bool:
        """Whether all steps are done, and the validation after the last one too."""
        return self.ended and self.progress.validated == self.progress.step

    @property
    def curves(self) -> Path:
        return Path(self.config.log.tb_log_dir) / self.progress.run_id

    def require_folders(self) -> None:
        """Make the folders of checkpoints and curves; raises UserError where nothing can be written."""
        require_folder(self.folder)
        require_folder(self.curves.parent)

    def state(self) -> dict:
        """What `last.pt` holds."""
        return training_state(self.config, self.progress, self.model, self.ema, self.optimizer, self.scaler)

    def save(self, name: str) -> None:
        """Write a checkpoint, unless there is something in it that is not finite.

        Raises:
            UserError: there is, or another training has taken the deleted folder; the file stays what it was.
        """
        if not self.backend.main:
            return
        state = self.backend.to_host(self.state())
        if not is_finite(state):
            raise UserError(
                f"the weights are not finite at step {self.progress.step}, so {self.folder / name} was left as it was; "
                "lower train.lr or set train.amp to none, and the same command goes on from last.pt"
            )
        if self.lock:
            self.lock.renew()
        save_checkpoint(self.folder / name, state)
        self.last_saved = time.monotonic()

    def release(self, name: str) -> None:
        """Write the averaged weights in half precision, if `log.release_minutes` asks for them: small enough to be
        fetched from a rented computer, and ready for `inference.py`. Raises UserError as `checkpoint.release` does."""
        if self.config.log.release_minutes and self.backend.main:
            state = {"ema": self.backend.to_host(self.ema), "config": to_dict(self.config), "step": self.progress.step}
            release(state, self.folder / f"{name}.safetensors", torch.float16)
            self.last_released = time.monotonic()

    def keep_aside(self, path: Path) -> None:
        """Let no checkpoint of this run replace one of another; see `resume.keep_aside`."""
        if self.backend.main:
            keep_aside(path, self.say)

    def resume_from(self, path: Path, automatic: bool) -> None:
        """Take the state of a checkpoint; raises UserError as `load_initial_state` does."""
        state = load_initial_state(path, self.config, automatic, self.say)
        progress, curves = state.progress, self.curves.parent / state.progress.run_id
        self.is_new = not is_same_run(path, self.folder / "last.pt", progress, curves, self.say)
        if self.is_new:
            progress = replace(progress, run_id=self.progress.run_id, best_sdr=-math.inf, dev_songs=[])
        self.progress, self.changes = progress, state.changes
        restore(state, self.model, self.ema, self.optimizer, self.scaler)

    def set_dev_songs(self, songs: list[str]) -> None:
        """Set the dev songs. If they have changed, the best score is forgotten: it cannot be compared with new ones."""
        if self.backend.main and self.progress.dev_songs not in ([], songs):
            self.progress.best_sdr = -math.inf
            self.say("the dev songs are others than before: the best SDR so far is forgotten")
        self.progress.dev_songs = songs

    def record_beginning(self, data: str) -> str:
        """Print a line that describes the run and record this start in its folder, which is made if the run is new.
        Only the first process calls it. Returns the record as text.

        Args:
            data: how much there is to learn from, in words.
        """
        remove_leftovers(self.folder)
        if self.is_new:
            self.progress.run_id = make_run_folder(self.curves).name
        about = record_start(self.curves, self.config, self.progress.step, str(self.backend), self.changes)
        parameters = sum(p.numel() for p in self.model.parameters())
        length = f"{self.config.train.max_minutes:g} minutes" if self.schedule.timed else f"{self.schedule.steps} steps"
        self.say(
            f"training on {self.backend}: {parameters / 1e6:.2f} M parameters, {data}, {length}; "
            f"config, versions and history in {self.curves}"
        )
        return about

    def say_how_to_use_it(self) -> None:
        """Where the weights are, how good they are, and the command that uses them."""
        best = self.folder / "best.pt"
        if best.exists():
            command = f"python inference.py --input song.mp3 --output vocals.wav --model_path {shlex.quote(str(best))}"
            self.say(f"the best weights are in {best}, {self.progress.best_sdr:.2f} dB on the dev songs: {command}")

    def say(self, text: str) -> None:
        """A line above the progress bars, from the first process only."""
        if self.backend.main:
            tqdm.write(printable(text))
