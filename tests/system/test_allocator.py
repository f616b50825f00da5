"""Kept memory, measured by the new pages that a process needs."""

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
