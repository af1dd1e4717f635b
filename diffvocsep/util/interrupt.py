"""Signals that ask for a stop (Ctrl-C, SIGTERM of torchrun and clusters, a closed terminal): the step is finished and
saved first."""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# SIGHUP: the terminal was closed. Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
LISTENERS: set[Interruption] = set()  # those whose `with` block runs
PARENT_SECONDS = 2.0  # how often a process of torchrun looks for its parent
EXIT_AT_ONCE = False  # whether a signal ends the process without a word to them, see `exit_on_signal`


class Interruption:
    """Within its `with` block, the first signal only sets `requested`; the second raises KeyboardInterrupt.

    Python handles signals in the main thread only. A block in another thread needs `install_handlers`, called in the
    main one.

    Args:
        say: called with a line of text at the first signal.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.requested = say, False

    def __enter__(self) -> Interruption:
        LISTENERS.add(self)
        self.previous = install_handlers() if threading.current_thread() is threading.main_thread() else {}
        return self

    def __exit__(self, *_: object) -> None:
        LISTENERS.discard(self)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self) -> None:
        """A signal has come."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with suppress(RuntimeError):  # a signal in the middle of another line: streams cannot be written to within
            self.say("stopping after this step (a second time: at once)")


def install_handlers() -> dict[int, object]:
    """Pass signals on to the `Interruption`s of this process; returns the handlers that were there before, by number.
    Under `nohup`, a closed terminal is still ignored."""
    handled = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _handle) for number in handled}


def stop_without_parent() -> None:
    """Stop as at SIGTERM once the parent is gone: a torchrun that was killed tells its processes nothing, and they
    would train on unseen. Windows keeps the number of a parent that has ended, so there is nothing to see."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    parent = os.getppid()
    if os.name == "posix":
        threading.Thread(target=watch, name="parent", daemon=True).start()


def _handle(number: int, *_: object) -> None:
    if number == getattr(signal, "SIGHUP", None):
        _detach_terminal()
    if EXIT_AT_ONCE:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(130)
    if not LISTENERS:
        raise KeyboardInterrupt
    for interruption in list(LISTENERS):
        interruption.request()


def _detach_terminal() -> None:
    """Point stdout and stderr to the null device where nobody reads them any more: a write to a closed terminal, or to
    the pipe of a program that ended with it, would fail before anything is saved."""
    for descriptor in (1, 2):
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode) or os.isatty(descriptor):
                continue
            if (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) and not nobody_reads(descriptor):
                continue
        except OSError:
            pass
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


def nobody_reads(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed. Windows cannot tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Around imports: a signal ends the process at once, with exit code 130. A KeyboardInterrupt in the middle of an
    import could be caught there, or leave half a module behind."""
    global EXIT_AT_ONCE
    EXIT_AT_ONCE = True
    try:
        yield
    finally:
        EXIT_AT_ONCE = False
