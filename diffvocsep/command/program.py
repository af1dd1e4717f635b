"""The program `diffvocsep`, which is `inference.py`, too: what is asked for, checked before anything slow begins, and
the separation of the songs, one after the other."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..audio.input_formats import SONGS
from ..audio.output_formats import FORMATS, MPEG1, MPEG2, choose_subtype
from ..audio.songs import find_songs, left_out_note
from ..config import KEYS
from ..registry import SAMPLERS
from ..util.cli import Parser, main, print_notes, say
from ..util.errors import UserError
from ..util.released import NAME, find_released
from .jobs import Job, Output, is_same, plan, require_outputs, separate_all

if TYPE_CHECKING:  # torch takes seconds: --help and a misspelt option do without
    from ..audio import AudioReader
    from ..config import Config

DESCRIPTION = """Take the vocals out of songs.

    {program} song.mp3                            writes song_vocals.wav and song_instrumental.wav beside it
    {program} my_songs -o results/ --format mp3   a folder of songs, with its sub-folders, or several files
    {program} --input song.mp3 --output vocals.wav --instrumental karaoke.wav      only what is named is written

Vocals and instrumental have the song's sample rate, channels and length, and add up to the song.
"""
RELEASED, TRAINED = Path("checkpoints", NAME), Path("checkpoints/best.pt")
PICTURE_SECONDS = 20.0
OPTIONS = {"sampler": "diffusion.sampler", "steps": "diffusion.ddim_steps", "eta": "diffusion.eta",
           "samples": "diffusion.samples", "seed": "train.seed"}  # fmt: skip
SUBTYPES = {"16": "pcm16", "24": "pcm24", "32": "float", None: None}
OVERRIDE = re.compile(r"[a-z_]+\.\w+=.*", re.S)


def path(text: str) -> Path:
    """For argparse; an empty one (a variable of a script that is not set) would be this folder."""
    if not text:
        raise UserError("a path on the command line is empty; name a file or a folder")
    return Path(text)


def output(text: str) -> Output:
    path(text)
    return Output.from_text(text)


def make_parser() -> Parser:
    called = Path(sys.argv[0]).name
    program = {"__main__.py": "python -m diffvocsep"}.get(
        called, f"python {called}" if called[-3:] == ".py" else called
    )
    parser = Parser(prog=program, description=DESCRIPTION.format(program=program))
    parser.add_argument("words", nargs="*", metavar="SONG", help="files and folders; and settings, section.key=value")
    parser.add_argument("--input", nargs="+", type=path, metavar="PATH", help="songs, where only --output is written")
    parser.add_argument("-o", "--output", type=output, metavar="PATH", help="file for the vocals, or a folder/")
    parser.add_argument(
        "--instrumental", type=output, metavar="PATH", help="file for the rest of the song, or a folder/"
    )
    parser.add_argument("--format", choices=[ending[1:] for ending in FORMATS], help="of the files (default: wav)")
    parser.add_argument(
        "--bits", choices=["16", "24", "32"], help="PCM of 16 or 24 bit, or 32-bit float (.wav's default)"
    )
    rates = sorted({*MPEG1, *MPEG2})
    parser.add_argument("--bitrate", type=int, choices=rates, metavar="KBIT", help="kbit/s of .mp3 (default: 320)")
    parser.add_argument("--rescale", action="store_true", help="make both quieter where a peak would not fit")
    parser.add_argument("--model_path", type=path, help=f"checkpoint (default: the released weights, else {TRAINED})")
    parser.add_argument("--config", type=path, help="take the diffusion and separation settings from this file")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="default: as in the config")
    parser.add_argument("--steps", type=int, help="sampling steps (default: as in the config)")
    parser.add_argument("--eta", type=float, help="fresh noise of ddim, 0 to 1")
    parser.add_argument("--samples", type=int, help="counterfactuals to average")
    parser.add_argument("--seed", type=int, help="same seed, same result")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    parser.add_argument("--plot", type=path, metavar="PATH.png", help="picture of the middle 20 s of one song")
    parser.add_argument(
        "--uncertainty", type=path, metavar="PATH.npz", help="how far the vocals may be wrong, by time and frequency"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--version", action="version", version=f"diffvocsep {__version__}")
    return parser


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, its words sorted into `songs` and `overrides`.

    Raises:
        UserError: a word too much, or one that is missing.
    """
    parser = make_parser()
    args = parser.parse_intermixed_args(argv)
    if args.input:  # then every other word is a setting
        args.songs, args.overrides = args.input, args.words
        if args.output is None:
            parser.error("--input wants --output, too")
    else:
        settings = [bool(OVERRIDE.fullmatch(word)) and not os.path.exists(word) for word in args.words]
        args.songs = [path(word) for word, setting in zip(args.words, settings, strict=True) if not setting]
        args.overrides = [word for word, setting in zip(args.words, settings, strict=True) if setting]
        if not args.songs:
            parser.error(f"no song is named, as in: {parser.prog} song.mp3")
    return args


def run(argv: list[str] | None = None) -> int:
    args = parse(argv)
    results = [named.path for named in (args.output, args.instrumental) if named]
    songs, left_out = find_songs(args.songs, results, beside=args.output is None)
    one = len(args.songs) == 1 and not args.songs[0].is_dir()
    jobs = plan(songs, args.output, args.instrumental, one, f".{args.format or 'wav'}", both=not args.input)
    check(args, jobs)

    from ..audio import AudioReader
    from ..training.backends import wait_for_all_processes
    from ..util.device import announce_device, resolve_device, torchrun_env
    from .batch import require_format

    rank, _, processes = torchrun_env()
    with ExitStack() as stack:
        song = stack.enter_context(AudioReader(jobs[0].source)) if one else None
        if song is not None:
            require_format(song, jobs[0].targets, SUBTYPES[args.bits], args.bitrate)
        model = choose_model(args.model_path, quiet=rank > 0)
        device = resolve_device(args.device)
        separate = make_separate(args, model, str(device), rank)
        if rank == 0:
            print_notes(left_out_note(left_out))
        announce_device(args.device, device)
        failed = 0
        if song is None:
            failed = separate_all(jobs[rank::processes], separate, total=processes == 1)
        elif rank == 0:
            separate(jobs[0], song)
    wait_for_all_processes()  # torchrun ends all processes when one of them ends badly
    return 2 if failed else 0


def check(args: argparse.Namespace, jobs: list[Job]) -> None:
    """Raise UserError for what can be known to be impossible without torch: before seconds are spent on its import."""
    for named in (args.output, args.instrumental):
        ending = named.path.suffix.lower() if named and not named.slash and not named.path.is_dir() else ""
        if args.format and ending in SONGS and ending != f".{args.format}":
            raise UserError(f"'{named.path}' is no .{args.format}; leave --format out or name another file")
    for job in jobs:
        if job.problem is None:
            for target in job.targets:
                choose_subtype(target, SUBTYPES[args.bits], args.bitrate)
    if args.model_path and not args.model_path.exists():
        raise UserError(f"there is no model '{args.model_path}'; name a checkpoint or a file of released weights")
    if len(jobs) == 1:
        require_outputs(*jobs[0][:3])
    require_one(args, [job.source for job in jobs])
    for name, key in OPTIONS.items():
        value, limit = getattr(args, name), KEYS[key].metadata["limit"]
        if value is not None and limit and not limit.allows(value):
            raise UserError(f"{key} is {value} but must be {limit.must_be}")


def require_one(args: argparse.Namespace, songs: list[Path]) -> None:
    """Raise UserError where a picture or numbers are asked for that cannot be written, or are of several songs."""
    if args.plot:
        from ..plot import require_picture

        require_picture(args.plot)
        if len(songs) > 1:
            raise UserError("--plot draws one song; separate the songs one by one to draw them")
    if args.uncertainty:
        if args.uncertainty.suffix.lower() != ".npz":
            raise UserError(f"'{args.uncertainty}' must end in .npz, the format of its numbers")
        if len(songs) > 1:
            raise UserError("--uncertainty measures one song; separate the songs one by one to measure them")
    for path in filter(None, (args.plot, args.uncertainty)):
        if is_same(path, songs[0]):
            raise UserError(f"'{path}' is the input and would be overwritten; name another file")


def choose_model(asked: Path | None, quiet: bool = False) -> Path:
    """The model that was asked for, else the released one, else the local best; printed unless `quiet`."""
    if asked:
        return asked
    shipped = find_released()
    chosen = next((p for p in (RELEASED, shipped, TRAINED) if p and p.exists()), None)
    if chosen is None:
        last = TRAINED.with_name("last.pt")
        hint = f"give --model_path {last}" if last.exists() else "train a model with train.py or give --model_path"
        raise UserError(f"there is neither {RELEASED} nor {TRAINED} in this folder; {hint}")
    if quiet:
        return chosen
    print(f"model: {chosen}", file=sys.stderr)
    if chosen != TRAINED and TRAINED.exists() and TRAINED.stat().st_mtime > chosen.stat().st_mtime:
        print_notes([f"your newer {TRAINED} is not used; give --model_path {TRAINED} to use it"])
    return chosen


def make_separate(args: argparse.Namespace, model: Path, device: str, rank: int) -> Callable[..., None]:
    """A function that separates one song as the options say. Impossible settings are refused here, before any song is
    read."""
    from ..audio import AudioReader
    from ..separator import Separator
    from ..uncertainty import save_uncertainty
    from .batch import separate_reader, uncertainty_for_picture

    released = Separator.from_checkpoint(model, device)
    separator = released.configured(args.config, args.overrides)
    options = {name: getattr(args, name) for name in OPTIONS}
    settings = separator.settings(**options)
    if rank == 0:
        print_notes(notes_on_settings(args, released.config, separator.config, settings))
    uncertainty = separator.uncertainty(**options) if args.uncertainty else None
    if uncertainty and rank == 0:
        print_notes(f"the uncertainty was fitted under another {key} and may mislead; leave that setting as it came"
                    for key in uncertainty.not_fitted)  # fmt: skip
    form = {"subtype": SUBTYPES[args.bits], "bitrate": args.bitrate, "rescale": args.rescale}
    form["progress"] = not args.no_progress and rank == 0

    def separate(job: Job, reader: AudioReader | None = None) -> None:
        source, vocals, instrumental, _ = job
        require_outputs(source, vocals, instrumental)
        with nullcontext(reader) if reader else AudioReader(source) as song:
            found = uncertainty
            if args.plot and not found:
                found = uncertainty_for_picture(separator, song.channels, **options)
            gain = separate_reader(separator, song, vocals, instrumental, uncertainty=found, **form, **options)
            say(f"{source} -> {', '.join(map(str, job.targets))}")
            if found:
                say_sdr(*found.sdr())
            if args.uncertainty:
                save_uncertainty(args.uncertainty, found.values())
            if args.plot:
                from ..plot import middle_excerpt, plot_separation

                (mixture, rate, start), (voice, _, _) = (
                    middle_excerpt(file, PICTURE_SECONDS) for file in (song, vocals)
                )
                numbers = found.values() if found else None
                plot_separation(args.plot, mixture, voice / gain, rate, start, uncertainty=numbers)

    return separate


def say_sdr(middle: float, low: float, high: float) -> None:
    """How good the vocals probably are, where there are any."""
    if middle == middle:
        say(f"the vocals probably have an SDR of {middle:.1f} dB (in 8 songs of 10: {low:.1f} to {high:.1f})")


def notes_on_settings(args: argparse.Namespace, came: Config, config: Config, settings: Config) -> Iterator[str]:
    """Notes on settings without effect, and on settings of a config file that differ from the model's: a whole
    config.yaml would silently replace what suits the model."""
    from ..config import affects_separation, differences, ignored_settings, key_of
    from ..util.strict_yaml import show

    given = [OPTIONS[name] for name in OPTIONS if getattr(args, name) is not None] + [*map(key_of, args.overrides)]
    yield from ignored_settings(settings, given)
    for key, (old, new) in differences(came, config).items():
        if affects_separation(key) and key not in given:
            yield f"{args.config} sets {key} to {show(new)}; the model came with {show(old)}"


def command() -> None:
    """The entry point of `pip install .`."""
    main(run)
