"""The command line that train.py and train_tpu.py share."""

from __future__ import annotations

from ..util.cli import Parser


def training_arguments(description: str) -> Parser:
    """What every trainer understands."""
    parser = Parser(description=description)
    parser.add_argument("--config", default="config.yaml", help="YAML file (default: config.yaml)")
    parser.add_argument("--resume", default="auto", help="auto | none | path of a checkpoint (default: auto)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")
    return parser
