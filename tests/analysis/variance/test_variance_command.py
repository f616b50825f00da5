"""The variance command on a tiny model, on 1 and 2 ranks, and the input that it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, kept_environment, run_ranks, tiny_values

from mdmscale.analysis.variance.variance_command import main
from mdmscale.system.errors import UserError

TOOL = ROOT / "tools" / "variance_report.py"
METHODS = "mirror,exact_pair+p_pots,stratified,window"


@pytest.fixture(scope="module")
def untrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """--config and --checkpoint of a tiny model, and the folder that contains them."""
    from mdmscale.config.model import ModelSection
    from mdmscale.models.backbone import build_backbone

    folder = tmp_path_factory.mktemp("variance")
    values = tiny_values(corpus, folder)
    values["data"]["sequence_length"] = 16
    values["diffusion"] = {"p_pots": {"num_x0": 2, "num_masks": 2}}
    (folder / "config.yaml").write_text(json.dumps(values))
    options = ModelSection(**{**values["model"], "num_hidden_layers": 1})
    backbone = build_backbone(options, 1e-3, seed=0)
    backbone.model.save_pretrained(folder / "model")
    backbone.tokenizer.save_pretrained(folder / "model")
    arguments = ["--config", str(folder / "config.yaml"), "--checkpoint", str(folder / "model")]
    return [*arguments, "model.num_hidden_layers=1"], folder


@pytest.fixture(scope="module")
def alone(process_group: None) -> Iterator[None]:
    """The test process as the only rank, which stays in its process group."""
    with kept_environment(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mdmscale.parallel.ranks.finalise", lambda: None)
        yield


@pytest.fixture(scope="module")
def output(untrained: tuple[list[str], Path], alone: None) -> Path:
    """The report of one rank."""
    arguments, folder = untrained
    options = ["--output", str(folder / "report"), "--samples", "1", "--methods", METHODS]
    assert main([*arguments, *options]) == 0
    return folder / "report"


def test_the_report_is_complete_and_finite(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert {path.name for path in output.iterdir()} == {
        "report.json",
        "report.md",
        "ratios.png",
        "curves.png",
    }
    assert report["samples"] == 48, "six waves of 8 at least"
    assert report["rows"] == 48 * (9 + 2 + 2 + 1 + 1)
    assert list(report["methods"]) == ["standard", *METHODS.split(",")]
    for name, method in report["methods"].items():
        assert method["unbiased"] == (name != "window")
        assert method["effective_batch"] == pytest.approx(8 * method["ratio"]["gradient"]["value"])
        for measure, ratio in method["ratio"].items():
            assert np.isfinite(method["variance"][measure]) and method["variance"][measure] > 0
            assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    for parts in report["decomposition"].values():
        assert parts["sum"]["value"] == pytest.approx(sum(parts[name]["value"] for name in "ABC"))
    standard = report["methods"]["standard"]
    assert standard["variance"]["loss"] == pytest.approx(report["decomposition"]["loss"]["sum"]["value"])
    assert list(report["densities"]) == ["exact_pair+p_pots"]
    logs = [np.log(np.array(report["curves"][name])) for name in ("grad_second_moment", "grad_proxy")]
    assert np.corrcoef(*logs)[0, 1] > 0.95
    text = (output / "report.md").read_text()
    assert text.endswith(report["recommendation"] + "\n") and "## Recommendation" in text


@pytest.mark.distributed
def test_two_ranks_measure_what_one_does(untrained: tuple[list[str], Path], output: Path) -> None:
    arguments, folder = untrained
    options = ["--output", str(folder / "report-2"), "--samples", "1", "--methods", METHODS]
    shown = run_ranks(2, TOOL, *arguments, *options)
    one, two = (json.loads((path / "report.json").read_text()) for path in (output, folder / "report-2"))
    assert two["recommendation"].split(".")[0] in shown.replace("\n", " ")
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for name, method in one["methods"].items():
        other = two["methods"][name]
        for measure in ("loss", "gradient", "adam"):
            assert other["variance"][measure] == pytest.approx(method["variance"][measure], rel=1e-3), name
            for end in ("value", "low", "high"):
                assert other["ratio"][measure][end] == pytest.approx(method["ratio"][measure][end], rel=1e-2)
    assert one["curves"]["g"] == pytest.approx(two["curves"]["g"], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--minutes", "0"], "--minutes 0.0: must be above 0"),
        (["--minutes", "nan"], "--minutes nan: must be above 0"),
        (["--samples", "-3"], "--samples -3: must be above 0"),
        (["--methods", "mirrored"], "--methods mirrored: unknown; choose among standard"),
        (["--parameters", "no_such_name"], "--parameters 'no_such_name': matches none; names are such as"),
        (["--parameters", "("], r"--parameters '\(': no regular expression"),
        (["model.hidden_size=64"], "model.hidden_size = 64, but"),
        (["diffusion.p_pots.num_x0=0"], "diffusion.p_pots.num_x0 = 0"),
        (["diffusion.objective=ar"], "diffusion.objective = ar has no masks"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    untrained: tuple[list[str], Path], alone: None, tmp_path: Path, changes: list[str], message: str
) -> None:
    arguments, _ = untrained
    with pytest.raises(UserError, match=message):
        main([*arguments, "--output", str(tmp_path / "out"), *changes])
    assert not list(tmp_path.iterdir())


def test_a_budget_is_samples_or_minutes(
    untrained: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*untrained[0], "--output", "out", "--samples", "1", "--minutes", "1"])
    assert "not allowed with" in capsys.readouterr().err


def test_an_output_that_exists_is_kept(
    untrained: tuple[list[str], Path], output: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds a report; choose another, or --overwrite"):
        main([*untrained[0], "--output", str(output)])
    arguments: list[Any] = [*untrained[0], "--output", str(tmp_path)]
    with pytest.raises(UserError, match="holds other things than a report"):
        main(arguments)
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds other things than a report"):
        main([*arguments, "--overwrite"])
    assert (tmp_path / "notes.txt").exists()
