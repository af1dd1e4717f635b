"""Strict YAML for a dataclass of dataclasses: `{section: {key: value}}` with every name and type checked.

Aliases and tags are refused: a configuration needs none, and a few lines of them can stand for more than fits into
memory.

It knows no key of this project. Each function raises UserError with one sentence that names the key (`section.key`),
the value, and what would be right: the nearest key, the type or the choices.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .errors import UserError
from .folders import readable

MAX_CHARACTERS = 10**5  # characters of a file
MAX_EVENTS = 5000  # names, values and brackets in it
MAX_VALUE = 4096  # characters of a name or value; the longest path
MAX_COMPARED = 80  # characters of a name that is compared with the valid ones
MAX_DEPTH = 10  # collections in one another; sections, keys and lists make three

Sections = dict[str, dict[str, Any]]


class _Loader(yaml.SafeLoader):
    """YAML 1.1, except that 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read(path: Path) -> Any:
    """The content of a YAML file in UTF-8, with or without BOM; None if it is empty."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except FileNotFoundError:
        raise UserError("this file does not exist: give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError("this file is not UTF-8 text: save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"this file cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise UserError(f"this file cannot be read: {error}") from None
    return parse(text)


def parse(text: str) -> Any:
    """The value of one YAML document; a key may stand only once."""
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"this is longer than {MAX_CHARACTERS} characters: give a configuration")
    try:
        _refuse_bombs(text)
        loader = _Loader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node)
        return loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # ValueError: what only looks like a date or a number, as 2024-99-99
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"not valid YAML{where} ({shorten(why)})") from None


def require_text(text: str) -> None:
    """Raises UserError for bytes of a command line that Python could not read in the encoding of the system."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        coding = sys.getfilesystemencoding()
        remedy = "rename it" if coding == "utf-8" else "set the environment variable PYTHONUTF8=1, or rename it"
        raise UserError(f"'{shorten(readable(text))}' is no name in {coding.upper()}: {remedy}")


def _refuse_bombs(text: str) -> None:
    """Refuse what would cost more than its length to read. Events come one by one: nothing is built yet."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, _Loader)):
        reason = ""
        if count > MAX_EVENTS:
            reason = f"begins more than the {MAX_EVENTS} names and values that there may be"
        elif isinstance(event, yaml.AliasEvent):
            reason = "an alias, such as *name, is not taken: write out what it stands for"
        elif getattr(event, "tag", None) is not None:
            reason = "a tag, such as !name, is not taken: leave it out"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_VALUE:
            reason = f"a name or value is longer than {MAX_VALUE} characters"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                reason = f"brackets or lines are nested more than {MAX_DEPTH} deep"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if reason:
            raise UserError(f"not a configuration: in line {event.start_mark.line + 1} {reason}")


def _refuse_duplicates(node: yaml.Node, section: str = "") -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name = f"{section}{key.value}"
        if name in seen:
            raise UserError(
                f"{shorten(name)} stands a second time in line {key.start_mark.line + 1}: keep one of the two"
            )
        seen.add(name)
        if not section:
            _refuse_duplicates(value, f"{name}.")


@contextmanager
def prefix_errors(source: object) -> Iterator[None]:
    """Put the name of the source before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{shorten(source, 150)}: {error}") from None


def typed(config_class: type, mapping: object, aliases: Mapping[str, Mapping[Any, Any]]) -> Sections:
    """`mapping` with every value in the type of its dataclass field.

    `aliases[section.key]` maps booleans to the values that they stand for. The whole or a section may be empty (None).
    """
    sections = _hints(config_class)
    if mapping is None:
        return {}
    if not isinstance(mapping, Mapping):
        raise UserError(f"a configuration must have sections ({either(sections)}), not just {show(mapping)}")
    result: Sections = {}
    for section, keys in mapping.items():
        if section not in sections:
            raise UserError(_unknown_section(str(section), sections))
        if not isinstance(keys, (Mapping, type(None))):
            raise UserError(
                f"{section} is {show(keys)} but must be a section with keys such as {next(iter(sections[section]))}"
            )
        result[section] = {}
        for key, value in (keys or {}).items():
            name = f"{section}.{key}"
            if key not in sections[section]:
                raise UserError(_unknown_key(section, str(key), sections))
            if isinstance(value, bool):
                value = aliases.get(name, {}).get(value, value)
            result[section][key] = _typed_value(name, sections[section][key], value)
    return result


def _hints(config_class: type) -> dict[str, dict[str, Any]]:
    return {section: get_type_hints(cls) for section, cls in get_type_hints(config_class).items()}


def _unknown_section(name: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    homes = {key: section for section, keys in sections.items() for key in keys}
    key = name.rpartition(".")[2]
    if key in homes:
        return f"unknown section {show(name)}: {key} is a key of the section {homes[key]}"
    return f"unknown section {show(name)}: the nearest valid section is {nearest(name, sections)}"


def _unknown_key(section: str, key: str, sections: Mapping[str, Mapping[str, Any]]) -> str:
    home = next((other for other, keys in sections.items() if key in keys), section)
    return f"unknown key {show(f'{section}.{key}')}: the nearest valid key is {home}.{nearest(key, sections[home])}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The most similar of the valid names, however different it is; `lr` for `learning_rate`, whose initials it is."""
    name = name[:MAX_COMPARED]
    names, initials = list(valid), "".join(re.findall(r"(?<![a-z])[a-z]", name.lower()))
    return initials if initials in names else difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]


def _typed_value(name: str, hint: Any, value: Any) -> Any:
    try:
        return _convert(hint, value)
    except (ValueError, OverflowError):
        message = f"{name} is {show(value)} but must be {_describe(hint)}"
    if get_origin(hint) is Literal and isinstance(value, str):
        message += f": the nearest is {nearest(value, get_args(hint))}"
    raise UserError(message)


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`; ValueError if it is not one. An int is a float too, a bool is no int."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):  # X | None
        return None if value is None else _convert(args[0], value)
    if origin is Literal and isinstance(value, str) and value in args:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        elements = args[:1] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(element, item) for element, item in zip(elements, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {_convert(args[0], key): _convert(args[1], item) for key, item in value.items()}
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if hint is str and isinstance(value, str) and min(value, default=" ") >= " ":  # no tab from "C:\tracks"
        value.encode()  # ValueError for half a character
        return value
    if hint in (int, bool) and type(value) is hint:
        return value
    raise ValueError


def _describe(hint: Any, plural: bool = False) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return f"{_describe(args[0])} or null"
    if origin is Literal:
        return either(args)
    if origin is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        return f"a list of {count}{_describe(args[0], plural=True)}"
    if origin is dict:
        return "names with numbers, such as {name: 2}"
    one, many = {
        int: ("a whole number", "whole numbers"),
        float: ("a finite number", "finite numbers"),
        bool: ("true or false", "true or false"),
        str: ("text (if in doubt, in single quotes)", "texts"),
    }[hint]
    return many if plural else one


def either(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def show(value: Any) -> str:
    """`value` on one line as YAML spells it, shortened if it is long."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    except yaml.YAMLError:  # no YAML type
        text = repr(value)
    except ValueError:  # Python writes no more than 4300 digits
        text = "a number of thousands of digits"
    except RecursionError:
        text = "a value nested too deeply"
    return shorten(" ".join(text.removesuffix("...\n").split()))


def shorten(text: object, most: int = 80) -> str:
    """On one line, the beginning of what is longer than `most` characters."""
    text = " ".join(str(text).splitlines())
    return text if len(text) <= most else f"{text[: most - 3]}..."
