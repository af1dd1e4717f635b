"""One change at a time, the same seconds of training each: which designs separate better?

    python -m benchmarks.ablation --root TRAIN --dev_root DEV --seconds 120 --output logs/ablation

Every variant of `benchmarks/ablation.yaml` trains for the same wall time here: its steps are timed first, so
that the learning rate falls to zero at the end of it. (With `--steps` it trains for as many steps as the others: as
fair where steps of all take as long, and on a busy machine fairer.) It is scored on 5 s segments of the dev songs
(global SDR of the vocals, EMA weights), and compared with `base` segment by segment: mean difference with a 95 %
bootstrap interval, for each set of songs. Where the interval holds zero it is a tie. How far two trainings of one
design lie apart no interval over segments knows; `base_again` tells. Finished variants are kept: an interrupted
comparison goes on where it stopped. Another network is a line in
`registry.NETWORKS`; that of diffusers adds itself.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
import yaml
from tqdm.auto import tqdm

from diffvocsep import load_config
from diffvocsep.checkpoint import load_model
from diffvocsep.config import Config
from diffvocsep.evaluation.clips import Clip
from diffvocsep.evaluation.report import table
from diffvocsep.separator import Separator
from diffvocsep.training.trainer import Trainer
from diffvocsep.util.atomic import write_atomic
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError

from .dev_scores import cells, dev_clips, heads, references, score
from .diffusers_unet import DiffusersUNet  # noqa: F401  it adds itself to registry.NETWORKS

VARIANTS = Path(__file__).with_name("ablation.yaml")
PRESET = Path(__file__).parents[1] / "configs" / "stems.yaml"
SEGMENT, EVERY = 5.0, 6  # s of a dev segment; of long songs every sixth is scored
WARM, TIMED = 3, 6  # steps that warm up, and steps that tell how long one takes


def step_seconds(config: Config) -> float:
    """How long a training step of `config` takes here, data included."""
    trainer = Trainer(config, torch.device("cpu"), "none")
    began = 0.0
    for i, batches in zip(range(WARM + TIMED), trainer.steps(), strict=False):
        trainer.optimize(batches)
        began = time.monotonic() if i == WARM - 1 else began
    return (time.monotonic() - began) / TIMED


def run_variant(overrides: list[str], seconds: float, steps: int, folder: Path, clips: list[Clip]) -> dict:
    """Train one variant for `steps`, or where they are 0 for `seconds`, and score it."""
    common = ["train.steps_per_epoch=1000000", "train.val_every_steps=1000000", "train.val_batches=2"]
    common += [f"log.checkpoint_dir={folder.as_posix()}", f"log.tb_log_dir={(folder / 'tb').as_posix()}"]
    settings = [*overrides, *common]
    if not steps:
        steps = max(1, round(seconds / step_seconds(load_config(PRESET, [*settings, "train.max_steps=1000"]))))
    began = time.monotonic()
    if Trainer(load_config(PRESET, [*settings, f"train.max_steps={steps}"]), torch.device("cpu"), "none").run():
        raise KeyboardInterrupt  # it was stopped before its last step
    seconds_taken = time.monotonic() - began
    model, config = load_model(folder / "last.pt")
    scores = score(Separator(model, config), clips)
    parameters = sum(p.numel() for p in model.parameters())
    return {"steps": steps, "seconds": seconds_taken, "parameters": parameters, "scores": scores}


def compare(results: dict[str, dict], untrained: dict[str, dict[str, float]]) -> str:
    """One line a variant: the mean over each set of songs, and how far it lies from the first variant's; before them
    the means of those who have learnt nothing."""
    base = next(iter(results.values()))["scores"]
    rows = {name: ["", "", "", *cells(scores)] for name, scores in untrained.items()}
    for name, result in results.items():
        about = [f"{result['parameters'] / 1e6:.2f} M", str(result["steps"]), f"{result['seconds']:.0f}"]
        rows[name] = about + cells(result["scores"], base)
    return table("variant, mean dB", ("parameters", "steps", "s", *heads(base, "base")), rows)


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--root", required=True, help="training songs")
    parser.add_argument("--dev_root", required=True, type=Path, help="songs that decide")
    parser.add_argument("--seconds", type=float, default=120.0, help="training time of every variant")
    parser.add_argument("--steps", type=int, default=0, help="train so many steps instead")
    parser.add_argument("--variants", type=Path, default=VARIANTS, help="YAML: name -> list of overrides")
    parser.add_argument("--output", type=Path, default=Path("logs/ablation"), metavar="DIR")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of all variants")
    args = parser.parse_args(argv)
    variants = yaml.safe_load(args.variants.read_text(encoding="utf-8"))
    for name, overrides in list(variants.items())[1:]:
        if not overrides:
            raise UserError(f"'{name}' in {args.variants} changes nothing; give it overrides, or leave it out")
    settings = [f"data.root={args.root}", f"data.dev_root={args.dev_root.as_posix()}", *args.overrides]
    clips = dev_clips(args.dev_root, SEGMENT, EVERY)
    length = f"{args.steps} steps" if args.steps else f"{args.seconds:g} s"
    results = {}
    for name, overrides in variants.items():
        kept, asked = args.output / f"{name}.json", [*settings, length, *overrides]
        if not kept.exists():
            tqdm.write(f"{name}: {' '.join(overrides)}")
            result = run_variant([*settings, *overrides], args.seconds, args.steps, args.output / name, clips)
            text = json.dumps({"asked": asked, **result}, indent=1)
            write_atomic(kept, lambda part, text=text: part.write_text(text, encoding="utf-8"))
        results[name] = json.loads(kept.read_text(encoding="utf-8"))
        if results[name]["asked"] != asked:
            raise UserError(f"'{kept}' was made with other settings; name another folder with --output")
    print(f"{len(clips)} dev segments, {length} of training each")
    print(compare(results, references(load_config(PRESET, settings), clips)))
    return 0


if __name__ == "__main__":
    main(run)
