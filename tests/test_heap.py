import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, sys, torch
from diffvocsep import cli

def run():
    for round in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            [torch.ones(5_000_000) for _ in range(4)]  # 20 MB each, freed together
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return 0

run() if "bare" in sys.argv else cli.main(run)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told what to keep")
def test_scripts_use_freed_memory_again():
    """A page fault is a page that the kernel had to fill with zeros: nearly none once memory is kept."""
    faults = {}
    for how in ("bare", "script"):
        done = subprocess.run([sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["script"] < 100 < 1000 < faults["bare"]


def test_other_systems_are_left_alone(monkeypatch):
    from diffvocsep import heap

    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    heap.keep_freed_memory()
    monkeypatch.setattr(heap.sys, "platform", "win32")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: 1 / 0)
    heap.keep_freed_memory()
