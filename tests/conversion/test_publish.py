"""Interrupted conversions leave nothing under the final name and lose no existing files."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import run_script, start_script
from conversion.folders import (
    LLADA,
    assert_same_bytes,
    llada_shapes,
    random_weights,
    read_weights,
    write_folder,
)

from mdmscale.conversion.destination import check_destination
from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.system import folders
from mdmscale.system.errors import UserError
from mdmscale.system.folders import published_folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))


def fill(destination: Path, text: str) -> None:
    with published_folder(destination, 10) as folder:
        (folder / "config.json").write_text(text)


def test_destinations_that_would_destroy_something(tmp_path: Path, source: Path) -> None:
    for destination in (source, source / "inside", tmp_path):
        with pytest.raises(UserError, match="lies in the source"):
            check_destination(source, destination, overwrite=True)
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match="exists already; choose another folder or give --overwrite"):
        check_destination(source, tmp_path / "photos", overwrite=False)
    with pytest.raises(UserError, match=r"is no model folder \(no config.json\), so it is not replaced"):
        check_destination(source, tmp_path / "photos", overwrite=True)


CONVERT = "tools/convert.py"
# The system's own refusal of a write, as a full disk gives, once a file has 40,000 bytes.
LIMITED = """
import resource, signal, sys
from mdmscale.conversion.convert_command import main
from mdmscale.system.errors import run_command

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
sys.exit(run_command(lambda: main(sys.argv[1:])))
"""


def test_a_disk_that_fills_up_midway(source: Path, tmp_path: Path) -> None:
    (source / "limited.py").write_text(LIMITED)
    done = run_script(str(source / "limited.py"), "import", str(source), str(tmp_path / "ours"))
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
    (source / "slowly.py").write_text(SLOW_IMPORT)
    job = start_script(str(source / "slowly.py"), str(source), str(tmp_path / "ours"))
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".unfinished-ours/*.safetensors"))) < 2:
        assert job.poll() is None and time.monotonic() < deadline, job.stderr
        time.sleep(0.01)
    job.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-ours", "llada"]
    done = run_script(CONVERT, "import", str(source), str(tmp_path / "ours"))
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llada", "ours"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]


def test_killed_between_the_renames_the_old_one_survives(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "ours", "old")
    (tmp_path / "ours").rename(tmp_path / ".replaced-ours")  # where a kill at that moment leaves it
    monkeypatch.setattr(folders, "check_room", full_disk)
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
