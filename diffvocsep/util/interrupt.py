"""Ctrl-C, the polite kill of torchrun and of clusters, a closed terminal: what runs comes to a good end."""

from __future__ import annotations

import os
import select
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# SIGHUP: the terminal was closed. Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HEARING: set[Interruption] = set()
BEGUN = True


class Interruption:
    """Whether someone wants a stop, heard within `with`; the second time, it is a KeyboardInterrupt at once.

    Only the main thread can listen. In another one this hears what `listen`, called in the main one, passes on.

    Args:
        say: told of the first time.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.asked = say, False

    def __enter__(self) -> Interruption:
        HEARING.add(self)
        self.previous = listen() if threading.current_thread() is threading.main_thread() else {}
        return self

    def __exit__(self, *_: object) -> None:
        HEARING.discard(self)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def hear(self) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step (a second time: at once)")


def listen() -> dict[int, object]:
    """Let all interruptions of this process hear; returns the handlers that did so before. Under `nohup`, a closed
    terminal stays unheard."""
    heard = [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _deliver) for number in heard}


def _deliver(number: int, *_: object) -> None:
    if number == getattr(signal, "SIGHUP", None):
        _give_up_terminal()
    if not BEGUN:
        with suppress(OSError):
            os.write(2, b"interrupted\n")
        os._exit(130)
    if not HEARING:
        raise KeyboardInterrupt
    for interruption in list(HEARING):
        interruption.hear()


def _give_up_terminal() -> None:
    """Let stdout and stderr end in nothing where nobody reads them any more: who writes to a closed terminal, or to
    the pipe of a program that went with it, would fail before anything is saved."""
    for descriptor in (1, 2):
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode) or os.isatty(descriptor):
                continue
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                poll = select.poll()
                poll.register(descriptor, 0)
                if not poll.poll(0):
                    continue
        except OSError:
            pass
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


@contextmanager
def nothing_begun() -> Iterator[None]:
    """Around imports: whoever wants a stop gets it at once, with exit code 130. A KeyboardInterrupt in the middle of an
    import can be caught there, or leave half a module behind."""
    global BEGUN
    BEGUN = False
    try:
        yield
    finally:
        BEGUN = True
