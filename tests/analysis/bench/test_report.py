"""Ratios between paths."""

from analysis.bench.conftest import PATHS

from mdmscale.analysis.bench.path_bench import PathBench
from mdmscale.analysis.bench.report import comparisons
from mdmscale.analysis.bench.work import Sizes, make_model


def test_ratios_are_those_of_rounds(sizes: Sizes) -> None:
    model = make_model(sizes)
    benches = [PathBench(model, PATHS[name], sizes) for name in ("indexed", "masked")]
    benches[0].result.seconds = [2.0, 9.0, 6.0]
    benches[1].result.seconds = [1.0, 3.0, 3.0]
    assert comparisons([bench.result for bench in benches]) == [
        ("masked positions only, against indexing after the head", 2.0)
    ]
