"""Score a model, or what any model could reach, on songs with known stems.

    python evaluate.py --model_path checkpoints/best.pt --dataset synthetic --output DIR
    python evaluate.py --model_path checkpoints/best.pt --dataset stems --root DIR --output DIR
    python evaluate.py ... --compare EARLIER                what changed since that --output, clip by clip
    python evaluate.py --oracle --dataset stems --root DIR                      ceilings of the representations
    python evaluate.py --sweep --model_path PATH                                quality against steps
    python evaluate.py --uncertainty --model_path PATH                          does the model know its errors?
    python evaluate.py --counterfactual --model_path PATH                       what must not change
    python evaluate.py --instruments --model_path PATH                          one instrument family at a time

Scores are museval's BSSEval v4 (median over frames of 1 s, then over songs), global SDR and SI-SDR in dB. With --output
there are numbers and pictures, and interrupted scoring goes on where it stopped; the other measurements start anew. All
is told in docs/evaluation.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffvocsep.registry import TEST_SETS
from diffvocsep.util.atomic import require_folder
from diffvocsep.util.cli import Parser, finite, main
from diffvocsep.util.errors import UserError

OPTIONS_OF = {  # what each measurement takes besides --dataset, --root and --output
    "scores": "--model_path --split --seconds --device --jobs --no-museval --compare overrides",
    "oracle": "--split --seconds --jobs",
    "sweep": "--model_path --split --seconds --device --grid overrides",
    "uncertainty": "--model_path --split --seconds --device --jobs --samples --leave_one_out overrides",
    "counterfactual": "--model_path --split --seconds --device --jobs overrides",
    "instruments": "--model_path --device --jobs --songs --held_out --vocals overrides",
}


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--model_path",
        type=Path,
        default=Path("checkpoints/best.pt"),
        help="checkpoint to score (default: %(default)s)",
    )
    parser.add_argument("--dataset", choices=list(TEST_SETS), default="synthetic", help="songs (default: %(default)s)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the songs (not synthetic)")
    parser.add_argument(
        "--split", choices=["test", "valid"], default="test", help="which songs (default: test; not stems)"
    )
    parser.add_argument("--seconds", type=finite, default=0.0, help="cut songs into clips of this length (0: whole)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write numbers and pictures there")
    parser.add_argument("--device", default="auto", help="where the model computes: auto, cpu, cuda, mps")
    parser.add_argument("--jobs", type=int, default=0, help="processes (default: one per core)")
    parser.add_argument("--no-museval", action="store_true", help="leave out the scores by frames, most of the time")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="paired differences from an earlier --output")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--oracle", action="store_true", help="score the true accompaniment in every representation")
    modes.add_argument("--sweep", action="store_true", help="quality and time of samplers and steps")
    modes.add_argument("--uncertainty", action="store_true", help="does the model know how far it is wrong?")
    modes.add_argument("--counterfactual", action="store_true", help="what must not change when the singer does")
    modes.add_argument("--instruments", action="store_true", help="SDR of each instrument family")
    parser.add_argument(
        "--grid", action="append", metavar="'steps=1,4 sampler=ddim,ddpm'",
        help="sweep: combinations of steps, sampler, eta and samples, as often as you like",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=16, help="uncertainty: draws per bin (default 16)")
    parser.add_argument("--leave_one_out", action="store_true", help="uncertainty: calibrate anew with the other songs")
    parser.add_argument("--songs", type=int, default=30, help="instruments: songs of each family (default 30)")
    parser.add_argument("--held_out", metavar="FAMILY,...", help="instruments: families not trained on")
    parser.add_argument("--vocals", type=Path, metavar="DIR", help="instruments, stems: sing with these tracks' vocals")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.key=value", help="settings of diffusion and separation"
    )
    args = parser.parse_args(argv)
    if args.dataset != "synthetic" and not args.root:
        raise UserError(f"--dataset {args.dataset} needs --root DIR, a folder of tracks")
    if args.dataset == "stems" and args.split != "test":
        raise UserError("a folder of stems has no splits; leave --split out and name the folder with --root")
    if args.dataset == "synthetic" and args.root:
        raise UserError("--dataset synthetic has no --root; name the kind of songs in that folder with --dataset")
    mode = next((mode for mode in OPTIONS_OF if getattr(args, mode, False)), "scores")
    if ignored := _ignored(args, parser, mode):
        name = "scoring" if mode == "scores" else f"--{mode}"
        raise UserError(f"{name} makes no use of {', '.join(ignored)}; leave that out")
    if args.seconds < 0 or args.jobs < 0 or args.songs < 1 or args.samples < 2:
        raise UserError("--seconds and --jobs cannot be negative, --songs is at least 1, and --samples at least 2")
    if 0 < args.seconds < 0.1:  # millions of clips
        raise UserError("--seconds is at least 0.1, or 0 for whole songs")

    if args.output:
        require_folder(args.output)
    from diffvocsep.evaluation import measurements

    getattr(measurements, mode)(args)
    return 0


def _ignored(args: argparse.Namespace, parser: Parser, mode: str) -> list[str]:
    """The options that were given and have no effect on this measurement."""
    known = dict.fromkeys(" ".join(OPTIONS_OF.values()).split())
    places = {
        option: option.lstrip("-").replace("-", "_") for option in known if option not in OPTIONS_OF[mode].split()
    }
    given = [option for option, name in places.items() if getattr(args, name) != parser.get_default(name)]
    return [option if option.startswith("-") else " ".join(args.overrides) for option in given]


if __name__ == "__main__":
    main(run)
