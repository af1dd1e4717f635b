"""What `evaluate.py` can measure: a function for each kind, from the arguments to the tables and files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..config import ignored_settings, key_of
from ..util.cli import print_notes
from ..util.device import choose_device
from ..util.errors import UserError
from ..util.folders import readable
from . import museval_scores, systems
from .clips import Excerpt, find_excerpts
from .metrics import BEYOND_SDR
from .parallel import processes
from .report import draw_rows, draw_summary, quartiles, spread, table, write_csv


def _excerpts(args: Namespace) -> list[Excerpt]:
    return find_excerpts(args.dataset, args.root, args.seconds, args.split)


def _model(args: Namespace) -> systems.Model:
    model = systems.Model(args.model_path, args.device, tuple(args.overrides))
    config = model.separator().config  # what is missing or impossible is said before any work
    if not args.sweep:  # it samples in ways of its own
        print_notes(ignored_settings(config, list(map(key_of, args.overrides))))
    choose_device(args.device)  # says which, and why
    return model


def _refuse(args: Namespace, keys: Iterable[str], option: str) -> None:
    if given := sorted(set(keys) & set(map(key_of, args.overrides))):
        raise UserError(f"{', '.join(given)} has no effect here, {option} decides about that; leave it out")


def scores(args: Namespace) -> None:
    """The scores of the field, the model beside silence, mixture, untrained network and ceilings."""
    from .comparison import compare, read_results
    from .scores import METRICS, TARGETS, medians, result_rows, score, systems_of

    excerpts, model = _excerpts(args), _model(args)
    earlier = read_results(args.compare, [excerpt.name for excerpt in excerpts]) if args.compare else None
    frames = not args.no_museval
    if frames and museval_scores.available() is None:
        print_notes([museval_scores.MISSING])
        frames = False
    jobs = processes(args.jobs, len(excerpts), args.device)
    found = score(excerpts, model, args.output, jobs, frames)
    rows = [name for name in systems_of(model) if any(one.system == name for one in found)]
    columns = {target: {system: medians(found, system, target) for system in rows} for target in TARGETS}
    own = [one for one in found if one.system == model.name]
    silent = sum(one.silent for one in own)
    if silent == len(own):
        raise UserError(f"nobody sings in these {len(own)} clips: there is nothing to score")
    for target, by_system in columns.items():
        count = len(own) - (silent if target == "vocals" else 0)
        cells = {
            system: [spread(values["global SDR"]), *(f"{quartiles(values[m])[0]:.2f}" for m in METRICS[1:])]
            for system, values in by_system.items()
        }
        if not frames:
            cells = {system: values[:2] for system, values in cells.items()}
        print(table(f"{target}, dB, {count} clips", METRICS if frames else METRICS[:2], _dashes_for_nan(cells)))
        print()
    for target, by_system in columns.items():
        cells = {system: [f"{quartiles(values[m])[0]:.2f}" for m in BEYOND_SDR] for system, values in by_system.items()}
        print(table(f"{target} beyond SDR", BEYOND_SDR, _dashes_for_nan(cells)))
        print()
    if earlier:
        count, differences = compare(found, model.name, earlier)
        title = f"vocals against {args.compare.as_posix()}, {count} clips"
        print(table(title, ["mean difference (95 %)", "higher on"], differences))
        print()
    missing = sum(one.silent_frames for one in own)
    seconds = sum(one.frames for one in own)
    if silent:
        print(f"{silent} of {len(own)} clips have silent vocals: there are no scores of those")
    if missing and frames:
        print(f"museval leaves out {missing} of {seconds} seconds, for something is silent there")
    if args.output:
        write_csv(args.output / "results.csv", result_rows(found))
        ceilings = [name for name in (systems.MIXTURE, *systems.CEILINGS) if name in rows]
        in_db = {
            target: {system: {m: values[m] for m in METRICS} for system, values in by_system.items()}
            for target, by_system in columns.items()
        }
        draw_summary(args.output / "summary.png", in_db, [systems.MIXTURE, model.name], ceilings)


def oracle(args: Namespace) -> None:
    """The ceilings of the representations."""
    from .oracle import oracle as measure

    excerpts = _excerpts(args)
    rows = measure(excerpts, processes(args.jobs, len(excerpts), "cpu"))
    if np.isnan(rows["silence"]).all():
        raise UserError(f"nobody sings in these {len(excerpts)} clips: there is nothing to score")
    count = int(np.isfinite(rows["silence"]).sum())
    print(table(f"how the vocals are taken, {count} clips", ["global SDR of the vocals, dB"],
                {name: [spread(values)] for name, values in rows.items()}))  # fmt: skip
    _write(args.output, "oracle", rows, excerpts, "global SDR of the vocals, dB")


def sweep(args: Namespace) -> None:
    """Quality and time of every way to sample."""
    from .sweep import DEFAULT_GRIDS, SCORES, Setting, draw_frontier, frontier
    from .sweep import sweep as measure

    _refuse(args, ["diffusion.use_ddim", *map(key_of, Setting().overrides())], "--grid")
    measured = list(measure(_excerpts(args), _model(args), args.grid or DEFAULT_GRIDS))
    best = frontier(measured)
    columns = ["evaluations", *SCORES, "s per s of song", "frontier"]
    rows = {
        str(one.setting): [str(one.setting.evaluations), *(f"{quartiles(one.scores[name])[0]:.2f}" for name in SCORES),
                           f"{one.real_time:.4f}", "*" if one in best else ""]
        for one in measured
    }  # fmt: skip
    print(table(f"vocals, median of {len(measured[0].sdr)} clips", columns, rows))
    if args.output:
        write_csv(args.output / "sweep.csv", [["setting", *columns], *([name, *row] for name, row in rows.items())])
        draw_frontier(args.output / "sweep.png", measured)


def uncertainty(args: Namespace) -> None:
    """Whether the model knows how far it may be wrong."""
    from . import calibration

    excerpts, model = _excerpts(args), _model(args)
    clips = calibration.measure(excerpts, model, processes(args.jobs, len(excerpts), args.device))
    if not clips:
        raise UserError("nobody sings in these songs: there is no error to compare with")
    songs = calibration.merge(clips)
    if args.leave_one_out and len(songs) < 3:
        raise UserError("--leave_one_out fits to all songs but one; give it at least three")
    own = calibration.Calibration.from_head(model.separator().head)
    used = {one.song: calibration.fit_without(songs, one.song) if args.leave_one_out else own for one in songs}
    coverage = calibration.coverage_table(songs, used)
    numbers = calibration.summary(songs, used, args.samples)
    title = f"covered, %, {len(clips)} clips of {len(songs)} songs"
    columns = [f"{100 * c:.0f} % interval" for c in calibration.COVERAGE] + ["% of bins"]
    print(table(title, columns, {name: [f"{100 * value:.1f}" for value in row] for name, row in coverage.items()}))
    print()
    print(table("", ["value"], {name: [f"{value:.2f}"] for name, value in numbers.items()}))
    if args.output:
        lines = [[one.song, one.sdr, *calibration.predicted(one, used[one.song])] for one in songs]
        write_csv(args.output / "uncertainty.csv", [["song", "SDR", "predicted", "lower", "upper"], *lines])
        calibration.draw_calibration(args.output / "uncertainty.png", coverage, songs, used)


def counterfactual(args: Namespace) -> None:
    """What must not change, in dB."""
    from .invariance import measure_invariance

    excerpts, model = _excerpts(args), _model(args)
    found = measure_invariance(excerpts, model, processes(args.jobs, len(excerpts), args.device))
    names = list(next(iter(found.values())))
    rows = {test: [f"{quartiles(by_system[name])[0]:.1f}" for name in names] for test, by_system in found.items()}
    clips = len(next(iter(next(iter(found.values())).values())))
    print(table(f"energy in dB, lower is better, median of {clips} clips", names, rows))
    if args.output:
        lines = [[test, name, *(f"{v:.3f}" for v in values)]
                 for test, by_system in found.items() for name, values in by_system.items()]  # fmt: skip
        write_csv(args.output / "counterfactual.csv", [["test", "system", *range(clips)], *lines])
        own = {test: by_system[model.name] for test, by_system in found.items()}
        draw_rows(args.output / "counterfactual.png", own, "energy, dB", title=f"{model.name}, lower is better")


def instruments(args: Namespace) -> None:
    """SDR per instrument family, and the gap between those seen in training and those held out."""
    from .families import folder_parts, held_out_of, show_scores, synthetic_parts
    from .families import instruments as measure

    if args.dataset not in ("synthetic", "stems"):
        raise UserError(f"--instruments takes --dataset synthetic or stems, not {args.dataset}")
    if args.dataset == "synthetic" and args.vocals:
        raise UserError("--vocals goes with --dataset stems; synthetic songs are sung by the synthesizer")
    model = _model(args)
    parts = folder_parts(args.root, args.songs, args.vocals) if args.dataset == "stems" else synthetic_parts(args.songs)
    families = dict.fromkeys(part.family for part in parts)
    own = held_out_of(model) if args.dataset == "synthetic" else ()  # a folder's families are not the synthesizer's
    held_out = readable(args.held_out).split(",") if args.held_out else own
    unknown = [family for family in held_out if family not in families]
    if unknown and args.held_out:
        raise UserError(f"--held_out {unknown[0]} is none of the families {', '.join(families)}")
    measured = measure(parts, model, processes(args.jobs, len(parts), args.device))
    show_scores(measured, model, held_out, len({part.index for part in parts}), args.output)


def _dashes_for_nan(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: ["-" if cell == "nan" else cell for cell in cells] for name, cells in rows.items()}


def _write(output: Path | None, name: str, rows: dict[str, list[float]], excerpts: list[Excerpt], label: str) -> None:
    """<name>.csv with a line per clip and a column per row, and its picture."""
    if output:
        names = [excerpt.name for excerpt in excerpts]
        lines = zip(names, *([f"{v:.4f}" for v in values] for values in rows.values()), strict=True)
        write_csv(output / f"{name}.csv", [["clip", *rows], *lines])
        draw_rows(output / f"{name}.png", rows, label)
