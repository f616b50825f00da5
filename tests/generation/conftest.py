"""The tiny model of tests/models/tiny_folder.py, on disk and loaded."""

from pathlib import Path

import pytest
from models.tiny_folder import write_model_folder

from mdmscale.generation import LoadedModel, load_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, which tests must not change."""
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The tiny model, loaded."""
    return load_model(model_folder, "fp32")
