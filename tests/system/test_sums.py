"""The sums of a model folder: every flipped bit and missing file is found, and folders without sums pass."""

import subprocess
from pathlib import Path

import pytest

from mdmscale.system.errors import UserError
from mdmscale.system.sums import SUMS_FILE, check_sums, file_names, write_sums


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for name in ("a.json", "name with spaces", "inner/b.bin"):
        (tmp_path / name).write_bytes(name.encode() * 1000)
    write_sums(tmp_path)
    return tmp_path


def test_a_whole_folder_passes_here_and_with_sha256sum(folder: Path) -> None:
    check_sums(folder)
    assert (folder / SUMS_FILE).read_text().count("\n") == 3
    subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=folder, check=True)
    (folder / "added.py").touch()
    check_sums(folder)


@pytest.mark.parametrize("name", ["a.json", "name with spaces", "inner/b.bin"])
def test_a_flipped_bit_and_a_missing_file_are_named_with_the_mend(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    mend = f"get the folder anew, or remove {folder / SUMS_FILE} if the file was changed on purpose"
    with pytest.raises(UserError) as refusal:
        check_sums(folder)
    assert str(refusal.value) == f"{folder / name}: does not match its sha256 in {SUMS_FILE}; {mend}"
    (folder / name).unlink()
    with pytest.raises(UserError) as refusal:
        check_sums(folder)
    assert str(refusal.value) == f"{folder / name}: is missing, but {SUMS_FILE} names it; {mend}"


@pytest.mark.parametrize(
    "line", ["", "abc  a.json", "f" * 64, "f" * 64 + "  /etc/hosts", "f" * 64 + "  ../x"]
)
def test_a_damaged_list_is_refused_and_a_folder_without_one_passes(folder: Path, line: str) -> None:
    with (folder / SUMS_FILE).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"mdmscale\.sha256: is damaged; get the folder anew"):
        check_sums(folder)
    (folder / SUMS_FILE).write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"mdmscale\.sha256: is damaged"):
        check_sums(folder)
    (folder / SUMS_FILE).unlink()
    check_sums(folder)
    assert file_names(folder) == ["a.json", "inner/b.bin", "name with spaces"]
