"""What all scripts share where no terminal is as it should be."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffvocsep.util import cli
from diffvocsep.util.atomic import write_atomic
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


FULL = "error: the disk is full at 'stdout' (No space left on device): make room, and run it again\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    ("end", "unbuffered", "code", "said"),
    [
        ("/dev/full", "", 1, FULL),
        (None, "", 141, ""),
        (None, "1", 141, ""),
    ],
)
def test_what_cannot_be_printed_ends_in_a_sentence_or_for_a_closed_pipe_in_silence(end, unbuffered, code, said):
    script = "from diffvocsep.util.cli import main; main(lambda: print('a table') or 0)"
    if end:
        out = os.open(end, os.O_WRONLY)
    else:
        read, out = os.pipe()
        os.close(read)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=out, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(out)
    assert (done.returncode, done.stderr) == (code, said)


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full at 'a.csv'"), (errno.EFBIG, "no file may grow further at 'a.csv'"),
     (errno.EIO, "error: [Errno")],
)  # fmt: skip
def test_a_full_disk_is_said_with_its_file_and_what_to_do(tmp_path, capsys, number, said):
    def write(part: Path) -> None:
        raise OSError(number, os.strerror(number))  # without a name, as from a write

    with pytest.raises(SystemExit) as ended:
        cli.main(lambda: write_atomic(tmp_path / "a.csv", write))
    error = capsys.readouterr().err
    assert ended.value.code == 1 and said.replace("'a.csv'", "'" + str(tmp_path / "a.csv")) in error
    assert ("run it again" in error) == (number != errno.EIO)
