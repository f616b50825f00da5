from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdmscale.data.indexed import IndexedWriter
from mdmscale.data.preparation.inputs import stdlib_files
from mdmscale.data.preparation.tokenizer_training import train_tokenizer
from mdmscale.models.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A few source files of the standard library."""
    return [path.read_bytes().decode() for path in stdlib_files()[::12]]


@pytest.fixture(scope="session")
def tokenizer_folder(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(texts, 768, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer(str(tokenizer_folder))


@pytest.fixture
def write_shard(tmp_path: Path):
    """A function that writes documents to a shard in tmp_path and returns its prefix."""

    def write(name: str, documents: list[list[int]], vocab_size: int = 1000) -> Path:
        prefix = tmp_path / name
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with IndexedWriter(prefix, np.dtype("<u2" if vocab_size < 65500 else "<i4")) as writer:
            for document in documents:
                writer.add_document(np.asarray(document, dtype=np.int64))
        return prefix

    return write
