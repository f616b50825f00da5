"""Freed memory that is kept: by the pages that a process must be given anew."""

import resource
import sys
from collections.abc import Iterator

import pytest
import torch

from mdmscale.allocator import glibc, keep_freed_memory, return_freed_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or glibc() is None, reason="counts what glibc asks Linux for"
)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    return_freed_memory()
    yield
    return_freed_memory()


def new_pages(rounds: int = 8) -> int:
    """Page faults of making and dropping a tensor of 64 MiB, so many times, after as many."""
    for _ in range(rounds):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_kept_memory_is_not_mapped_again() -> None:
    returned = new_pages()
    assert returned > 8, "a page of 64 MiB there is not"
    keep_freed_memory()
    new_pages()  # until it lies where it can stay
    assert new_pages() < returned / 10
