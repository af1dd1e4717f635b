"""What is said of a key of the config where the key stands: its limit, when it matters, and whether weights depend on
it. It knows no key of this project."""

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


def about(limit: Limit | None = None, *used: Condition, fixed: bool = False) -> dict[str, Any]:
    """The metadata of a dataclass field.

    Args:
        limit: what a value must be, beside having the type.
        used: conditions under which the key matters at all; where one does not hold, it is ignored.
        fixed: whether trained weights are bound to the value.
    """
    return {"limit": limit, "used": used, "fixed": fixed}


def key(default: Any, limit: Limit | None = None, *used: Condition, fixed: bool = False) -> Any:
    """A dataclass field with its default, and the rest as `about` takes it."""
    return field(default=default, metadata=about(limit, *used, fixed=fixed))


def between(low: float, high: float) -> Limit:
    return Limit(f"between {low} and {high}", lambda v: low <= v <= high)


def at_least(low: float, high: float) -> Limit:
    """For keys whose upper bound is only what no computer can do more of."""
    return Limit(f"at least {low} and at most {high}", lambda v: low <= v <= high)


def more_than(low: float, high: float) -> Limit:
    return Limit(f"more than {low} and at most {high}", lambda v: low < v <= high)


def when(key: str, *values: Any) -> Condition:
    return Condition(key, lambda v: v in values)


def unless(key: str, *values: Any) -> Condition:
    return Condition(key, lambda v: v not in values)
