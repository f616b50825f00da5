"""The benchmark: its paths are ways to one loss, what it counts is true, and its command works."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

from mdmscale.analysis.bench import measure as measure_module
from mdmscale.analysis.bench import parts as parts_module
from mdmscale.analysis.bench.bench_command import benches_of, main
from mdmscale.analysis.bench.growth import parse_sweep
from mdmscale.analysis.bench.kernels import KERNELS
from mdmscale.analysis.bench.measure import Bench, FreedMemory, peak_above
from mdmscale.analysis.bench.options import build_parser, check_sizes, paths_of, sizes_of
from mdmscale.analysis.bench.parts import Rate, measure_parts
from mdmscale.analysis.bench.paths import ALL, COMPARISONS
from mdmscale.analysis.bench.report import comparisons
from mdmscale.analysis.bench.work import Sizes, make_model, make_samples
from mdmscale.models.flops import count_flops
from mdmscale.system.errors import UserError

PATHS = {path.name: path for path in ALL}
TINY = ["--vocab", "64", "--hidden", "16", "--layers", "2", "--heads", "2", "--length", "32", "--batch", "3"]
CPU = torch.device("cpu")


@pytest.fixture
def sizes() -> Sizes:
    return Sizes(64, 16, 2, 2, 1, 32, 3, "fp32", CPU)


def gradients(bench: Bench) -> list[torch.Tensor]:
    bench.step()
    return [each.grad.clone() for each in bench.model.parameters() if each.grad is not None]


@pytest.mark.parametrize(
    "names",
    [
        ("full", "indexed", "masked", "chunked", "fused", "compiled"),
        ("pair-full", "pair-passes", "pair"),
        ("padded-indexed", "padded", "packed"),
    ],
)
def test_paths_are_ways_to_one_loss(sizes: Sizes, names: tuple[str, ...]) -> None:
    """The same loss, clean tokens and gradient; a slower path is not one that does other work."""
    benches = benches_of(sizes, [PATHS[name] for name in names])
    losses = [float(bench.step()) for bench in benches]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    assert len({(bench.result.num_tokens, bench.result.num_masked) for bench in benches}) == 1
    expected = gradients(benches[0])
    for bench in benches[1:]:
        for one, other in zip(gradients(bench), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_every_path_is_compared() -> None:
    others = {path.name for path, _ in KERNELS}
    assert {name for pair in COMPARISONS for name in pair[:2]} == PATHS.keys() | others


def test_lengths_are_spread_ten_to_one(sizes: Sizes) -> None:
    lengths = [len(sample.token_ids) for sample in make_samples(sizes, "bernoulli", are_spread=True)]
    assert (min(lengths), max(lengths)) == (3, 32)


def test_what_a_step_must_do_is_counted(sizes: Sizes) -> None:
    """By torch's own counter of products, on the path that does no more than it must."""
    from torch.utils.flop_counter import FlopCounterMode

    bench = Bench(make_model(sizes), PATHS["pair"], sizes)
    with FlopCounterMode(display=False) as counter:
        bench.step()
    seen, result = counter.get_total_flops(), bench.result
    assert result.num_row_tokens == 2 * result.num_tokens == 2 * 3 * 32
    assert result.num_row_pairs == 2 * 3 * 32**2
    # torch does not count the CPU's attention
    assert count_flops(sizes.shape).of(result.num_row_tokens, 0, result.num_masked) == seen


def test_the_masked_head_takes_least_memory() -> None:
    sizes = Sizes(30_000, 16, 1, 2, 2, 256, 2, "fp32", CPU)
    model = make_model(sizes)
    benches = {name: Bench(model, PATHS[name], sizes) for name in ("full", "indexed", "masked")}
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


def test_parts_have_floors(sizes: Sizes) -> None:
    parts = measure_parts(make_model(sizes), make_model(sizes), sizes, rounds=2)
    names = [part.name for part in parts.parts]
    assert names == ["batch", "layers", "layers, compiled", "head", "optimizer"]
    assert all(part.seconds > 0 for part in parts.parts)
    by_name = {part.name: part for part in parts.parts}
    layers = by_name["layers"].floors
    assert layers is not None and len(layers) == len(by_name["layers"].rounds) == 2
    assert by_name["batch"].floors is None
    for step, left_out in zip(parts.steps, ("layers, compiled", "layers"), strict=True):
        others = [part for part in parts.parts if part.name != left_out]
        assert step.rounds == pytest.approx(
            [sum(each) for each in zip(*(part.rounds for part in others), strict=True)]
        )
        floors = [part.floors for part in others if part.floors is not None]
        assert step.floors == pytest.approx([sum(each) for each in zip(*floors, strict=True)])


def test_a_floor_is_of_the_rate_around_its_part(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter(range(1, 100))
    monkeypatch.setattr(Rate, "measure", lambda self: float(next(rates)))
    monkeypatch.setattr(parts_module, "median", lambda values: 0.0)  # of rates that nobody took
    model = make_model(sizes)
    parts, masked = (
        measure_parts(model, None, sizes, rounds=1),
        Bench(model, PATHS["masked"], sizes).result.num_masked,
    )
    flops = count_flops(sizes.shape)
    # the warm-up takes one before each of three parts, the round one before and one after
    assert parts.parts[1].floors == [flops.of(96, 3 * 32**2, 0) / 4.5]
    assert parts.parts[2].floors == [flops.of(0, 0, masked) / 6.5]


@pytest.mark.parametrize(("hidden", "heads"), [(256, 4), (512, 8), (224, 2), (16, 1), (70, 1)])
def test_heads_follow_the_width(sizes: Sizes, hidden: int, heads: int) -> None:
    free = replace(sizes, hidden=hidden, heads=None, key_heads=None)
    assert (free.num_heads, free.num_key_heads) == (heads, heads)
    check_sizes(free)


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
        monkeypatch.setattr(measure_module, f"{name}_freed_memory", lambda name=name: called.append(name))
    Bench(make_model(sizes), PATHS[path], sizes).time(freed_memory)
    assert called == [expected]


def test_ratios_are_those_of_rounds(sizes: Sizes) -> None:
    model = make_model(sizes)
    benches = [Bench(model, PATHS[name], sizes) for name in ("indexed", "masked")]
    benches[0].result.seconds = [2.0, 9.0, 6.0]
    benches[1].result.seconds = [1.0, 3.0, 3.0]
    assert comparisons([bench.result for bench in benches]) == [
        ("masked positions only, against indexing after the head", 2.0)
    ]


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    names = [name for name in PATHS if name not in ("fused", "compiled")]  # which take the compiler a while
    arguments = ["--paths", ",".join(names), "--rounds", "2", "--json", str(file)]
    process = run_script("tools/bench.py", *TINY, *arguments)
    assert process.returncode == 0, process.stderr
    for word in (*names, "clean tokens/s", "masked positions only, against"):
        assert word in process.stdout
    values = json.loads(file.read_text())
    assert list(values["paths"]) == names
    assert len(values["paths"]["masked"]["seconds"]) == 2
    assert values["sizes"]["vocab"] == 64
    questions = {question for slower, faster, question in COMPARISONS if {slower, faster} <= set(names)}
    assert values["ratios"].keys() == questions


def test_parts_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main([*TINY, "--paths", "masked", "--rounds", "2", "--parts", "--json", str(file)]) == 0
    assert "a training step by part" in capsys.readouterr().out
    values = json.loads(file.read_text())["parts"]
    assert len(values["seconds"]["layers, compiled"]) == len(values["floors"]["head"]) == 2


def test_a_sweep_is_drawn(tmp_path: Path) -> None:
    figure, file = tmp_path / "growth.png", tmp_path / "growth.json"
    arguments = ["--paths", "masked,indexed", "--rounds", "1", "--sweep", "vocab=128,64"]
    assert main([*TINY, *arguments, "--figure", str(figure), "--json", str(file)]) == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert list(json.loads(file.read_text())["vocab"]) == ["64", "128"]


def test_a_profile_is_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--paths", "masked", "--profile", str(tmp_path / "traces")]) == 0
    trace = json.loads((tmp_path / "traces" / "masked.json").read_text())
    assert any("mm" in event.get("name", "") for event in trace["traceEvents"])
    assert "aten::mm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--paths", "naive"], "--paths: there is no 'naive'; choose from full, indexed"),
        (["--hidden", "100", "--heads", "3"], "--hidden 100 --heads 3"),
        (["--batch", "0"], "--batch 0: give at least 1"),
        (["--prompt", "1"], "a share below 1"),
        (["--paths", "cce", "--device", "cpu"], "--paths: cce needs a CUDA device, and its package"),
        (["--paths", ","], "--paths: none is named"),
        (["--sweep", "width=3"], "--sweep width=3: give NAME=N,N,... with one of vocab"),
        (["--sweep", "hidden=16,25"], "--hidden 25 --heads 2"),
        (["--key-heads", "0"], "--key-heads 0: give at least 1"),
        (["--profile", "traces", "--json", "x.json"], "--profile does not go with --json"),
        (["--sweep", "vocab=64", "--parts"], "--sweep does not go with --parts"),
        (["--sweep", "vocab=0,2"], "--sweep vocab=0,2"),
        (["--figure", "x.png"], "--figure x.png: draws a sweep"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: there is no folder no/such"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here"),
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main([*TINY, *arguments])


def test_commands_of_the_docs_are_taken() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    commands = re.findall(r"python tools/bench\.py ([^`\n]*)", page)
    assert len(commands) >= 4
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command))
        arguments.device = "cpu"
        assert paths_of(arguments)
        sizes = sizes_of(arguments)
        assert arguments.sweep is None or parse_sweep(arguments.sweep, sizes)
