"""The fingerprint of weights follows their content, not their place."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest

from mdmscale.weights.fingerprint import weights_fingerprint

SIZES = (0, 5, 5000, 200_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for size in SIZES:
        (folder / f"model-{size}.safetensors").write_bytes(bytes(n % 251 for n in range(size)))
    (folder / "config.json").write_text("{}")
    return folder


def test_a_moved_folder_and_its_other_files_change_nothing(folder: Path, tmp_path: Path) -> None:
    first = weights_fingerprint(str(folder))
    assert first is not None
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved" / "config.json").write_text('{"a": 1}')
    assert weights_fingerprint(str(tmp_path / "moved")) == first


@pytest.mark.parametrize("place", [0, 4999, 100_001, 199_999])
def test_one_byte_changes_it(folder: Path, place: int) -> None:
    first = weights_fingerprint(str(folder))
    path = folder / f"model-{min(size for size in SIZES if size > place)}.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert weights_fingerprint(str(folder)) != first


def test_another_file_or_name_changes_it_and_without_weights_there_is_none(folder: Path) -> None:
    first = weights_fingerprint(str(folder))
    (folder / "model-5.safetensors").rename(folder / "model-6.safetensors")
    assert weights_fingerprint(str(folder)) != first
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert weights_fingerprint(str(folder)) is None


def test_a_hub_id_is_looked_up_in_the_cache_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert weights_fingerprint("some/model") == weights_fingerprint(str(folder))
    assert weights_fingerprint("some/other") is None
