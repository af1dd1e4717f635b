"""Over how many steps should the weights be averaged? Several lengths, on the way of one and the same training:

    python -m benchmarks.ema_lengths --resume LAST.pt --root TRAIN --dev_root DEV --steps 300

goes on from a checkpoint in the middle of a run, at the learning rate it has there (and what is found holds there), and
averages the weights of these steps with each decay side by side: all alike until an average has as many steps as its
decay reaches, then by the decay. Each average is scored on clips of the dev songs (global SDR of the vocals, dB) and
compared with the last of them clip by clip: mean difference with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffvocsep.checkpoint import config_in, load_checkpoint
from diffvocsep.config import load_config
from diffvocsep.evaluation.report import table
from diffvocsep.separator import Separator
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.cli import main
from diffvocsep.util.errors import UserError

from .dev_scores import cells, dev_clips, heads, references, score

SECONDS, EVERY = 10.0, 4  # of a dev clip; of long songs every fourth is scored


def averages(trainer: Trainer, steps: int, decays: list[float]) -> dict[float, dict[str, torch.Tensor]]:
    """Train so many steps; for each decay the average of the weights after each of them."""
    weights = trainer.model.state_dict()  # the tensors that the optimizer changes
    found = {decay: {name: tensor.clone() for name, tensor in weights.items()} for decay in decays}
    for n, batches in zip(tqdm(range(steps), "steps"), trainer.steps(), strict=False):
        trainer.optimize(batches)
        for decay, average in found.items():
            kept = min(decay, n / (n + 1))
            torch._foreach_lerp_(list(average.values()), list(weights.values()), 1 - kept)
    return found


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resume", required=True, type=Path, metavar="LAST.pt", help="of a run that is not finished")
    parser.add_argument("--root", required=True, help="training songs")
    parser.add_argument("--dev_root", required=True, type=Path, help="songs that decide")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--decays", type=float, nargs="+", default=[0.0, 0.9, 0.97, 0.99, 0.997])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override its own")
    args = parser.parse_args(argv)
    config = config_in(args.resume, load_checkpoint(args.resume)["config"])
    settings = [f"data.root={args.root}", f"data.dev_root={args.dev_root.as_posix()}", "train.val_batches=1"]
    config = load_config(None, [*settings, *args.overrides], base=config)
    trainer = Trainer(config, torch.device("cpu"), str(args.resume))
    first, left = trainer.progress.step, trainer.course.steps - trainer.progress.step
    if left < args.steps:
        raise UserError(f"'{args.resume}' has {left} steps left of its run, fewer than the {args.steps} of --steps")
    clips = dev_clips(args.dev_root, SECONDS, EVERY)
    rows = {name: cells(scores) for name, scores in references(config, clips).items()}
    scores = {}
    for decay, weights in averages(trainer, args.steps, args.decays).items():
        trainer.model.load_state_dict(weights)
        scores[f"train.ema_decay={decay:g}"] = score(Separator(trainer.model, config), clips)
    last = scores[next(reversed(scores))]
    rows |= {name: cells(found, last) for name, found in scores.items()}
    rate = trainer.optimizer.param_groups[0]["lr"]
    print(f"steps {first + 1} to {trainer.progress.step}, learning rate {rate:.4f} at the end")
    print(table("mean dB", heads(last, "the last"), rows))
    return 0


if __name__ == "__main__":
    main(run)
