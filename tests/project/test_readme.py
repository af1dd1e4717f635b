"""The documents: short, in two languages that say the same, and nothing in them that the repository does not have."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable
from functools import cache
from itertools import groupby, pairwise
from pathlib import Path

import pytest

from diffvocsep.command.program import RELEASED, TRAINED
from diffvocsep.config import Config, load_config, to_dict

ROOT = Path(__file__).parents[2]
README = {"en": "README.md", "ko": "README.ko.md"}
SCRIPTS = ["inference", "train", "train_tpu", "evaluate"]
PAGES = [page.relative_to(ROOT).as_posix() for page in sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ["checkpoints/README.md", "data/README.md", "data/demo/README.md"]
OWN = ("benchmarks", "diffvocsep", "scripts")  # packages
README_WORDS, PAGES_WORDS = 1300, 8000  # as `wc -w` counts them; of all pages together
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
DOTTED = re.compile(r"(?<![\w./\\-])([a-z]\w*\.[a-z]\w*)(?![\w./])", re.A)
SOURCE = re.compile(r"(?<![\w./\\-])((?:[\w-]+/)*[\w-]+\.(?:py|yaml|md|txt|cff))(?![\w.])", re.A)
COMMIT = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,40}\b")
SUFFIXES = {"py", "yaml", "md", "txt", "cff", "png", "wav", "mp3", "flac", "pt", "safetensors"}

both = pytest.mark.parametrize("language", README)
each_page = pytest.mark.parametrize("page", [*PAGES, *OTHERS])


@cache
def text(language: str) -> str:
    return read(README[language])


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(part: str) -> list[tuple[str, str]]:
    """(language, content) of the code blocks."""
    return FENCE.findall(part)


def prose(part: str) -> str:
    return FENCE.sub("", part)


def spans(part: str) -> list[str]:
    return SPAN.findall(prose(part))


def links(part: str) -> list[str]:
    return LINK.findall(prose(part))


def sections(part: str) -> list[tuple[int, str]]:
    """(level of the heading, text up to the next heading); a `#` in a code block is a comment, no heading."""
    fenced = [range(*match.span()) for match in FENCE.finditer(part)]
    headings = [m for m in re.finditer(r"^(#+) ", part, re.M) if not any(m.start() in block for block in fenced)]
    starts = [heading.start() for heading in headings] + [len(part)]
    return [(len(h[1]), part[a:b]) for h, (a, b) in zip(headings, pairwise(starts), strict=True)]


def shell_lines(part: str) -> list[str]:
    shells = "\n".join(content for shell, content in blocks(part) if shell in ("bash", "powershell"))
    return [line for line in shells.splitlines() if line.strip()]


def split(line: str) -> list[list[str]]:
    """The words of every command of a line, without comments."""
    words = shlex.split(re.sub(r"""("[^"]*")|&&|;""", lambda found: found[1] or " \0 ", line), comments=True)
    return [list(one) for end, one in groupby(words, lambda word: word == "\0") if not end]


def commands(part: str) -> list[list[str]]:
    """The words of every command in the shell blocks."""
    return [words for line in shell_lines(part) for words in split(line)]


def calls(part: str) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every command that runs a script, under torchrun too."""
    found = []
    for words in commands(part):
        at = next((i for i, word in enumerate(words) if re.fullmatch(r"\w+\.py", word)), 0)
        if at and words[0] in ("python", "torchrun", "OMP_NUM_THREADS=1"):
            found.append((words[at].removesuffix(".py"), words[at + 1 :]))
    return found


def module_calls(part: str) -> list[tuple[str, list[str]]]:
    """(module, arguments) of every `python -m` of a module of this repository."""
    pairs = [(words, words.index("-m") + 1) for words in commands(part) if "python" in words and "-m" in words]
    return [(words[at], words[at + 1 :]) for words, at in pairs if words[at].split(".")[0] in OWN]


@cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser that the script makes, caught where it is used."""

    class Caught(Exception):
        pass

    def catch(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as caught:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, catch)
        importlib.import_module(script).run([])
    return caught.value.args[0]


def options_of(script: str) -> set[str]:
    """The options at the beginning of a line of `--help`; its description names some too, true or not."""
    return set(re.findall(r"^ +(?:-\w(?: [A-Z]+)?, )?(--[\w-]+)", parser_of(script).format_help(), re.M))


def options_in(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


# --- two languages ------------------------------------------------------------------------------------------------

SAME: dict[str, Callable[[str], object]] = {
    "code blocks": blocks,
    "links": lambda part: sorted(link for link in links(part) if link not in README.values()),
    "pictures": lambda part: re.findall(r"!\[[^\]]*\]\(([^)]+)\)", prose(part)),
    "code in the prose": lambda part: sorted(spans(part)),
    "comments": lambda part: re.findall(r"<!--.*?-->", part, re.S),
    "decimal numbers": lambda part: sorted(re.findall(r"[-+]?\d+\.\d+", prose(part))),
    "table rows": lambda part: len(re.findall(r"^\|", prose(part), re.M)),
}


@pytest.mark.parametrize("trait", SAME)
def test_both_languages_have_the_same(trait):
    english, korean = ([SAME[trait](part) for _, part in sections(text(language))] for language in ("en", "ko"))
    assert any(english) or trait == "comments"
    assert english == korean


def test_both_languages_have_the_same_headings():
    english, korean = ([level for level, _ in sections(text(language))] for language in ("en", "ko"))
    assert english == korean
    assert english[0] == 1 and len(english) > 5


def test_each_language_leads_to_the_other_under_the_title():
    for language, other, name in [("en", "ko", "한국어"), ("ko", "en", "English")]:
        title, empty, link = text(language).splitlines()[:3]
        assert (title, empty, link) == ("# Diff-VocSep", "", f"[{name}]({README[other]})")


# --- how long, and in which order ---------------------------------------------------------------------------------


@both
def test_a_readme_is_short(language):
    assert len(text(language).split()) <= README_WORDS


def test_the_pages_are_short():
    assert {"docs/method.md", "docs/training.md", "docs/evaluation.md", "docs/benchmarks.md"} <= set(PAGES)
    assert sum(len(read(page).split()) for page in PAGES) <= PAGES_WORDS


@pytest.mark.parametrize("page", [*README.values(), *PAGES, *OTHERS])
def test_documents_explain_and_are_no_log(page):
    assert COMMIT.findall(read(page)) == []
    assert re.findall(r"\b(?:we wanted|at commit|used to be)\b", read(page)) == []


def test_the_rule_about_commits_knows_one():
    assert COMMIT.findall("at 79a685a, in 222058 lines of data") == ["79a685a"]


@both
def test_the_first_lines_separate_a_song_run_the_tests_and_train(language):
    first, second, third = map(split, shell_lines(text(language))[:3])
    setup = [["python3", "-m", "venv", ".venv"], [".", ".venv/bin/activate"]]
    demo = ["--input", "data/demo/song.ogg", "--output", "vocals.wav", "--plot", "picture.png"]
    assert first == [*setup, ["pip", "install", "-r", "requirements.txt"], ["python", "inference.py", *demo]]
    assert second == [*setup, ["pip", "install", "-r", "requirements-dev.txt"], ["python", "-m", "pytest"]]
    assert third == [["python", "train.py", "--config", "config.yaml"]]
    assert (ROOT / "data" / "demo" / "song.ogg").is_file()


@both
def test_powershell_does_the_same(language):
    (windows,) = (content for shell, content in blocks(text(language)) if shell == "powershell")
    runs = [split(line)[-1] for line in windows.replace(".venv\\Scripts\\python", "python").splitlines()]
    assert runs == [split(line)[-1] for line in shell_lines(text(language))[:2]]


# --- what they name is there --------------------------------------------------------------------------------------


@both
def test_files_named_exist(language):
    own = [block for block in blocks(text(language)) if block[0]]
    words = "\n".join([*spans(text(language)), *(content for _, content in own)])
    named = set(SOURCE.findall(words)) | {span for span in spans(text(language)) if re.fullmatch(r"[\w/]+/", span)}
    assert {"train.py", "inference.py", "evaluate.py", "config.yaml", "requirements-dev.txt", "configs/"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@both
def test_the_map_of_the_code_names_modules_that_exist(language):
    (code_map,) = (content for kind, content in blocks(text(language)) if not kind and "unet.py" in content)
    first_column = re.findall(r"^(\S.*?)  ", code_map, re.M)
    named = [name for column in first_column for name in column.split(", ")]
    assert len(first_column) == len(code_map.splitlines())
    assert [name for name in named if not (ROOT / "diffvocsep" / name).exists()] == []


@both
def test_links_lead_to_files_and_headings_that_exist(language):
    local = [link for link in links(text(language)) if not link.startswith("https://")]
    assert {"docs/example.png", "config.yaml", "LICENSE"} <= set(local)
    for link in local:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        assert not anchor or anchor in slugs(ROOT / path), link


@both
def test_checkpoints_and_logs_are_where_the_programs_put_them(language):
    configs = [load_config(path) for path in [ROOT / "config.yaml", *sorted((ROOT / "configs").glob("*.yaml"))]]
    known = {f"{config.log.checkpoint_dir}/{name}" for config in configs for name in ("best.pt", "last.pt")}
    known |= {RELEASED.as_posix(), TRAINED.as_posix()}
    named = set(re.findall(r"\bcheckpoints/[\w/.-]+\.(?:pt|safetensors)\b", text(language), re.A))
    assert named and named <= known
    folders = [words[2] for words in commands(text(language)) if words[:2] == ["tensorboard", "--logdir"]]
    assert folders and set(folders) <= {config.log.tb_log_dir for config in configs}


# --- what they say to type works ----------------------------------------------------------------------------------


@both
def test_commands_are_accepted_by_their_scripts(language):
    found = calls(text(language))
    assert {script for script, _ in found} == set(SCRIPTS)
    for script, words in found:
        assert options_in(words) <= options_of(script), words  # argparse alone would take abbreviations
        arguments = parser_of(script).parse_args(words)
        path = ROOT / arguments.config if getattr(arguments, "config", None) else None
        load_config(path, getattr(arguments, "overrides", []))


@both
def test_options_named_in_the_prose_belong_to_the_script_of_their_section(language):
    checked = set()
    for _, part in sections(text(language)):
        scripts = {script for script, _ in calls(part)} or set(SCRIPTS)
        known = set().union(*(options_of(script) for script in scripts))
        named = options_in(" ".join(spans(part)).split())
        assert named <= known
        checked |= named
    assert {"--bits", "--model_path", "--resume", "--sampler"} <= checked


@both
def test_values_of_options_named_in_the_prose_are_accepted(language):
    needed = ["--input", "song.wav", "--output", "vocals.wav"]
    placeholders = {"N": "1", "K": "1", "X": "0.5"}
    choices = [choice for span in spans(text(language)) for choice in re.findall(r"(--\w+) ([\w|]+)", span)]
    assert ("--sampler", "ddim|ddpm|dpmpp") in choices
    for option, values in choices:
        script, words = ("inference", needed) if option in options_of("inference") else ("train", [])
        for value in values.split("|"):
            parser_of(script).parse_args([*words, option, placeholders.get(value, value)])


@both
def test_keys_named_are_keys_of_the_config(language):
    shell = [content for kind, content in blocks(text(language)) if kind in ("bash", "powershell")]
    words = re.sub(r"https?://\S+", "", "\n".join([*spans(text(language)), *shell]))
    dotted = {name for name in DOTTED.findall(words) if name.split(".")[1] not in SUFFIXES} - {"section.key"}
    keys = {f"{section}.{key}" for section, values in to_dict(Config()).items() for key in values}
    assert {"data.root", "data.dev_root", "train.amp", "log.checkpoint_dir"} <= dotted
    assert dotted <= keys


@both
def test_settings_named_with_a_value_are_possible(language):
    settings = re.findall(r"^(\w+\.\w+): (.+)$", "\n".join(spans(text(language))), re.M)
    assert ("train.amp", "none") in settings
    for key, value in settings:
        load_config(None, [f"{key}={value}"])


@both
def test_ci_runs_the_test_command_of_the_readme(language):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    ci = [[word for word in line.split() if "=" not in word] for line in script.splitlines()]
    test = ["python", "-m", "pytest"]
    readme = commands(text(language))
    assert test in readme and test in ci
    install = readme[readme.index(test) - 1]  # what the tests need is installed from the same list
    assert install == ["pip", "install", "-r", "requirements-dev.txt"]
    assert any("pip" in line and line[-2:] == install[-2:] for line in ci[: ci.index(test)])


# --- the pages ----------------------------------------------------------------------------------------------------


@each_page
def test_links_of_a_page_lead_to_files_and_headings_that_exist(page):
    for link in links(read(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


def test_every_picture_is_shown():
    shown = set()
    for page in [*README.values(), *PAGES, *OTHERS]:
        shown |= {((ROOT / page).parent / link).resolve() for link in links(read(page)) if link.endswith(".png")}
    assert sorted(shown) == sorted((ROOT / "docs").resolve().glob("*.png"))


@each_page
def test_commands_of_a_page_are_accepted_by_their_programs(page):
    for program, words in [*calls(read(page)), *module_calls(read(page))]:
        assert options_in(words) <= options_of(program), words
        arguments = parser_of(program).parse_args(words)
        load_config(None, getattr(arguments, "overrides", []))


def test_the_pages_call_all_that_measures():
    called = {program for page in PAGES for program, _ in [*calls(read(page)), *module_calls(read(page))]}
    assert {"train", "evaluate", "inference", "benchmarks.inference", "benchmarks.ablation"} <= called


@each_page
def test_files_and_keys_that_a_page_names_exist(page):
    words = "\n".join([*spans(read(page)), *shell_lines(read(page))])
    places = [ROOT, ROOT / "diffvocsep", ROOT / "docs"]
    named = {name for name in SOURCE.findall(words) if not any((place / name).exists() for place in places)}
    assert named == set()
    sections_of = to_dict(Config())
    dotted = [name.split(".") for name in DOTTED.findall(re.sub(r"https?://\S+", "", words))]
    keys = [(section, key) for section, key in dotted if section in sections_of and key not in SUFFIXES]
    assert [f"{section}.{key}" for section, key in keys if key not in sections_of[section]] == []
