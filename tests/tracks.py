"""What the tests of songs on disk share: the sentence of a refusal, names, and what a computer must have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import pytest

from diffvocsep.data import Track
from diffvocsep.util.errors import UserError


def message(call: Callable, *args) -> str:
    """The one line with which `call(*args)` refuses."""
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def names(tracks: Iterable[Track]) -> list[str]:
    return [track.name for track in tracks]


def need(present: bool, what: str) -> None:
    """Skip a test on a computer without `what`; the continuous integration must have it."""
    if not present:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"needs {what}")
