"""Train the separator.

    python train.py --config config.yaml                          ten minutes on synthetic songs, on any computer
    python train.py --config configs/stems.yaml data.root=DIR     your own songs
    python train.py --config config.yaml train.lr=0.0005          any key can be set on the command line
    torchrun --nproc_per_node=N train.py --config config.yaml     N GPUs, each with train.batch_size items

The same command goes on after an interruption (`--resume auto`); `--resume none` starts anew.
"""

from __future__ import annotations

import argparse

from diffvocsep.cli import main, warn_ignored


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config.yaml", help="YAML file (default: config.yaml)")
    parser.add_argument("--resume", default="auto", help="auto | none | path of a checkpoint (default: auto)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")
    args = parser.parse_args(argv)

    from diffvocsep.backends import find_backend
    from diffvocsep.config import load_config
    from diffvocsep.trainer import Trainer

    config = load_config(args.config, args.overrides)
    warn_ignored(config)
    return Trainer(config, find_backend(args.device), args.resume).run()


if __name__ == "__main__":
    main(run)
