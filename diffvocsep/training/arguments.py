"""The command line that train.py and train_tpu.py share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ..util.cli import Parser
from ..util.errors import UserError

if TYPE_CHECKING:  # torch takes seconds: --help and a misspelt option do without
    from ..config import Config


def training_arguments(description: str) -> Parser:
    """What every trainer understands."""
    parser = Parser(description=description)
    parser.add_argument("--config", default="config.yaml", help="YAML file (default: config.yaml)")
    parser.add_argument("--resume", default="auto", help="auto | none | path of a checkpoint (default: auto)")
    parser.add_argument("--yes", action="store_true", help="fetch a dataset that is not there without asking")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")
    return parser


def ask_before_download(config: Config, agreed: bool) -> None:
    """Ask in the terminal whether a dataset that is not there may be fetched, unless that is `agreed`.

    Raises:
        UserError: it may not, or there is no terminal.
    """
    from ..data.download import LICENCE, needs_download, source_of

    if agreed or config.data.dataset != "musdbhq" or not needs_download(config.data):
        return
    source, root = source_of(config.data), config.data.musdbhq_root
    absent = f"MUSDB18-HQ is not in '{root}'"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            f"{absent}; add --yes to fetch it ({source.size / 1e9:.0f} GB), or set data.musdbhq_root to its folder"
        )
    sizes = f"{source.size / 1e9:.0f} GB, {(source.size + source.unpacked) / 1e9:.0f} GB of disk to unpack"
    print(f"{absent}. Fetch it from {source.name} ({sizes}; {LICENCE})? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing was fetched; set data.musdbhq_root to the folder of MUSDB18-HQ")


def note_without_gpu(config: Config, device: str) -> list[str]:
    """A line where settings for a GPU, which keep all songs in its memory, meet a `device` of type cpu."""
    if config.data.cache != "device" or device != "cpu":
        return []
    return ["these settings are for a GPU (data.cache is device) and none is used; on a CPU, config.yaml is faster"]
