"""Take the vocals out of songs.

    python inference.py --input song.wav --output vocals.wav
    python inference.py --input song.mp3 --output vocals.wav --instrumental karaoke.wav
    python inference.py --input my_songs --output my_vocals           a folder of songs, with its sub-folders
    torchrun --nproc_per_node=N inference.py --input my_songs --output my_vocals      its songs shared by N GPUs

Vocals and instrumental have the song's sample rate, channels and length, and add up to the song.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffvocsep.parts import SAMPLERS
from diffvocsep.util.cli import main, print_notes, say
from diffvocsep.util.errors import UserError

if TYPE_CHECKING:  # torch takes seconds: --help does without
    from diffvocsep.batch import Job
    from diffvocsep.config import Config

RELEASED, TRAINED = Path("checkpoints/pretrained.safetensors"), Path("checkpoints/best.pt")
SHIPPED = Path(__file__).resolve().parent / RELEASED  # the same, from whatever folder this is called
PICTURE_SECONDS = 20.0
OPTIONS = {"sampler": "diffusion.sampler", "steps": "diffusion.ddim_steps", "eta": "diffusion.eta",
           "samples": "diffusion.samples", "seed": "train.seed"}  # fmt: skip


def named(text: str) -> Path:
    """A path, for argparse; an empty one (a variable of a script that is not set) would be this folder."""
    if not text:
        raise UserError("a path on the command line is empty; name a file or a folder")
    return Path(text)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--input", nargs="+", required=True, type=named, metavar="PATH", help="songs, or a folder of songs"
    )
    parser.add_argument("--output", required=True, type=named, metavar="PATH", help="file for the vocals, or a folder")
    parser.add_argument("--instrumental", type=named, metavar="PATH", help="also write what is left of the song")
    parser.add_argument("--model_path", type=named, help=f"checkpoint (default: {RELEASED}, else {TRAINED})")
    parser.add_argument("--config", type=named, help="take the diffusion and separation settings from this file")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="default: as in the config")
    parser.add_argument("--steps", type=int, help="sampling steps (default: as in the config)")
    parser.add_argument("--eta", type=float, help="fresh noise of ddim, 0 to 1")
    parser.add_argument("--samples", type=int, help="counterfactuals to average")
    parser.add_argument("--seed", type=int, help="same seed, same result")
    parser.add_argument(
        "--bits", choices=["16", "24", "32"], help="sample format: PCM of 16 or 24 bit, or 32-bit float"
    )
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    parser.add_argument("--plot", type=named, metavar="PATH.png", help="picture of the middle 20 s of one song")
    parser.add_argument(
        "--uncertainty", type=named, metavar="PATH.npz", help="how far the vocals may be wrong, by time and frequency"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings of diffusion and separation"
    )
    return parser.parse_args(argv)


def choose_model(path: Path | None, quiet: bool = False) -> Path:
    """The model that was asked for, else the released one, else the local best; what was chosen is said."""
    if path:
        return path
    chosen = next((p for p in (RELEASED, SHIPPED, TRAINED) if p.exists()), None)
    if chosen is None:
        last = TRAINED.with_name("last.pt")
        hint = f"give --model_path {last}" if last.exists() else "train a model with train.py or give --model_path"
        raise UserError(f"there is neither {RELEASED} nor {TRAINED} in this folder; {hint}")
    if quiet:
        return chosen
    print(f"model: {chosen}", file=sys.stderr)
    if chosen != TRAINED and TRAINED.exists() and TRAINED.stat().st_mtime > chosen.stat().st_mtime:
        print(f"note: your newer {TRAINED} is not used; give --model_path {TRAINED} to use it", file=sys.stderr)
    return chosen


def run(argv: list[str] | None = None) -> int:
    args = parse(argv)
    from diffvocsep.audio.songs import find_songs, left_out_note
    from diffvocsep.batch import plan, separate_all
    from diffvocsep.training.backends import all_done
    from diffvocsep.util.device import announce, place, resolve_device

    songs, left_out = find_songs(args.input, [path for path in (args.output, args.instrumental) if path])
    require_one(args, len(songs))
    one = len(args.input) == 1 and not args.input[0].is_dir()
    jobs = plan(songs, args.output, args.instrumental, one)
    rank, _, processes = place()
    model = choose_model(args.model_path, quiet=rank > 0)
    device = resolve_device(args.device)
    separate = separation(args, model, str(device), rank)
    if rank == 0:
        print_notes(left_out_note(left_out))
    announce(args.device, device)
    failed = 0
    if one:
        separate(jobs[0])
    else:
        failed = separate_all(jobs[rank::processes], separate, total=processes == 1)
    all_done()  # torchrun ends all processes when one of them ends badly
    return 2 if failed else 0


def require_one(args: argparse.Namespace, songs: int) -> None:
    """Raise UserError where a picture or numbers are asked for that cannot be written, or are of several songs."""
    from diffvocsep.plot import require_picture

    if args.plot:
        require_picture(args.plot)
        if songs > 1:
            raise UserError("--plot draws one song; separate the songs one by one to draw them")
    if args.uncertainty:
        if args.uncertainty.suffix.lower() != ".npz":
            raise UserError(f"'{args.uncertainty}' must end in .npz, the format of its numbers")
        if songs > 1:
            raise UserError("--uncertainty measures one song; separate the songs one by one to measure them")


def separation(args: argparse.Namespace, model: Path, device: str, rank: int) -> Callable[[Job], None]:
    """What separates one song as the options say. Settings that cannot be are said here, before any song is read."""
    from diffvocsep.audio import AudioReader
    from diffvocsep.batch import middle, require_outputs, separate_reader
    from diffvocsep.plot import plot_separation
    from diffvocsep.separator import Separator
    from diffvocsep.uncertainty import save_uncertainty

    released = Separator.from_checkpoint(model, device)
    separator = released.configured(args.config, args.overrides)
    options = {name: getattr(args, name) for name in OPTIONS}
    settings = separator.settings(**options)
    if rank == 0:
        print_notes(notes_on_settings(args, released.config, separator.config, settings))
    wanted = args.uncertainty or (args.plot and separator.head)
    uncertainty = separator.uncertainty() if wanted else None
    subtype = {"16": "pcm16", "24": "pcm24", "32": "float", None: None}[args.bits]
    progress = not args.no_progress and rank == 0

    def separate(job: Job) -> None:
        source, vocals, instrumental, _ = job
        require_outputs(source, vocals, instrumental)
        with AudioReader(source) as song:
            outputs = (vocals, instrumental, subtype)
            separate_reader(separator, song, *outputs, progress=progress, uncertainty=uncertainty, **options)
            say(f"{source} -> {vocals}" + (f", {instrumental}" if instrumental else ""))
            if uncertainty:
                say_sdr(*uncertainty.sdr())
            if args.uncertainty:
                save_uncertainty(args.uncertainty, uncertainty.values())
            if args.plot:
                (mixture, rate, start), (voice, _, _) = (middle(file, PICTURE_SECONDS) for file in (song, vocals))
                numbers = uncertainty.values() if uncertainty else None
                plot_separation(args.plot, mixture, voice, rate, start, uncertainty=numbers)

    return separate


def say_sdr(middle: float, low: float, high: float) -> None:
    """How good the vocals probably are, where there are any."""
    if middle == middle:
        say(f"the vocals probably have an SDR of {middle:.1f} dB (in 8 songs of 10: {low:.1f} to {high:.1f})")


def notes_on_settings(args: argparse.Namespace, came: Config, config: Config, settings: Config) -> Iterator[str]:
    """Settings without effect, and those of a config file that are not the model's: a whole config.yaml undoes what
    suits the model."""
    from diffvocsep.config import differences, ignored_settings, is_used, key_of
    from diffvocsep.util.strict_yaml import show

    given = [OPTIONS[name] for name in OPTIONS if getattr(args, name) is not None] + [*map(key_of, args.overrides)]
    yield from ignored_settings(settings, given)
    for key, (old, new) in differences(came, config).items():
        if is_used(key) and key not in given:
            yield f"{args.config} sets {key} to {show(new)}; the model came with {show(old)}"


if __name__ == "__main__":
    main(run)
