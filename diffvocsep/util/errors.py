"""The one exception that means "the user can fix this": scripts print it as one sentence and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or usage. The message is one sentence that says what is wrong and what to do."""


class WorkFailed(OSError):
    """The work failed for a reason that is not in the input, such as a full disk. The message is one sentence: scripts
    print it and exit with code 1, as for every OSError."""


class SaidByAnother(ConnectionError):
    """Another process of this run has ended and said why: scripts print nothing more and exit with code 1."""


def size(count: int) -> str:
    """So many bytes, as a sentence has them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
