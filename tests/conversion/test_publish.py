"""Interrupted conversions: nothing under the final name, nothing lost that was there."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from conversion.folders import (
    LLADA,
    assert_same_bytes,
    llada_shapes,
    random_weights,
    read_weights,
    write_folder,
)

from mdmscale.conversion import publish
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.conversion.publish import check_destination, published
from mdmscale.system.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))


def fill(destination: Path, text: str) -> None:
    with published(destination, 10) as folder:
        (folder / "config.json").write_text(text)
        assert destination.exists() is False or (destination / "config.json").read_text() != text


def test_it_appears_when_it_is_complete(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b", "new")
    fill(tmp_path / "a" / "b", "newer")
    assert (tmp_path / "a" / "b" / "config.json").read_text() == "newer"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(destination: Path) -> None:
        with pytest.raises(KeyboardInterrupt), published(destination, 10) as folder:
            (folder / "config.json").write_text("half")
            raise KeyboardInterrupt

    fail(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path / "b", "old")
    fail(tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    with published(tmp_path / "b", 10) as folder:
        (folder / "config.json").write_text("first")
        with pytest.raises(UserError, match="another conversion"):
            fill(tmp_path / "b", "second")
    assert (tmp_path / "b" / "config.json").read_text() == "first"


def test_a_disk_without_room_is_noticed_first(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"needs 9000000\.00 GB, and the disk has"),
        published(tmp_path / "b", 9 * 10**15),
    ):
        raise AssertionError("not reached")
    assert list(tmp_path.iterdir()) == []


def test_destinations_that_would_destroy_something(tmp_path: Path, source: Path) -> None:
    for destination in (source, source / "inside", tmp_path):
        with pytest.raises(UserError, match="lies in the source"):
            check_destination(source, destination, overwrite=True)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="exists already; choose another folder or give --overwrite"):
        check_destination(source, tmp_path / "photos", overwrite=False)
    with pytest.raises(UserError, match=r"is no model folder \(no config.json\), so it is not replaced"):
        check_destination(source, tmp_path / "photos", overwrite=True)


CONVERT = [sys.executable, str(ROOT / "tools" / "convert.py")]


def limit_files() -> None:
    """The system's own refusal of a write, as a full disk gives, once a file has 40,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))


def test_a_disk_that_fills_up_midway(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*CONVERT, "import", str(source), str(tmp_path / "ours")],
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "model.safetensors: cannot be written: " in line and "File too large" in line
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["llada"]


SLOW_IMPORT = """
import sys, time
from pathlib import Path
from mdmscale.weights import weight_writer
from mdmscale.conversion.importing import ImportOptions, import_folder

def save_slowly(*arguments, **options):
    save_file(*arguments, **options)
    time.sleep(0.2)

save_file, weight_writer.save_file = weight_writer.save_file, save_slowly
import_folder(Path(sys.argv[1]), Path(sys.argv[2]), ImportOptions(max_shard_bytes=5000))
"""


def test_killed_midway_nothing_loads_and_the_next_try_cleans_up(source: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_IMPORT, str(source), str(tmp_path / "ours")], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".unfinished-ours/*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-ours", "llada"]
    done = subprocess.run([*CONVERT, "import", str(source), str(tmp_path / "ours")], check=False)
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llada", "ours"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]


def test_killed_between_the_renames_the_old_one_survives(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "ours", "old")
    (tmp_path / "ours").rename(tmp_path / ".replaced-ours")  # where a kill at that moment leaves it
    monkeypatch.setattr(publish, "_check_room", full_disk)
    with pytest.raises(UserError, match="no room"):
        import_folder(source, tmp_path / "ours", ImportOptions())
    assert (tmp_path / "ours" / "config.json").read_text() == "old"
    monkeypatch.undo()
    import_folder(source, tmp_path / "ours", ImportOptions(overwrite=True))
    assert len(read_weights(tmp_path / "ours")) == len(llada_shapes(LLADA))
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "llama"


def full_disk(*_: Any) -> None:
    raise UserError("no room")


def test_overwriting_replaces_the_whole_folder(source: Path, tmp_path: Path) -> None:
    import_folder(source, tmp_path / "ours", ImportOptions(max_shard_bytes=5000))
    with pytest.raises(UserError, match="--overwrite"):
        import_folder(source, tmp_path / "ours", ImportOptions())
    before = read_weights(tmp_path / "ours")
    import_folder(source, tmp_path / "ours", ImportOptions(overwrite=True))
    assert [path.name for path in (tmp_path / "ours").glob("*.safetensors*")] == ["model.safetensors"]
    assert_same_bytes(read_weights(tmp_path / "ours"), before)
