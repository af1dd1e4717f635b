"""Train the separator on TPUs: one process for each, each with `train.batch_size` items.

    pip install -r requirements-tpu.txt
    python train_tpu.py --config config.yaml                      on a TPU VM or on Colab
    PJRT_DEVICE=CPU python train_tpu.py --config config.yaml      the same without a TPU

Checkpoints are those of train.py: either goes on with what the other saved.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # until `main` installs its handlers: Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from concurrent.futures.process import BrokenProcessPool

from diffvocsep.config import Config, ignored_settings, load_config
from diffvocsep.training.arguments import ask_before_download, training_arguments
from diffvocsep.util.cli import main, print_notes
from diffvocsep.util.errors import UserError
from diffvocsep.util.interrupt import exit_on_signal, install_handlers

if (
    __name__ == "__mp_main__"
):  # in a child of torch_xla, which runs `process` in a thread: only the main one gets signals
    install_handlers()


def process(index: int, config: Config, resume: str) -> None:
    """What each device does."""
    from diffvocsep.training.failures import explained_failures
    from diffvocsep.training.trainer import Trainer
    from diffvocsep.training.xla import XLA, kill_all_processes

    try:
        backend = XLA(config.train)
        with explained_failures(config, backend.device):
            code = Trainer(config, backend, resume).run()
    except Exception as error:
        kill_all_processes(error)
        raise
    if code:
        raise KeyboardInterrupt


def run(argv: list[str] | None = None) -> int:
    args = training_arguments(__doc__).parse_args(argv)
    config = load_config(args.config, args.overrides)
    print_notes(ignored_settings(config))
    chosen = "PJRT_DEVICE" in os.environ
    try:
        with exit_on_signal():
            import torch_xla
            import torch_xla.runtime as runtime
    except ImportError:
        raise UserError(
            "torch_xla is not installed; make an environment of its own: pip install -r requirements-tpu.txt"
        ) from None
    os.environ.pop("XLA_USE_SPMD", None)  # another way to use many devices, which excludes this one
    if not chosen and runtime.device_type() == "CPU":
        raise UserError(
            "no TPU was found; use train.py here, or set PJRT_DEVICE=CPU to run this on the CPU all the same"
        )
    ask_before_download(config, args.yes)
    try:
        torch_xla.launch(process, args=(config, args.resume))
    except BrokenProcessPool:
        print("training has ended, for one of its processes has; above stands what it said", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main(run)
