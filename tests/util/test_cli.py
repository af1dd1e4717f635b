"""What all scripts share where no terminal is as it should be."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from diffvocsep.util.interrupt import Interruption

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "forkpty"), reason="a terminal of POSIX")
def test_a_terminal_that_is_closed_in_the_middle_of_a_line_ends_no_work(tmp_path):
    """Before the signal, or without one (nohup), a write to it fails."""
    code = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from diffvocsep.util import cli
def work():
    assert sys.stdout.isatty() and sys.stderr.isatty()
    for stream in [sys.stdout, sys.stderr] * 2000:
        print("a line of which nobody reads the end", file=stream, flush=True)
    Path(sys.argv[1]).touch()
    return 0
cli.main(work)
"""
    process, terminal = os.forkpty()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-c", code, str(tmp_path / "done")], {"PYTHONPATH": str(ROOT)})
    assert b"nobody" in os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "done").exists()


def test_a_signal_in_the_middle_of_a_line_stops_all_the_same():
    """A stream that is being written to refuses what the signal has to say."""

    class Middle(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data) -> int:
            signal.raise_signal(signal.SIGTERM)
            return len(data)

    line = io.TextIOWrapper(io.BufferedWriter(Middle()), "utf-8", line_buffering=True)
    with Interruption(lambda text: print(text, file=line)) as stop:
        print("another line", file=line)
    assert stop.requested
