"""A model that knows how far it may be wrong: its weights as they are, and a head that tells the scale of its errors.

    python -m scripts.fit_uncertainty MODEL NEW_MODEL.safetensors SONGS data.root=TRAIN

The head learns from crops of training songs, which are separated once. Songs that did not train (`SONGS`, folders of
vocals.* and accompaniment.*) then say by how much the scales must grow for the intervals to cover what they say, and
how the predicted SDR relates to the true one. `evaluate.py --uncertainty` tells how well that holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffvocsep import Separator
from diffvocsep.checkpoint import load_model_state, release
from diffvocsep.config import key_of, load_config, to_dict
from diffvocsep.counterfactual import generate, subtract
from diffvocsep.data import Segments, train_tracks
from diffvocsep.evaluation.calibration import errors, fit
from diffvocsep.evaluation.clips import Excerpt, find_excerpts
from diffvocsep.uncertainty import ScaleHead, record_features
from diffvocsep.uncertainty.head import QUIET_DB
from diffvocsep.util.atomic import require_folder
from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError
from diffvocsep.util.rng import generator, normal

KEPT = 0.4  # share of the columns of a crop that are kept: neighbours are alike
RATE, WARM_UP = 3e-3, 20  # learning rate, and steps over which it rises
SMALLEST = 1e-6  # scale, of the song's level: no certainty where there is digital silence
FREEDOM = 3.0  # of the Student's t whose likelihood is maximized; the head's own is fitted afterwards


@torch.no_grad()
def observe(separator: Separator, item: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """Separate a training segment: what the head hears of some of its columns (all with a batch of 1), the true error
    of the vocals, complex `(1, C, F, T)`, and which bins count."""
    frontend, config = separator.frontend, separator.config
    representation = frontend.representation
    mixture, vocals = (frontend.modelled(x[None]) for x in (item["vocals"] + item["accompaniment"], item["vocals"]))
    statistics = representation.statistics(mixture)
    statistics[:, 0] *= 10 ** (float(item["level_db"]) / 10 * representation.exponent)
    x_mixture = representation.encode(mixture, statistics)
    seed = config.train.seed
    with record_features(separator.model) as features:
        x_0 = generate(
            separator.denoiser, x_mixture, config.diffusion,
            lambda step: normal(tuple(x_mixture.shape), seed, "fit", index, step + 1),
        )  # fmt: skip
    found = subtract(config.separation.subtract, mixture, x_mixture, x_0, statistics, representation)
    length = item["vocals"].shape[-1]
    heard_again = frontend.modelled(frontend.stft.inverse(found, length))  # as whoever listens to the vocals has them
    level = representation.level(statistics)
    counts = (mixture.abs() > 10 ** (QUIET_DB / 20) * level) & frontend.trusted(item["source_rate"][None])[..., None]

    stride = config.model.patch[1]
    columns = generator(seed, "columns", index).permutation(mixture.shape[-1] // stride)
    columns = torch.from_numpy(columns[: max(1, round(KEPT * len(columns)))])
    frames = (columns[:, None] * stride + torch.arange(stride)).flatten()
    whole = {"mixture": mixture, "vocals": found, "error": vocals - heard_again, "counts": counts}
    return {
        "features": features[0][:, :, columns].half(),
        "level": level,
        **{k: v[..., frames] for k, v in whole.items()},
    }


def loss(head: ScaleHead, seen: dict[str, Tensor]) -> Tensor:
    """The mean negative log-likelihood of the errors under Student's t; heavy tails, so that no bin decides alone."""
    names = ("features", "mixture", "vocals", "level")
    log_scale = head(*(seen[name].float() if name == "features" else seen[name] for name in names))[..., None]
    floor = (SMALLEST * seen["level"])[..., None]
    z = torch.view_as_real(seen["error"]) / (log_scale.exp() + floor)
    terms = (FREEDOM + 1) / 2 * torch.log1p(z.square() / FREEDOM) + (log_scale.exp() + floor).log()
    return (terms * seen["counts"][..., None]).sum() / (2 * seen["counts"].sum()).clamp_min(1)


def train(head: ScaleHead, crops: Sequence[dict[str, Tensor]], steps: int, seed: int) -> None:
    """Adam, a crop a step, its rate along half a cosine."""
    optimizer, rng = torch.optim.Adam(head.parameters(), lr=RATE), generator(seed, "order")
    with tqdm(range(steps), "Head", unit="step") as bar:
        for step in bar:
            rate = 0.5 * RATE * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = rate
            value = loss(head, crops[int(rng.integers(len(crops)))])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            bar.set_postfix(loss=f"{value.item():.3f}")


def choose(excerpts: Sequence[Excerpt], most: int) -> list[Excerpt]:
    """At most so many clips of each song, spread over it."""
    songs: dict[str, list[Excerpt]] = {}
    for excerpt in excerpts:
        songs.setdefault(excerpt.track.name, []).append(excerpt)
    return [clips[i * len(clips) // n] for clips in songs.values() for n in [min(most, len(clips))] for i in range(n)]


def calibrate(separator: Separator, excerpts: Sequence[Excerpt]) -> None:
    """Fit what the head keeps beside its weights."""
    found = []
    for excerpt in tqdm(excerpts, "Songs", unit="clip"):
        clip = excerpt.read()
        if clip.vocals.any():
            found.append(errors(separator, excerpt.track.name, clip.mixture, clip.vocals, clip.sample_rate))
    if not found:
        raise UserError("nobody sings in these songs; give some with vocals")
    calibration, head = fit(found), separator.head
    head.log_factor.copy_(torch.from_numpy(calibration.log_factor))
    head.freedom.fill_(calibration.freedom)
    head.sdr.copy_(torch.tensor(calibration.line))


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description="Teach a model how far it may be wrong.")
    parser.add_argument("model", type=Path, help="last.pt, best.pt or a .safetensors; its averaged weights")
    parser.add_argument("new_model", type=Path, help="the .safetensors to write")
    parser.add_argument("songs", type=Path, help="a folder of stems that did not train, to calibrate with")
    parser.add_argument("--crops", type=int, default=200, help="of training songs, 6 s each (default 200)")
    parser.add_argument("--steps", type=int, default=1000, help="of the training of the head (default 1000)")
    parser.add_argument("--clips", type=int, default=4, help="of 10 s, at most, of each song (default 4)")
    parser.add_argument("--half", action="store_true", help="store the weights in float16: half the size")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="where the training songs are")
    args = parser.parse_args(argv)
    if args.new_model.suffix != ".safetensors":
        raise UserError(f"'{args.new_model}' must end in .safetensors")
    if min(args.crops, args.steps, args.clips) < 1:
        raise UserError("--crops, --steps and --clips are at least 1")
    if others := [key for key in map(key_of, args.overrides) if not key.startswith("data.")]:
        raise UserError(
            f"{', '.join(others)} cannot be changed here: the errors are those of the model's own settings; release it "
            "with others first: python -m diffvocsep.checkpoint MODEL NEW_MODEL --set section.key=value"
        )
    require_folder(args.new_model.parent)
    state, old = load_model_state(args.model), Separator.from_checkpoint(args.model, "cpu")
    config = load_config(None, ["data.segment_seconds=6", *args.overrides], base=old.config)
    excerpts = choose(find_excerpts("stems", args.songs, 10.0), args.clips)
    segments = Segments(train_tracks(config), config, args.crops)
    torch.manual_seed(config.train.seed)
    separator = Separator(old.model, old.config, "cpu", ScaleHead(config))
    crops = [observe(separator, segments[i], i) for i in tqdm(range(args.crops), "Crops", unit="crop")]
    train(separator.head, crops, args.steps, config.train.seed)
    calibrate(separator, excerpts)
    state |= {"head": separator.head.state_dict(), "config": to_dict(old.config)}
    release(state, args.new_model, torch.float16 if args.half else torch.float32)
    count = sum(p.numel() for p in separator.head.parameters())
    print(f"{args.new_model}: a head of {count} parameters, calibrated with {len(excerpts)} clips")
    return 0


if __name__ == "__main__":
    main(run)
