"""Dataclass fields for config keys, with metadata: the limit of a value, when the key matters, whether trained weights
are bound to it, and whether a separation reads it. Nothing here knows a key of this project."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limit:
    must_be: str  # as in "train.lr is 0 but must be <must_be>"
    allows: Callable[[Any], bool]


@dataclass(frozen=True)
class Condition:
    key: str  # section.key of the setting that decides
    holds: Callable[[Any], bool]  # of its value


def field_metadata(
    limit: Limit | None = None, *conditions: Condition, fixed: bool = False, separates: bool = False
) -> dict[str, Any]:
    """The metadata of a dataclass field.

    Args:
        limit: what a value must be, beside having the type.
        conditions: where one of them does not hold, the key is ignored.
        fixed: whether trained weights are bound to the value.
        separates: whether a separation reads it, of the settings that trained weights are not bound to.
    """
    return {"limit": limit, "used": conditions, "fixed": fixed, "separates": separates}


def key(default: Any, *what: Limit | Condition | None, **flags: bool) -> Any:
    """A dataclass field with its default, and the rest as `field_metadata` takes it."""
    return field(default=default, metadata=field_metadata(*what, **flags))


def between(low: float, high: float) -> Limit:
    return Limit(f"between {low} and {high}", lambda v: low <= v <= high)


def at_least(low: float, high: float) -> Limit:
    """For keys whose upper bound is merely out of any computer's reach."""
    return Limit(f"at least {low} and at most {high}", lambda v: low <= v <= high)


def more_than(low: float, high: float) -> Limit:
    return Limit(f"more than {low} and at most {high}", lambda v: low < v <= high)


def when(key: str, *values: Any) -> Condition:
    return Condition(key, lambda v: v in values)


def unless(key: str, *values: Any) -> Condition:
    return Condition(key, lambda v: v not in values)
