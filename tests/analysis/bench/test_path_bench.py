"""The measurements of a path: operations, memory and time."""

import pytest
import torch
from analysis.bench.conftest import CPU, PATHS

from mdmscale.analysis.bench import path_bench as path_bench_module
from mdmscale.analysis.bench.path_bench import FreedMemory, PathBench, peak_above
from mdmscale.analysis.bench.work import Sizes, make_model
from mdmscale.models.flops import count_flops


def test_what_a_step_must_do_is_counted(sizes: Sizes) -> None:
    """Compares with torch's own FLOP counter, on a path that does no extra work."""
    from torch.utils.flop_counter import FlopCounterMode

    bench = PathBench(make_model(sizes), PATHS["pair"], sizes)
    with FlopCounterMode(display=False) as counter:
        bench.step()
    seen, result = counter.get_total_flops(), bench.result
    assert result.num_row_tokens == 2 * result.num_tokens == 2 * 3 * 32
    assert result.num_position_pairs == 2 * 3 * 32**2
    # torch does not count the CPU's attention
    assert count_flops(sizes.shape).of(result.num_row_tokens, 0, result.num_masked) == seen


def test_the_masked_head_takes_least_memory() -> None:
    sizes = Sizes(30_000, 16, 1, 2, 2, 256, 2, "fp32", CPU)
    model = make_model(sizes)
    benches = {name: PathBench(model, PATHS[name], sizes) for name in ("full", "indexed", "masked")}
    for bench in benches.values():
        bench.warm_up()
    memory = {name: bench.result.memory for name, bench in benches.items()}
    if None in memory.values():
        pytest.skip("this system does not reset a process's peak of memory")
    logits = 4 * 30_000 * 2 * 256
    assert memory["full"] > 1.5 * logits
    assert memory["masked"] < 0.8 * memory["indexed"] < 0.8 * memory["full"]


def test_a_peak_that_has_gone_is_seen() -> None:
    with peak_above(CPU) as peak:
        torch.ones(1 << 24).sum()  # 64 MiB
    if peak.bytes is None:
        pytest.skip("this system does not reset a process's peak of memory")
    assert 60 << 20 < peak.bytes < 100 << 20


@pytest.mark.parametrize(
    ("freed_memory", "path", "expected"),
    [
        ("own", "indexed", "return"),
        ("own", "masked", "keep"),
        ("kept", "indexed", "keep"),
        ("returned", "masked", "return"),
    ],
)
def test_memory_is_as_the_program_has_it(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch, freed_memory: FreedMemory, path: str, expected: str
) -> None:
    called = []
    for name in ("keep", "return"):
        monkeypatch.setattr(path_bench_module, f"{name}_freed_memory", lambda name=name: called.append(name))
    PathBench(make_model(sizes), PATHS[path], sizes).time(freed_memory)
    assert called == [expected]
