"""Songs wait in one line, whoever brought them, and one at a time is separated."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..util.cli import complain
from ..util.errors import UserError


class Cancelled(Exception):
    """Nobody waits for this song any more."""


@dataclass
class QueuedSong:
    """A song on its way: `sending`, `waiting`, `running`, then `done` (with `facts`) or `failed` (with `error`)."""

    visitor: str
    name: str  # as the visitor calls it
    size: int  # bytes
    folder: Path  # all its files, and nothing else
    steps: int
    samples: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: str = "sending"
    progress: float = 0.0
    error: str = ""
    facts: dict[str, int] = field(default_factory=dict)
    cancelled: bool = False

    @property
    def source(self) -> Path:
        """Where its audio lies; the visitor's name for it may be one that no file system takes."""
        suffix = Path(self.name).suffix.lower()
        return self.folder / ("song" + (suffix if suffix[1:].isascii() and suffix[1:].isalnum() else ""))

    def watch(self, share: float) -> None:
        """Called with the share of the work that is done. Raises `Cancelled` to end it."""
        if self.cancelled:
            raise Cancelled
        self.progress = share


class Queue:
    """The line of songs and the thread that works on the first.

    Args:
        work: separates a song and returns its facts; may raise UserError for what is wrong with the song.
        folder: of the songs' folders.
    """

    def __init__(self, work: Callable[[QueuedSong], dict[str, int]], folder: Path) -> None:
        self.work, self.folder = work, folder
        self._songs: dict[str, QueuedSong] = {}  # in the order of the line
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="separation", daemon=True)
        self._thread.start()

    def add(self, visitor: str, name: str, size: int, steps: int, samples: int) -> QueuedSong:
        """A new song, whose audio is still to come; `ready` puts it in line."""
        song = QueuedSong(visitor, name, size, self.folder / secrets.token_hex(8), steps, samples)
        song.folder.mkdir()
        with self._changed:
            self._songs[song.id] = song
        return song

    def ready(self, song: QueuedSong) -> None:
        """The audio of a song is there: it goes to the end of the line."""
        with self._changed:
            if self._songs.pop(song.id, None):
                self._songs[song.id] = song
                song.state = "waiting"
                self._changed.notify_all()

    def find(self, visitor: str, song_id: str) -> QueuedSong | None:
        song = self._songs.get(song_id)
        return song if song is not None and song.visitor == visitor else None

    def remove(self, song: QueuedSong) -> None:
        """End the work on a song, whatever its state, and delete its files."""
        with self._changed:
            self._songs.pop(song.id, None)
            song.cancelled = True
            if song.state != "running":  # else the thread deletes them: it may have them open
                shutil.rmtree(song.folder, ignore_errors=True)

    def forget(self, visitor: str) -> None:
        """Remove all songs of a visitor who left."""
        for song in [song for song in list(self._songs.values()) if song.visitor == visitor]:
            self.remove(song)

    def report(self, visitor: str) -> list[dict[str, Any]]:
        """The state of each song of a visitor, as JSON for the page."""
        entries, ahead = [], 0
        with self._changed:
            for song in self._songs.values():
                if song.visitor == visitor:
                    entries.append({
                        "id": song.id, "name": song.name, "state": song.state, "progress": round(song.progress, 3),
                        "ahead": ahead, "error": song.error, **song.facts,
                    })  # fmt: skip
                ahead += song.state in ("waiting", "running")
        return entries

    def close(self, seconds: float = 60.0) -> None:
        """End all work and delete all files; waits so long for the song at work."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for song in list(self._songs.values()):
            self.remove(song)
        self._thread.join(seconds)

    def _next(self) -> QueuedSong | None:
        """The first song in line, as soon as there is one; None when the line is closed."""
        with self._changed:
            while not self._closed:
                if song := next((song for song in self._songs.values() if song.state == "waiting"), None):
                    song.state = "running"
                    return song
                self._changed.wait()
        return None

    def _run(self) -> None:
        while song := self._next():
            state = "failed"
            try:
                song.facts, state = self.work(song), "done"
            except Cancelled:
                pass
            except UserError as error:
                song.error = str(error).replace(str(song.source), song.name).replace(f"{song.folder}{os.sep}", "")
            except Exception as error:  # the next song is not to suffer from it
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                song.error = f"'{song.name}' could not be separated ({reason}); try another song or other settings"
                complain(song.error)
            with self._changed:
                song.state = state
                with suppress(OSError):
                    song.source.unlink(missing_ok=True)  # its stems add up to it
                if song.cancelled:
                    shutil.rmtree(song.folder, ignore_errors=True)
