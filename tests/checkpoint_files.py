"""Damage to files, and manifests of checkpoints that a test has changed."""

from pathlib import Path

from mdmscale.engine.manifest import write_manifest
from mdmscale.system.run_folder import MANIFEST_FILE
from mdmscale.system.sums import file_names, sums_of


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def renew_manifest(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint as it is now."""
    names = [name for name in file_names(checkpoint) if name != MANIFEST_FILE]
    write_manifest(checkpoint, sums_of(checkpoint, names))
