"""A fingerprint of the weight files of a model: quick to make, and the same wherever the files lie."""

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

_ENDINGS = (".safetensors", ".bin")
_BLOCK = 4096
_BLOCKS_OF_A_FILE = 64


def weights_fingerprint(path: str) -> str | None:
    """16 hex digits that identify the weights of a model folder or of a hub id that has been loaded.

    Each file is hashed by its name, its size and evenly spaced blocks. None where there are no weights.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = try_to_load_from_cache(path, "config.json")
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    files = sorted(file for file in folder.iterdir() if file.suffix in _ENDINGS)
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for block in range(_BLOCKS_OF_A_FILE):
                stream.seek(block * max(0, size - _BLOCK) // (_BLOCKS_OF_A_FILE - 1))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16] if files else None
