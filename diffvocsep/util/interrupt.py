"""Ctrl-C, and the polite kill of torchrun and of clusters: what runs comes to a good end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

# SIGHUP: the terminal was closed. Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HEARING: set[Interruption] = set()


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


def _deliver(*_: object) -> None:
    if not HEARING:
        raise KeyboardInterrupt
    for interruption in list(HEARING):
        interruption.hear()
