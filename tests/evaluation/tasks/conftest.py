"""A tiny model with room for prompts, and tasks of files."""

import json
from pathlib import Path

import pytest
from models.tiny_folder import write_model_folder

from mdmscale.generation import LoadedModel, load_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, which tests must not change."""
    folder = write_model_folder(tmp_path_factory.mktemp("model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    return folder


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The tiny model, loaded."""
    return load_model(model_folder, "fp32")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for the task `exact`, with prompts of different lengths."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [{"id": f"q{n}", "prompt": "def add(a, b)"[: 3 + n], "response": "return"} for n in range(7)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file
