"""TensorBoard's event files, written in the thread that asks for it: an error is raised where it can be told, while
`SummaryWriter` leaves it to a thread of its own, which prints a traceback."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from ..util.atomic import with_filename


class EventFile:
    """One more event file of a run.

    Args:
        folder: of the run.
        purge_step: TensorBoard forgets what earlier files say from this step on.

    Methods raise OSError where nothing can be written, `flush` and `close` alone.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names: two of one second must not change places.
        began, writer = time.time_ns(), f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        name = f"events.out.tfevents.{began // 10**9:010d}.{began % 10**9:09d}.{writer}"
        self.path, self.pending = folder / name, bytearray()
        self.records = RecordWriter(self)
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def write(self, data: bytes) -> None:
        self.pending += data

    def flush(self) -> None:
        """Append what is pending. Where that fails, it is not tried again: the file may have got a part of it."""
        data, self.pending = self.pending, bytearray()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with with_filename(self.path), open(self.path, "ab", buffering=0) as file:
            while data:
                del data[: file.write(data)]

    close = flush

    def add(self, values: Summary, step: int | None = None) -> None:
        self._add(Event(step=step, summary=values))

    def scalar(self, tag: str, value: float, step: int) -> None:
        self.add(summary.scalar(tag, value), step)

    def text(self, tag: str, text: str, step: int) -> None:
        self.add(summary.text(tag, text), step)

    def image(self, tag: str, pixels: object, step: int) -> None:
        """`pixels` `(H, W, 3)` of 8 bit."""
        self.add(summary.image(tag, pixels, dataformats="HWC"), step)

    def audio(self, tag: str, sound: Tensor, step: int, sample_rate: int) -> None:
        """`sound` `(N,)` within -1 and 1."""
        self.add(summary.audio(tag, sound, sample_rate=sample_rate), step)

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())
