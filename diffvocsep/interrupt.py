"""Ctrl-C, and the polite kill of torchrun and of clusters: what runs comes to a good end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class Interruption:
    """Whether someone wants a stop, heard within `with`; the second time, it is a KeyboardInterrupt at once.

    Args:
        say: told of the first time.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.asked = say, False

    def __enter__(self) -> Interruption:
        main = threading.current_thread() is threading.main_thread()  # no other is allowed to listen
        heard = (signal.SIGINT, signal.SIGTERM) if main else ()
        self.previous = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _hear(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this step (press Ctrl-C again to stop at once)")
