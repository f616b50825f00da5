"""No code of a model's or tokenizer's folder is ever run, and nobody is asked whether to run it."""

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from models.tiny_folder import write_model_folder

from mdmscale.config.model import ModelSection
from mdmscale.conversion.inspecting import inspect_folder
from mdmscale.models.backbone import model_config
from mdmscale.models.opening import load_weights
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

OPENERS = ("from_pretrained", "from_config")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder of classes that only its own code has. The code creates a file. Someone answers yes."""
    folder = write_model_folder(tmp_path / "model")
    edit(folder / "config.json", model_type="planted", auto_map={"AutoConfig": "planted.Config"})
    names = {"AutoTokenizer": ["planted.Tokenizer", "planted.Tokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Planted", auto_map=names)
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    return folder


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(planted: Path, error: pytest.ExceptionInfo[UserError]) -> bool:
    (problem,) = error.value.problems
    assert not (planted.parent / "ran").exists(), "the folder's code has been run"
    return "\n" not in problem and "needs code of its own" in problem


def test_a_tokenizers_code_is_not_run(planted: Path) -> None:
    with pytest.raises(UserError) as error:
        load_tokenizer(planted)
    assert refused(planted, error)


def test_a_configs_code_is_not_run(planted: Path) -> None:
    with pytest.raises(UserError) as error:
        model_config(ModelSection(path=str(planted)), 0)
    assert refused(planted, error)


def test_a_models_code_is_not_run(planted: Path) -> None:
    with pytest.raises(UserError) as error:
        load_weights(planted)
    assert refused(planted, error)


def test_inspecting_runs_no_code(planted: Path, tmp_path: Path) -> None:
    """Of a foreign model, whose tokenizer names code."""
    folder = shutil.copytree(planted, tmp_path / "foreign")
    config = json.loads((folder / "config.json").read_text())
    del config["mdm"], config["is_causal"], config["auto_map"]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert inspect_folder(folder)["family"] == "arm"
    assert not (tmp_path / "ran").exists()


def test_every_call_of_transformers_refuses_code() -> None:
    calls = [
        (file.relative_to(ROOT), call)
        for place in ("mdmscale", "launchers", "tools")
        for file in sorted((ROOT / place).rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in OPENERS
    ]
    assert len(calls) >= 8
    for file, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("trust_remote_code") == "False", f"{file}, line {call.lineno}"
