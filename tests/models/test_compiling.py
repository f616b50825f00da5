"""Compiled layers agree with plain ones, and a few graphs serve all layers and all batches."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from models.small import LAYOUTS, assert_same, loss_and_gradients, small_batch, small_model
from torch._dynamo.utils import counters

from mdmscale.config.run import RunConfig
from mdmscale.engine.hardware import check_hardware
from mdmscale.models.compiling import compile_layers
from mdmscale.system.errors import UserError
from mdmscale.training import setup as run
from mdmscale.training.metrics import read_metrics
from mdmscale.training.trainer import train

BATCHES = ((16, 12), (24, 9, 24, 3), (31, 30), (17,), (40, 7, 40), (22,), (16, 16))


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


QUICK = [("padded", "llama", False), ("packed and annealed", "qwen3", False), ("packed", "llama", True)]
OTHERS = [
    (layout, family, recomputed)
    for layout, family, recomputed in product(LAYOUTS, ("llama", "qwen3"), (False, True))
    if (layout, family, recomputed) not in QUICK
]


@pytest.mark.parametrize(
    ("layout", "family", "recomputed"),
    [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS)],
)
def test_numbers_and_counts(corpus: Path, layout: str, family: str, recomputed: bool) -> None:
    """All lengths need two graphs, one of them for single rows; two more without gradients. None breaks."""
    plain, compiled = (small_model(corpus, layout, architecture=family) for _ in range(2))
    if recomputed:
        compiled.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    compile_layers(compiled.backbone, "aot_eager")
    assert [name for name, _ in compiled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for lengths in BATCHES:
        batch = small_batch(layout, lengths)
        assert_same(loss_and_gradients(compiled, batch), loss_and_gradients(plain, batch), 1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    for lengths in BATCHES:
        batch = small_batch(layout, lengths)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).losses, plain(**batch).losses)
    # of recomputed layers the first, whose input comes with no gradient, is another from the others
    assert counters["stats"]["unique_graphs"] <= 6
    assert not counters["graph_break"]


def test_a_length_like_the_width_is_not_taken_for_it(corpus: Path) -> None:
    compiled = small_model(corpus)
    compile_layers(compiled.backbone, "aot_eager")
    for length in (32, 31, 33, 30):  # the width is 32
        compiled(**small_batch("plain", (length, length)))
    assert counters["stats"]["unique_graphs"] <= 2


def test_a_missing_compiler_is_named(tiny: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny | {"model": tiny["model"] | {"compile": True, "head": "fused"}}
    config = RunConfig.model_validate(values)
    check_hardware(config, torch.device("cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"model.compile = true: torch.compile needs a C\+\+") as error:
        check_hardware(config, torch.device("cpu"))
    assert "model.head = fused: torch.compile needs" in str(error.value)
    check_hardware(RunConfig.model_validate(tiny), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_kernels_of_the_compiler(corpus: Path, layout: str) -> None:
    plain, compiled = (small_model(corpus, layout, architecture="qwen3") for _ in range(2))
    compile_layers(compiled.backbone)
    for lengths in BATCHES:
        batch = small_batch(layout, lengths)
        assert_same(loss_and_gradients(compiled, batch), loss_and_gradients(plain, batch), 1e-5)
    assert counters["stats"]["unique_graphs"] == 2


def run_values(tiny: dict, name: str, stage: int, compiled: bool) -> dict:
    return tiny | {
        "run": tiny["run"] | {"name": name},
        "model": tiny["model"] | {"compile": compiled},
        "train": tiny["train"] | {"steps": 6},
        "eval": {"every": 3, "samples": 4},
        "parallel": {"zero_stage": stage},
    }


def test_runs_are_as_uncompiled_ones(
    tiny: dict, tmp_path: Path, ranks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, probes and evaluations in each stage that compiles, then adapters on an export."""
    monkeypatch.setattr(run, "compile_layers", partial(compile_layers, backend="aot_eager"))
    for kind, stages in (("whole", (0, 1, 2)), ("adapters", (1,))):
        results = []
        for name, stage, compiled in [
            ("plain", 0, False),
            *((f"zero-{stage}", stage, True) for stage in stages),
        ]:
            values = run_values(tiny, f"{kind}-{name}", stage, compiled)
            if kind == "adapters":
                base = str(tmp_path / "runs" / "whole-zero-1" / "hf")
                values["model"] = {"path": base, "dtype": "fp32", "compile": compiled, "lora": {"rank": 4}}
            train(RunConfig.model_validate(values))
            records = read_metrics(tmp_path / "runs" / f"{kind}-{name}")
            results.append([[record["loss"], record.get("eval_loss", 0)] for record in records])
        for each in results[1:]:
            torch.testing.assert_close(torch.tensor(each), torch.tensor(results[0]), rtol=1e-5, atol=0)
    assert not counters["graph_break"]
