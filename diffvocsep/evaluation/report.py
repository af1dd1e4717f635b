"""What a measurement leaves behind: a table in Markdown on stdout, a .csv, a picture."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..util.atomic import write_atomic
from ..util.rng import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS = 2000
KOREAN = ("Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "Noto Sans CJK KR", "Noto Sans KR")


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the values that are not NaN; NaN where there is none."""
    known = np.array([v for v in values if not np.isnan(v)])
    if not known.size:
        return (float("nan"),) * 3
    return float(np.median(known)), *(float(np.quantile(known, q, method="nearest")) for q in (0.25, 0.75))


def spread(values: Iterable[float]) -> str:
    """`median (lower quartile .. upper quartile)`"""
    median, low, high = quartiles(values)
    return f"{median:.2f} ({low:.2f} .. {high:.2f})" if median == median else "-"


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of `statistic(values)`: the percentile bootstrap (Efron 1979) over the columns of
    `(R, N)`, which are songs."""
    songs = generator(seed, "bootstrap").integers(values.shape[1], size=(DRAWS, values.shape[1]))
    drawn = [statistic(values[:, columns]) for columns in songs]
    return float(np.quantile(drawn, 0.025)), float(np.quantile(drawn, 0.975))


def paired(differences: np.ndarray) -> tuple[str, str]:
    """Mean and 95 % bootstrap interval of differences in dB, `(clips,)`, in words; and the verdict on their sign."""
    low, high = interval(differences[None], lambda drawn: float(drawn.mean()))
    verdict = "tie" if low <= 0 <= high else ("better" if low > 0 else "worse")
    return f"{differences.mean():+.2f} ({low:+.2f} .. {high:+.2f})", verdict


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table under a line of text; the columns line up in a terminal too."""
    lines = [[title, *columns], *([name, *cells] for name, cells in rows.items())]
    lines = [[cell.replace("|", "&#124;") for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    padded = [[cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)] for line in lines]
    text = [f"| {' | '.join(line)} |" for line in padded]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def _width(text: str) -> int:
    """Columns that a terminal takes for it: two for a Korean syllable, none for a mark over the letter before."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in unicodedata.normalize("NFC", text)
    )


def write_csv(path: Path, lines: Iterable[Sequence[object]]) -> None:
    """Lines of cells, the header first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomic(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))


def new_figure(width: float, height: float) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names

    known = [name for name in KOREAN if name in get_font_names()]
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", *known]  # what the first lacks comes from the others
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    write_atomic(path, lambda part: figure.savefig(part, dpi=110, format="png"))


def draw_rows(
    path: Path,
    rows: Mapping[str, Sequence[float]],
    label: str,
    held_out: Iterable[str] = (),
    title: str = "",
    zero: str = "",
) -> None:
    """One horizontal box per row, the first on top; those of `held_out` in another colour. `zero`: what lies at 0."""
    figure = new_figure(9, 0.36 * len(rows) + 1.3)
    axis = figure.subplots()
    if title:
        figure.suptitle(title, fontsize=10)  # over the names of the rows too: it may be long
    if zero:
        axis.axvline(0, color="black", ls="--", lw=1, label=zero)
        figure.legend(loc="outside upper right", fontsize=8)
    values = [[v for v in row if np.isfinite(v)] or [np.nan] for row in rows.values()]
    boxes = axis.boxplot(values, orientation="horizontal", patch_artist=True, widths=0.6)
    for box, name in zip(boxes["boxes"], rows, strict=True):
        box.set_facecolor("#e8a13a" if name in set(held_out) else "#9ec1e6")
    axis.set_yticks(range(1, len(rows) + 1), list(rows))
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)


def draw_summary(
    path: Path, scores: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], boxes: Sequence[str], lines: Sequence[str]
) -> None:
    """Box plots per metric, a row of panels per target; `scores[target][system][metric]` in dB. The systems `boxes`
    get a box each, the median of each of `lines` is drawn across."""
    targets = list(scores)
    metrics = list(scores[targets[0]][boxes[0]])
    metrics = [m for m in metrics if any(scores[t][s][m].size for t in targets for s in (*boxes, *lines))]
    figure = new_figure(2.2 * len(metrics) + 1, 3.4 * len(targets) + 0.4)
    panels = figure.subplots(len(targets), len(metrics), squeeze=False)
    styles = [("tab:green", "--"), ("tab:purple", ":"), ("tab:gray", "-.")]
    for row, target in zip(panels, targets, strict=True):
        for axis, metric in zip(row, metrics, strict=True):
            values = [scores[target][system][metric] for system in boxes]
            axis.boxplot([v if v.size else [np.nan] for v in values], widths=0.6)
            axis.set_xticks(range(1, len(boxes) + 1), [Path(name).stem for name in boxes], fontsize=8)
            for system, (colour, style) in zip(lines, styles, strict=False):
                if scores[target][system][metric].size:
                    axis.axhline(np.median(scores[target][system][metric]), color=colour, ls=style, label=system)
            axis.set_title(metric, fontsize=10)
            axis.grid(axis="y", alpha=0.3)
        row[0].set_ylabel(f"{target}, dB")
    handles = {label: handle for axis in panels.flat for handle, label in zip(*axis.get_legend_handles_labels(),
                                                                             strict=True)}  # fmt: skip
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    save(figure, path)
