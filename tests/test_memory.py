"""Freed memory that the process keeps."""

import subprocess
import sys

import pytest

from meanaudio.memory import KEEP, keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from meanaudio.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")

def fill():  # two blocks at once, as a layer's input and output: 96 MB
    return [np.full(12 << 20, 1, np.float32) for _ in range(2)]

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    made = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False)
    if "not glibc" in made.stderr:
        pytest.skip("another C library")
    assert made.returncode == 0, made.stderr
    return int(made.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own setting")
def test_freed_blocks_are_not_faulted_in_again():
    assert faults("keep") < 0.05 * faults("give back")


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(KEEP, "0")
    assert not keep_freed_memory()


HELD = """
from pathlib import Path
import numpy as np
from meanaudio.memory import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
blocks = [np.full(4 << 20, 1, np.float32) for _ in range(16)]  # 256 MB
del blocks
kept = resident() - before
give_back_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own setting")
def test_kept_memory_can_be_given_back():
    made = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    kept, left = map(int, made.stdout.split())
    if kept > 200e6:  # with another C library it went at once
        assert left < 20e6
