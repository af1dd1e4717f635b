"""Score a model, or what any model could reach, on songs with known stems.

    python evaluate.py --model_path checkpoints/best.pt --dataset synthetic
    python evaluate.py --model_path checkpoints/stems/best.pt --dataset stems --root DIR
    python evaluate.py --oracle --dataset stems --root DIR

The scores are global SDR of the vocals in dB (10 log10 sum v^2 / sum (v - e)^2 over a whole clip), not museval's.
Silence (0 dB), the mixture and the untrained network stand beside the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffvocsep.cli import main
from diffvocsep.errors import UserError


def run(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", type=Path, default=Path("checkpoints/best.pt"), help="checkpoint to score")
    parser.add_argument("--dataset", choices=["synthetic", "stems"], default="synthetic")
    parser.add_argument("--root", type=Path, help="folder of tracks with vocals.* and accompaniment.* (stems)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write results.csv there, one line per clip")
    parser.add_argument("--oracle", action="store_true", help="score the true accompaniment in every representation")
    parser.add_argument("--seconds", type=float, default=0.0, help="cut tracks into clips of this length (0: whole)")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings of diffusion and separation"
    )
    args = parser.parse_args(argv)
    if args.dataset == "stems" and not args.root:
        raise UserError("--dataset stems needs --root DIR, a folder of tracks")

    from diffvocsep.evaluation import oracle_table, print_table, score_table, test_clips, write_csv

    clips = test_clips(args.dataset, args.root, args.seconds)
    rows = oracle_table(clips) if args.oracle else score_table(args.model_path, clips, args.device, args.overrides)
    print_table(rows, len(clips))
    if args.output:
        write_csv(args.output / "results.csv", rows, [clip.name for clip in clips])
    return 0


if __name__ == "__main__":
    main(run)
