"""Lines of JSON are read as streams from both ends, whatever lies between them, and hold standard JSON."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from mdmscale.system.json_lines import json_line, read_objects, read_objects_backwards

JUNK = {
    "cut short": b'{"n": 1',
    "not UTF-8": b'{"n": "\xff\xfe"}\n',
    "zeros": bytes(5000) + b"\n",
    "text": b"hello\n",
    "a number": b"17\n",
    "a list": b'[{"n": 9}]\n',
    "blank": b"\n\n",
    "deep": b'{"n": ' * 100_000 + b"\n",
    "long": b"{" + b" " * 3_000_000 + b"}}\n",
    "a huge number": b'{"n": ' + b"9" * 10_000 + b"}\n",
}


def strict(line: str) -> dict[str, object]:
    """Parse by the standard, which has no NaN and no Infinity."""
    return json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_null_stands_for_what_json_does_not_have() -> None:
    content = {"a": math.nan, "b": [1.5, -math.inf], "c": {"d": math.inf, "e": 2}, "f": "NaN", "g": True}
    assert strict(json_line(content)) == {
        **{"a": None, "b": [1.5, None], "c": {"d": None, "e": 2}, "f": "NaN", "g": True}
    }
    assert json_line({"x": 0.1 + 0.2}) == '{"x": 0.30000000000000004}\n', "every bit"


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("place", ["first", "between", "last"])
def test_what_is_no_object_is_passed_over(tmp_path: Path, junk: bytes, place: str) -> None:
    path = tmp_path / "lines"
    lines = [b'{"n": 0}\n', b'{"n": 1}\n']
    lines.insert(
        ["first", "between", "last"].index(place), junk if place == "last" else junk.rstrip() + b"\n"
    )
    path.write_bytes(b"".join(lines))
    assert list(read_objects(path)) == [{"n": 0}, {"n": 1}]
    backwards = list(read_objects_backwards(path))
    assert [content for _, content in backwards] == [{"n": 1}, {"n": 0}]
    for end, content in backwards:
        assert path.read_bytes()[:end].endswith(json.dumps(content).encode() + b"\n")


@pytest.mark.parametrize("text", ["", "\n", '{"n": 1}', '{"n": 1}\n{"n": 2}', '{"n": NaN}\n'])
def test_the_last_line_needs_no_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "lines").write_text(text)
    expected = [json.loads(line.replace("NaN", "null")) for line in text.splitlines() if line]
    assert list(read_objects(tmp_path / "lines")) == expected
    assert [each for _, each in read_objects_backwards(tmp_path / "lines")] == expected[::-1]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("".join(f'{{"n": {n}, "text": "{"x" * 200}"}}\n' for n in range(20_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_objects(path)) == 20_000
        assert sum(1 for _ in read_objects_backwards(path)) == 20_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 4e6 and peak < 1e6
