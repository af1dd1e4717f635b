"""What every command says to a wrong call: one sentence, exit code 2; and its `--help`, whose examples can be typed."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from trainers import ROOT

from diffvocsep.config import load_config
from diffvocsep.util import cli

COMMANDS = [
    "train", "train_tpu", "inference", "evaluate", "app",
    *("diffvocsep." + name for name in ("plot", "checkpoint", "data.check", "data.pack")),
    *("benchmarks." + name for name in ("ablation", "compare_versions", "data", "gpu")),
    *("benchmarks." + name for name in ("inference", "train_step", "waiting")),
    *("scripts." + name for name in ("fit_uncertainty", "grow_network", "hard_negatives", "held_out_family")),
    *("scripts." + name for name in ("previews", "pseudo_stems", "render_soundfont")),
]  # fmt: skip


def call(command: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main(lambda: importlib.import_module(command).run([*arguments]))
    return exit_.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_option_is_one_sentence(command, capsys):
    assert call(command, "--nonsense", "1") == 2
    out, (line,) = (text.splitlines() for text in capsys.readouterr())
    assert not out and line.startswith("error: ") and line.endswith("; --help lists what there is")


@pytest.mark.parametrize(("command", "arguments", "words"), [
    ("evaluate", ["--jobs", "many"], "argument --jobs: invalid int value: 'many'"),
    ("evaluate", ["--oracle", "--sweep"], "argument --sweep: not allowed with argument --oracle"),
    ("evaluate", ["--dataset", "mine"], "argument --dataset: invalid choice: 'mine'"),
    ("evaluate", ["--seconds", "nan"], "argument --seconds: invalid finite value: 'nan'"),
    ("train", ["--config"], "argument --config: expected one argument"),
    ("app", ["--port", "x"], "argument --port: invalid int value: 'x'"),
    ("scripts.grow_network", [], "the following arguments are required: model, grown"),
])  # fmt: skip
def test_what_is_wrong_is_named(command, arguments, words, capsys):
    assert call(command, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {words}")


@pytest.mark.parametrize("script", ["train", "train_tpu"])
def test_as_processes_too(script):
    command = [sys.executable, str(ROOT / f"{script}.py"), "--nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unrecognized arguments: --nonsense; --help lists what there is\n"


def examples(command: str) -> list[list[str]]:
    """The arguments of the examples in `--help`; what explains them stands behind three spaces or more."""
    description = importlib.import_module(command).__doc__
    lines = [re.split(r"\s{3,}", line.strip())[0] for line in description.splitlines() if line.startswith("    ")]
    program = re.compile(rf".*\b{command}(?:\.py)? ")
    return [shlex.split(program.sub("", line, count=1)) for line in lines if program.match(line)]


@pytest.mark.parametrize("command", ["train", "train_tpu"])
def test_the_examples_of_the_help_can_be_trained_with(command, tmp_path, monkeypatch):
    """As they stand, with folders in the place of TRAIN and DEV: their settings load and none is without effect."""
    from diffvocsep.config import ignored_settings
    from diffvocsep.training.arguments import training_arguments

    monkeypatch.chdir(ROOT)
    found = examples(command)
    assert len(found) >= 2
    for words in found:
        args = training_arguments("").parse_args([word.replace("DEV", str(tmp_path)) for word in words])
        config = load_config(args.config, args.overrides)
        assert not list(ignored_settings(config, [override.split("=")[0] for override in args.overrides]))
        if config.data.dataset == "stems":
            assert Path(config.data.dev_root) == tmp_path and config.data.root == "TRAIN"
