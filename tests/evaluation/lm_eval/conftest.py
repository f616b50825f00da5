"""Tasks of local files in the form of lm-evaluation-harness, and the tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from models.tiny_folder import write_model_folder

from mdmscale.generation import LoadedModel, load_model

pytest.importorskip("lm_eval")

QUESTIONS = [
    {
        "question": "def add(a,",
        "choices": [" b)", "a)", "b"],
        "answer": 2,
        "word": "b",
        "text": "print(step)",
    },
    {"question": "for step in ", "choices": ["range", "x"], "answer": 1, "word": "x", "text": "return a + b"},
    {"question": "    return", "choices": [" a", " a + b", "s"], "answer": 1, "word": "a", "text": "x " * 60},
]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "word": {
        "output_type": "loglikelihood",
        "doc_to_target": " {{word}}",
        "metric_list": [{"metric": "acc"}],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_target": "word",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False, "top_p": 0.9},
        "metric_list": [{"metric": "exact_match"}],
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, which tests must not change."""
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The tiny model, loaded."""
    return load_model(model_folder, "fp32")


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task file for each of TASKS, and their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, values in TASKS.items():
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "doc_to_text": "{{question}}",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | values))
    return folder
