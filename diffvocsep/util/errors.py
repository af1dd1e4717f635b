"""The one exception that means "the user can fix this": scripts print it as one sentence and exit with code 2."""

from __future__ import annotations

import errno

DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class UserError(Exception):
    """Bad input or usage. The message is one sentence that says what is wrong and what to do."""


class WorkFailed(OSError):
    """The work failed for a reason that is not in the input, such as a full disk. The message is one sentence: scripts
    print it and exit with code 1, as for every OSError."""


class SaidByAnother(ConnectionError):
    """Another process of this run has ended and said why: scripts print nothing more and exit with code 1."""


def out_of_room(error: OSError) -> str:
    """What is wrong and what to do where a disk is full or a file may grow no further; empty for any other error."""
    at = f" at '{error.filename}' ({error.strerror})" if error.filename else f" ({error.strerror})"
    if error.errno == errno.EFBIG:
        return f"no file may grow further{at}: raise the limit on the size of files (ulimit -f)"
    return f"the disk is full{at}: make room" if error.errno in DISK_FULL else ""


def size(count: int) -> str:
    """So many bytes, as a sentence has them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
