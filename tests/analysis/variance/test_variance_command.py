"""The variance command on a tiny trained model, on 1 and 2 ranks, and the input that it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run_ranks, run_script, tiny_values

pytestmark = pytest.mark.distributed

TOOL = ROOT / "tools" / "variance_report.py"


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """--config and --checkpoint of a short run, and the folder that contains it."""
    folder = tmp_path_factory.mktemp("variance")
    values = tiny_values(corpus, folder)
    values["train"]["steps"] = 10
    values["diffusion"]["p_pots"] = {"num_x0": 2, "num_masks": 2}
    (folder / "config.yaml").write_text(json.dumps(values))
    run_ranks(1, ROOT / "launchers" / "train.py", "--config", str(folder / "config.yaml"))
    return ["--config", str(folder / "config.yaml"), "--checkpoint", str(folder / "tiny")], folder


@pytest.fixture(scope="module")
def reports(trained: tuple[list[str], Path]) -> dict[int, dict[str, Any]]:
    """The content of report.json, by number of ranks."""
    arguments, folder = trained
    found = {}
    for ranks in (1, 2):
        output = folder / f"report-{ranks}"
        run_ranks(ranks, TOOL, *arguments, "--output", str(output), "--samples", "24")
        found[ranks] = json.loads((output / "report.json").read_text())
        assert {path.name for path in output.iterdir()} == {
            "report.json",
            "report.md",
            "ratios.png",
            "curves.png",
        }
    return found


def test_the_report_is_complete_and_finite(reports: dict[int, dict[str, Any]]) -> None:
    report = reports[1]
    assert report["samples"] == 24 and report["rows"] == 24 * (16 * 7 + 16)
    parts = report["decomposition"]
    assert {"A", "B", "C", "sum", "total", "intervals"} == set(parts)
    assert parts["sum"] == pytest.approx(parts["A"] + parts["B"] + parts["C"])
    low, high = parts["intervals"]["sum"]
    total_low, total_high = parts["intervals"]["total"]
    assert low < total_high and total_low < high
    for name in ("standard", "clipped", "stratified", "low_discrepancy", "mirror", "complement"):
        method = report["methods"][name]
        assert method["unbiased"] == (name != "clipped")
        for key in ("loss_variance", "grad_variance", "loss_ratio", "grad_ratio"):
            assert np.isfinite(method[key]) and method[key] > 0
        assert method["grad_interval"][0] <= method["grad_ratio"] <= method["grad_interval"][1]
    assert report["methods"]["standard"]["grad_ratio"] == 1
    assert {f"p_pots_{target}" for target in ("paper", "loss", "gradient")} <= set(report["methods"])
    assert len(report["densities"]) == 9
    assert all(len(values) == 16 for values in report["curves"].values())


def test_the_proxy_follows_the_gradient(reports: dict[int, dict[str, Any]]) -> None:
    curves = reports[1]["curves"]
    logs = [np.log(curves[name]) for name in ("grad_second_moment", "grad_proxy")]
    assert np.corrcoef(*logs)[0, 1] > 0.95


def test_two_ranks_measure_what_one_does(reports: dict[int, dict[str, Any]]) -> None:
    one, two = reports[1], reports[2]
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for name, method in one["methods"].items():
        for key in ("loss_variance", "grad_variance", "grad_ratio"):
            assert two["methods"][name][key] == pytest.approx(method[key], rel=1e-3), (name, key)
    for name in ("A", "B", "C", "total"):
        assert two["decomposition"][name] == pytest.approx(one["decomposition"][name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--minutes", "0"], "--minutes 0.0: must be above 0"),
        (["--minutes", "nan"], "--minutes nan: must be above 0"),
        (["--samples", "-3"], "--samples -3: must be above 0"),
        (["--samples", "1", "--minutes", "1"], "not allowed with"),
        (["--parameters", "no_such_name"], "--parameters 'no_such_name': matches none; names are such as"),
        (["--parameters", "("], "--parameters '(': no regular expression"),
        (["model.hidden_size=64"], "model.hidden_size = 64, but"),
        (["diffusion.p_pots.num_x0=0"], "diffusion.p_pots.num_x0 = 0"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    trained: tuple[list[str], Path], tmp_path: Path, changes: list[str], message: str
) -> None:
    arguments, _ = trained
    done = run_script(str(TOOL), *arguments, "--output", str(tmp_path / "out"), *changes)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_kept(trained: tuple[list[str], Path], tmp_path: Path) -> None:
    arguments, _ = trained
    done = run_script(str(TOOL), *arguments, "--output", str(tmp_path))
    assert done.returncode == 2 and "holds other things than a report" in done.stderr
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "notes.txt").touch()
    done = run_script(str(TOOL), *arguments, "--output", str(tmp_path), "--overwrite")
    assert done.returncode == 2 and (tmp_path / "notes.txt").exists()
    (tmp_path / "notes.txt").unlink()
    done = run_script(str(TOOL), *arguments, "--output", str(tmp_path))
    assert done.returncode == 2 and "holds a report" in done.stderr
    done = run_script(str(TOOL), *arguments, "--output", str(tmp_path), "--overwrite", "--samples", "1")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["samples"] == 24, (
        "two rounds of twelve at least"
    )
