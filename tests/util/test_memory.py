import os
import platform
import subprocess
import sys

import pytest

CHILD = """
import ctypes, resource, sys, torch
ctypes.CDLL(None).mallopt(-3, 65536)  # every large block is the kernel's, which else depends on what was freed before
from diffvocsep.util import cli
from diffvocsep.evaluation.parallel import parallel_map

def faults(_=None):
    for round in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8):
            [torch.ones(5_000_000) for _ in range(4)]  # 20 MB each, freed together
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def run():
    print(max(parallel_map(faults, [1, 2], 2, "")) if "parallel_map" in sys.argv else faults())
    return 0

if __name__ == "__main__":
    run() if "bare" in sys.argv else cli.main(run)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told what to keep")


@pytest.fixture
def faults(tmp_path):
    """Page faults, each a page that the kernel had to fill with zeros, of a program that frees memory and asks again;
    where there are several processes, of the one with most."""
    program = tmp_path / "child.py"
    program.write_text(CHILD, encoding="utf-8")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def count(how: str, **environment: str) -> int:
        done = subprocess.run(
            [sys.executable, program, how], capture_output=True, text=True, check=True,
            env=bare | {"PYTHONPATH": os.getcwd()} | environment,
        )  # fmt: skip
        return int(done.stdout)

    return count


@glibc
@pytest.mark.slow
def test_scripts_use_freed_memory_again(faults):
    assert faults("script") < 100 < 1000 < faults("bare")


@glibc
@pytest.mark.slow
def test_and_so_do_the_processes_that_score(faults):
    """They are spawned, and never pass `cli.main`."""
    assert faults("each") < 1000


@pytest.mark.slow
@glibc
def test_what_the_environment_says_counts(faults):
    assert faults("script", MALLOC_TRIM_THRESHOLD_="131072") > 1000
