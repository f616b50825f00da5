"""The shipped estimator needs at most a third of the forwards of LLaDA's, even on a tiny model."""

from pathlib import Path

import pytest
from models.tiny_folder import write_model_folder

from mdmscale.evaluate_command import main
from mdmscale.evaluation.results import read_results
from mdmscale.system.errors import UserError

TEXT = "def add(a, b):\n    return a + b\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


def test_the_default_saves_two_thirds_of_the_forwards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    options = ["--rows", "16", "--repeats", "20", "--batch-size", "64", "--output", str(output)]
    assert main(["estimators", str(folder), "--text", TEXT, *options]) == 0
    assert "forwards saved" in capsys.readouterr().out
    gains = {each["estimator"]: each["gain"] for each in read_results(output).summary}
    assert gains["independent"] == 1 and gains["stratified"] > 3
    with pytest.raises(UserError, match="exists already"):
        main(["estimators", str(folder), "--text", TEXT, *options])


@pytest.mark.parametrize(
    "options, message",
    [
        (["--text", "de"], "every text is so short"),
        (["--text", TEXT, "--repeats", "1"], "--repeats 1: must be at least 2"),
        (["--text", TEXT, "--rows", "8", "3"], "rows = 3: must be a positive multiple of 4"),
    ],
)
def test_refuses(folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(["estimators", str(folder), *options])
