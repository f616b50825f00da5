"""Kept memory, measured by the new pages that a process needs."""

import json
import subprocess
import sys

import pytest

from mdmscale.system.allocator import glibc

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or glibc() is None, reason="counts what glibc asks Linux for"
)

PROGRAM = """
import resource, torch
from mdmscale.system.allocator import keep_freed_memory, return_freed_memory

def new_pages(rounds=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(1 << 24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages()
print(new_pages())
keep_freed_memory()
return_freed_memory()  # before anything was kept, which would be used first
print(new_pages())
keep_freed_memory()
new_pages(24)  # until it lies where it can stay
print(new_pages())
"""


def test_kept_memory_is_not_mapped_again() -> None:
    """Runs in its own process, whose allocator still has its defaults."""
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    returned, returned_again, kept = map(int, process.stdout.split())
    assert returned > 8, "a page of 64 MiB there is not"
    assert kept < returned / 10
    assert returned_again > returned / 2


GROWING = """
import json, torch
from mdmscale.system.allocator import KeptMemory, keep_freed_memory, process_memory

def step(mebibytes):
    torch.ones(mebibytes << 18)
    return memory.after_step(), process_memory("VmRSS") >> 20

torch.ones(1)
keep_freed_memory()
memory, before = KeptMemory(), process_memory("VmRSS") >> 20
settling = [step(64) for _ in range(3)]
kept = step(64)
grown = step(before + 128)
settled = [step(64) for _ in range(4)]
returned = [returned for returned, _ in [*settling, kept, grown, *settled]]
print(json.dumps([returned, kept[1] - before, grown[1] - before]))
"""


def test_a_process_that_has_grown_returns_what_it_keeps() -> None:
    process = subprocess.run([sys.executable, "-c", GROWING], capture_output=True, text=True, check=True)
    returned, kept, after = json.loads(process.stdout)
    assert returned == [False] * 4 + [True] + [False] * 4, "only after the step that made it grow"
    assert kept > 60, "the 64 MiB of the steps before stay"
    assert after < 60
