"""The command line that train.py and train_tpu.py share."""

from __future__ import annotations

import argparse


def training_arguments(description: str) -> argparse.ArgumentParser:
    """What every trainer understands."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config.yaml", help="YAML file (default: config.yaml)")
    parser.add_argument("--resume", default="auto", help="auto | none | path of a checkpoint (default: auto)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file")
    return parser
