"""What the scripts share: exit codes, and one sentence instead of a traceback."""

from __future__ import annotations

import argparse
import errno
import io
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from .errors import SaidByAnother, UserError, out_of_room
from .interrupt import install_handlers, nobody_reads, stop_without_parent
from .memory import keep_freed_memory

TORCHRUN = "TORCHELASTIC_RUN_ID"  # only processes that torchrun has started have it


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one sentence, as all others are."""

    def __init__(self, **options) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists what there is")


def main(run: Callable[[], int]) -> NoReturn:
    """Run a script and exit: 0 done, 1 the work failed, 2 bad input or usage, 130 Ctrl-C or SIGTERM, 141 in silence:
    nobody reads stdout any more, as of a program that SIGPIPE ends."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads wait asleep: on a busy machine spinning costs
    open_streams()
    outlive_terminal()
    for stream in (sys.stdout, sys.stderr):  # a Korean Windows console defaults to cp949
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    install_handlers()  # SIGTERM, of `timeout` and of clusters, acts like Ctrl-C: what is unfinished is cleaned up
    if TORCHRUN in os.environ:
        stop_without_parent()
    try:
        code = run()
        sys.stdout.flush()
        _exit(code)
    except UserError as error:
        complain(str(error))
        _exit(2)
    except SaidByAnother:
        _exit(1)
    except OSError as error:  # a full disk, a folder without rights: the sentence of the system names file and reason
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename2 or error.filename)[:100]  # the second: of a rename, where it leads
            complain(f"'{name}...' is too long a name; give a shorter one")
            _exit(2)
        if error.filename is None and _silence_stdout():
            if error.errno == errno.EPIPE:
                _exit(141)
            error.filename = "stdout"
        room = out_of_room(error)
        complain(f"{room}, and run it again" if room else str(error))
        _exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _exit(130)


def _silence_stdout() -> bool:
    """Whether nothing can be written to stdout any more; then it swallows everything, or Python would fail at its end
    once more."""
    try:
        sys.stdout.flush()  # what could not be written is still there
        if not nobody_reads(sys.stdout.fileno()):
            return False
    except io.UnsupportedOperation:  # no real stream
        return False
    except OSError:
        pass
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
    return True


def open_streams() -> None:
    """Give a process without stdin, stdout or stderr (pythonw.exe, services, `2>&-`) ones that swallow everything: else
    the first file it opens takes that number, and what libraries print goes into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


class Terminal(io.FileIO):
    """A terminal that may be closed in the middle of a line. What nobody can read any more is lost and no error: a
    training is still saved, since the signal that follows asks for it."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return len(data)


def outlive_terminal() -> None:
    """Have stdout and stderr write to a `Terminal` where they are one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if os.name == "posix" and stream.isatty() and hasattr(stream, "buffer"):
            buffer = io.BufferedWriter(Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, line_buffering=True))


def printable(text: str) -> str:
    """The text on one line, as a terminal may show it: names of files may hold line feeds, and codes that it obeys."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter
        for letter in text
    )


def say(text: str) -> None:
    """A line on stdout. Where nobody reads it any more (`| head`), the work goes on in silence."""
    try:
        print(printable(text), flush=True)
    except OSError:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _exit(code: int) -> NoReturn:
    """Exit. A process of torchrun skips Python's own shutdown, in which torch 2.11 with gloo was seen to abort
    ("terminate called without an active exception"), so that the exit code of a run that had ended well was lost."""
    if TORCHRUN in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def finite(text: str) -> float:
    """A number, for argparse: neither nan nor infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def complain(text: str) -> None:
    """What is wrong, a line on stderr."""
    print(f"error: {printable(text)}", file=sys.stderr)


def print_notes(notes: Iterable[str]) -> None:
    """What is worth knowing and no error, such as settings without effect: a line each on stderr."""
    for note in notes:
        print(f"note: {printable(note)}", file=sys.stderr)
