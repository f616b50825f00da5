"""Runs on ranks that share models or sequences, or with offloaded state, give one rank's numbers."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_values, train_all
from safetensors.torch import load_file

from mdmscale.config.run import RunConfig
from mdmscale.engine.checkpoint_weights import DeepSpeedCheckpoint
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system.errors import UserError
from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

STEPS = 10
KINDS: dict[str, dict[str, Any]] = {
    # MIRROR and P-POTS with strata, rows cut at random and so padded
    "plain": {"diffusion": {"strata": 4}},
    # norms of single heads
    "qwen3": {"model": {"architecture": "qwen3", "activation_checkpointing": "selective"}},
    "qwen2": {"model": {"architecture": "qwen2", "tie_word_embeddings": False, "logit_shift": True}},
    "annealed": {"model": {"attention_annealing_steps": 6, "activation_checkpointing": True}},
    "packed": {"diffusion": {"strata": 4}, "train": {"packing": True}},  # plain without its padding
    "counts": {"diffusion": {"masking": "exact", "rows": 3, "strata": 4, "loss_weight": "uniform"}},
    # some steps drop samples, whose loss is a sum over ranks that share them
    "scripts": {
        "diffusion": {
            "objective": "paper_scripts",
            "p_pots": {"target": "paper", "fit": "epr", "num_x0": 2, "num_t": 9, "num_masks": 2},
        },
    },
    "turns": {
        "diffusion": {"t_sampler": "stratified", "normalization": "token", "pair_forward": "sequential"}
    },
}
TENSOR, SEQUENCE = {"tensor": 2}, {"sequence": 2}
CPU = {"offload_optimizer": "cpu"}
QUICK: list[tuple[str, dict[str, Any]]] = [
    ("plain", {"zero_stage": 1, **TENSOR}),
    ("plain", {"zero_stage": 3, **SEQUENCE}),
    ("plain", {"zero_stage": 2, **CPU}),
    ("qwen3", {"zero_stage": 0, **TENSOR}),
    ("qwen2", {"zero_stage": 1, **SEQUENCE}),
    ("packed", {"zero_stage": 2, **SEQUENCE}),
    ("counts", {"zero_stage": 3, **TENSOR}),
    ("scripts", {"zero_stage": 1, **SEQUENCE}),
]
SLOW: dict[int, list[tuple[str, dict[str, Any]]]] = {
    2: [
        *(("plain", {"zero_stage": stage, **TENSOR}) for stage in (0, 2, 3)),
        *(("plain", {"zero_stage": stage, **SEQUENCE}) for stage in (0, 1, 2)),
        *((kind, {"zero_stage": 3, **TENSOR}) for kind in ("qwen3", "qwen2", "annealed", "packed", "turns")),
        *((kind, {"zero_stage": 3, **SEQUENCE}) for kind in ("qwen3", "qwen2", "annealed", "turns")),
        ("plain", {"zero_stage": 1, **CPU}),
        ("plain", {"zero_stage": 3, **CPU, "offload_parameters": "cpu"}),
        ("plain", {"zero_stage": 3, **CPU, "offload_parameters": "cpu", **TENSOR}),
        ("plain", {"zero_stage": 2, **CPU, **SEQUENCE}),
        ("plain", {"zero_stage": 3, "hpz_partition_size": 2}),
    ],
    4: [
        *(("plain", {"zero_stage": stage, **TENSOR}) for stage in (0, 1, 2, 3)),
        *(("plain", {"zero_stage": stage, **SEQUENCE}) for stage in (0, 1, 2, 3)),
        ("plain", {"zero_stage": 1, **TENSOR, **SEQUENCE}),
    ],
}


def name_of(kind: str, ranks: int, parallel: dict[str, Any]) -> str:
    return "-".join([kind, str(ranks), *(f"{key}.{value}" for key, value in parallel.items())])


def run_values(corpus: Path, folder: Path, kind: str, ranks: int, parallel: dict[str, Any]) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name_of(kind, ranks, parallel)
    values["train"] |= {"steps": STEPS, "micro_batch_size": 2, "ema_decay": 0.8}
    values["eval"] = {"every": STEPS // 2, "samples": 4, "num_t": 4}
    values["parallel"] = parallel
    if kind == "qwen3" and ranks > 1:  # against the chunked one of a rank by itself
        values["model"]["head"] = "fused"
    for section, changes in KINDS[kind].items():
        values[section] = {**values[section], **copy.deepcopy(changes)}
    return values


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of every kind on one rank, and of the fast layouts on two ranks."""
    folder = tmp_path_factory.mktemp("runs")
    train_all(1, [run_values(corpus, folder, kind, 1, {"zero_stage": 0}) for kind in KINDS])
    train_all(2, [run_values(corpus, folder, kind, 2, parallel) for kind, parallel in QUICK])
    return folder


@pytest.fixture(scope="module")
def slow_runs(runs: Path, corpus: Path) -> Path:
    """The same folder, with the slow layouts added."""
    for ranks, layouts in SLOW.items():
        train_all(ranks, [run_values(corpus, runs, kind, ranks, parallel) for kind, parallel in layouts])
    return runs


def alone(runs: Path, kind: str) -> Path:
    """The run on one rank."""
    return runs / name_of(kind, 1, {"zero_stage": 0})


def series(run: Path, key: str) -> np.ndarray:
    return np.array([record[key] for record in read_metrics(run) if key in record])


def assert_same_run(run: Path, reference: Path) -> None:
    assert len(series(run, "loss")) == STEPS
    for key in ("loss", "loss_controlled", "eval_loss", "eval_loss_ema"):
        np.testing.assert_allclose(series(run, key), series(reference, key), rtol=1e-5)
    np.testing.assert_allclose(series(run, "grad_norm"), series(reference, "grad_norm"), rtol=1e-4)
    for key in ("masked_tokens", "tokens", "consumed_samples", "lr"):
        np.testing.assert_array_equal(series(run, key), series(reference, key))
    for folder in ("hf", "hf_ema"):
        weights, expected = (load_file(each / folder / "model.safetensors") for each in (run, reference))
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            np.testing.assert_allclose(weight.numpy(), expected[name].numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("kind", "parallel"), QUICK, ids=str)
def test_sharing_changes_nothing(runs: Path, kind: str, parallel: dict[str, Any]) -> None:
    assert_same_run(runs / name_of(kind, 2, parallel), alone(runs, kind))


def test_packing_changes_nothing(runs: Path) -> None:
    assert_same_run(alone(runs, "packed"), alone(runs, "plain"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "kind", "parallel"),
    [(n, *layout) for n, layouts in SLOW.items() for layout in layouts],
    ids=str,
)
def test_sharing_changes_nothing_anywhere(
    slow_runs: Path, ranks: int, kind: str, parallel: dict[str, Any]
) -> None:
    assert_same_run(slow_runs / name_of(kind, ranks, parallel), alone(slow_runs, kind))


def test_a_checkpoint_of_tensor_ranks_reads_as_whole(runs: Path) -> None:
    """The checkpoint has the exported weights, and the optimizer state of one rank."""
    run = runs / name_of("plain", 2, QUICK[0][1])
    whole, alone = (
        DeepSpeedCheckpoint(each / "checkpoints" / f"step-{STEPS:08d}")
        for each in (run, runs / name_of("plain", 1, {"zero_stage": 0}))
    )
    for folder, stored in (("hf", whole), ("hf_ema", DeepSpeedCheckpoint(whole.folder, averaged=True))):
        exported = load_file(run / folder / "model.safetensors")
        assert stored.tensors().keys() == exported.keys()
        for name, weight in exported.items():
            np.testing.assert_array_equal(stored.read(name).numpy(), weight.numpy())
    assert whole.optimizer_step == alone.optimizer_step
    for name in whole.names:
        moments = (each.optimizer_value(name, "exp_avg").numpy() for each in (whole, alone))
        np.testing.assert_allclose(*moments, atol=1e-6, err_msg=name)


RESUMED: list[tuple[int, dict[str, Any], int, dict[str, Any]]] = [
    (2, {"zero_stage": 1, **TENSOR}, 2, {"zero_stage": 1, **TENSOR}),
    (2, {"zero_stage": 1, **TENSOR}, 1, {"zero_stage": 2}),
    (1, {"zero_stage": 0}, 2, {"zero_stage": 3, **TENSOR}),
    (1, {"zero_stage": 0}, 2, {"zero_stage": 2, **CPU, **SEQUENCE}),
    (2, {"zero_stage": 3, **CPU, "offload_parameters": "cpu"}, 2, {"zero_stage": 3, **TENSOR}),
]


@pytest.mark.slow
def test_runs_go_on_with_other_sharing(runs: Path, corpus: Path, tmp_path: Path) -> None:
    """Half of the steps in one layout and half in another equal an uninterrupted run."""
    expected = series(runs / name_of("plain", 1, {"zero_stage": 0}), "loss")
    for number, (ranks, parallel, other_ranks, other) in enumerate(RESUMED):
        values = run_values(corpus, tmp_path, "plain", ranks, parallel)
        values["run"]["name"] = f"resumed-{number}"
        values["checkpoint"] = {"every": STEPS // 2, "keep": 0}
        train_all(ranks, [values])
        shutil.rmtree(tmp_path / f"resumed-{number}" / "checkpoints" / f"step-{STEPS:08d}")
        train_all(other_ranks, [{**values, "parallel": other}])
        np.testing.assert_allclose(series(tmp_path / f"resumed-{number}", "loss"), expected, rtol=1e-5)


def config_with(corpus: Path, **changes: dict[str, Any]) -> RunConfig:
    values = tiny_values(corpus, Path("runs"))
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parallel": {"zero_stage": 2, "offload_parameters": "cpu"}},
            "offload_parameters = cpu needs zero_stage 3",
        ),
        (
            {"parallel": {"zero_stage": 0, "offload_optimizer": "cpu"}},
            "offload_optimizer = cpu needs zero_stage 1",
        ),
        (
            {"parallel": {"zero_stage": 3, "hpz_partition_size": 2, "tensor": 2}},
            "hpz_partition_size = 2 with tensor = 2: DeepSpeed makes its groups of adjacent",
        ),
        (
            {"parallel": {"zero_stage": 2, "hpz_partition_size": 2}},
            "hpz_partition_size = 2 needs zero_stage 3",
        ),
        (
            {"parallel": {"zero_stage": 3, "hpz_partition_size": 2, "offload_parameters": "cpu"}},
            "keeps a copy on the device",
        ),
        (
            {"parallel": {"zero_stage": 1, "quantized_weights": True}},
            "quantized_weights = True needs zero_stage 3",
        ),
        ({"parallel": {"zero_stage": 0, "overlap_comm": True}}, "overlap_comm is set but zero_stage is 0"),
        ({"parallel": {"zero_stage": 0, "bucket_size": 5}}, "bucket_size is set but zero_stage is 0"),
        (
            {"parallel": {"sequence": 2}, "model": {"attention": "eager"}},
            "parallel.sequence = 2 exchanges slices around sdpa",
        ),
        (
            {"train": {"packing": True}, "model": {"attention": "eager"}},
            "train.packing = true keeps samples apart in sdpa, but model.attention is eager",
        ),
        (
            {"parallel": {"tensor": 2}, "model": {"path": "folder", "lora": {}}},
            "parallel.tensor = 2 and model.lora: adapters are not split",
        ),
    ],
)
def test_combinations_that_cannot_be_are_refused(corpus: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_with(corpus, **changes)


def test_ranks_that_do_not_divide_are_refused(corpus: Path) -> None:
    config = config_with(corpus, parallel={"tensor": 2, "sequence": 2})
    with pytest.raises(UserError, match=r"tensor = 2 x parallel.sequence = 2 = 4 does not divide 6 ranks"):
        make_layout(config, 6)
    config = config_with(corpus, parallel={"zero_stage": 3, "hpz_partition_size": 3})
    with pytest.raises(UserError, match=r"hpz_partition_size = 3 does not divide the 4 ranks"):
        make_layout(config, 4)


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"tensor": 4}, "does not divide the model's num_key_value_heads = 2"),
        ({"sequence": 8}, "does not divide the model's num_attention_heads = 4"),
    ],
)
def test_models_that_do_not_divide_are_refused(corpus: Path, parallel: dict[str, int], message: str) -> None:
    from mdmscale.models.backbone import scratch_config
    from mdmscale.parallel.tensor import check_divides

    model = scratch_config(config_with(corpus).model, 512)
    with pytest.raises(UserError, match=message):
        check_divides(model, parallel.get("tensor", 1), parallel.get("sequence", 1))
