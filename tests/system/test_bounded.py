"""Calls in a child process end within their limits, and the next call works."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mdmscale.system import bounded as module
from mdmscale.system.bounded import BoundedError, bounded
from mdmscale.system.patterns import found_in, pattern_problem

HERE = __name__


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module._child.cache_clear()
    monkeypatch.setattr(module, "SECONDS", 0.3)
    monkeypatch.setattr(module, "NUM_BYTES", 2**28)
    monkeypatch.setattr(module, "LONGEST", 2**20)
    yield
    module._child.cache_clear()


def double(values: list[int]) -> list[int]:
    return [2 * value for value in values]


def loop() -> None:
    while True:
        pass


def loop_in_c() -> bool:
    return re.match(r"(a+)+$", "a" * 64 + "b") is not None


def sleep_then(text: str) -> str:
    time.sleep(0.5)
    return text


def fill() -> int:
    return len(b"x" * 2**40)


def fill_slowly() -> int:
    text = "x"
    while True:
        text += text


def long_text() -> str:
    return "x" * 2**21


def fail(message: str) -> None:
    raise ValueError(message)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def call(function: object, *arguments: object) -> object:
    return bounded(f"{HERE}:{function.__name__}", *arguments)  # type: ignore[attr-defined]


def test_a_call_returns_what_the_function_does() -> None:
    assert call(double, [1, 2, 3]) == [2, 4, 6]
    assert call(sleep_then, "\ud800 \u00e9") == "\ud800 \u00e9"  # a wait is not processor time


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (loop, "takes more than 0.3 s"),
        (loop_in_c, "takes more than 0.3 s"),
        (fill, "needs more than 0.25 GiB of memory"),
        (fill_slowly, "needs more than 0.25 GiB of memory"),
        (long_text, "gives more than 1 MiB of text"),
        (die, "ended its process (status -9)"),
    ],
)
def test_what_goes_beyond_a_limit_is_ended(function: object, message: str) -> None:
    for _ in range(2):
        with pytest.raises(BoundedError) as ended:
            call(function)
        assert str(ended.value).startswith(message)


def test_an_error_is_one_line() -> None:
    with pytest.raises(BoundedError, match=r"^first$"):
        call(fail, "\n first\nsecond")
    with pytest.raises(BoundedError, match=r"^ValueError$"):
        call(fail, "")
    with pytest.raises(BoundedError, match=r"^x{1000}$"):
        call(fail, "x" * 10**6)
    assert call(double, [1]) == [2]


def test_a_fork_has_a_child_of_its_own() -> None:
    """In a small process: one that runs many tests may be too large to fork."""
    script = """if True:
        import os
        from mdmscale.system.bounded import bounded
        assert bounded("operator:neg", 1) == -1
        child = os.fork()
        if child == 0:
            os._exit(0 if bounded("operator:neg", 4) == -4 else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert bounded("operator:neg", 3) == -3
    """
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_patterns_are_searched_for_and_end() -> None:
    assert found_in(r"^b|c$", ["a", "b", "bc", "xc", "cx"]) == [1, 2, 3]
    with pytest.raises(BoundedError, match="takes more than"):
        found_in(r"(a+)+$", ["a" * 64 + "b"])
    with pytest.raises(BoundedError, match="missing \\), unterminated subpattern"):
        found_in("(", [""])


@pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 100_000 + ")" * 100_000])
def test_what_is_no_pattern_is_said(pattern: str) -> None:
    assert pattern_problem(pattern)
    assert pattern_problem("(a+)+$") is None
