"""Train the separator.

    python train.py --config config.yaml                        some six minutes on synthetic songs, two CPU cores
    python train.py --config configs/stems.yaml data.root=TRAIN data.dev_root=DEV       your own songs
    python train.py --config config.yaml train.lr=0.0005        any key can be set on the command line
    torchrun --nproc_per_node=2 train.py --config config.yaml   two GPUs, each with train.batch_size items

The same command goes on after an interruption (`--resume auto`); `--resume none` starts anew.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until `main` installs its handlers: Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from diffvocsep.training.arguments import ask_before_download, note_without_gpu, training_arguments
from diffvocsep.util.cli import main, print_notes
from diffvocsep.util.interrupt import exit_on_signal


def run(argv: list[str] | None = None) -> int:
    parser = training_arguments(__doc__)
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    args = parser.parse_args(argv)

    with exit_on_signal():
        from diffvocsep.config import ignored_settings, load_config
        from diffvocsep.training.backends import find_backend
        from diffvocsep.training.failures import explained_failures
        from diffvocsep.training.trainer import Trainer

    config = load_config(args.config, args.overrides)
    backend = find_backend(args.device)
    if backend.main:
        print_notes([*ignored_settings(config), *note_without_gpu(config, backend.device.type)])
        ask_before_download(config, args.yes)
    with explained_failures(config, backend.device):
        code = Trainer(config, backend, args.resume).run()
    backend.close()
    return code


if __name__ == "__main__":
    main(run)
