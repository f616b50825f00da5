"""The same run on other ranks, micro-batches and ZeRO stages has the same objective, noise and result."""

import copy
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_values, train_all

from mdmscale.training.metrics import read_metrics

pytestmark = pytest.mark.distributed

STEPS = 12
# Each micro-batch meets each stage: half of these pairs on one rank, the others on two.
LAYOUTS = [
    (1 + (column + stage) % 2, micro, stage)
    for column, micro in enumerate((4, 2, 1))
    for stage in (0, 1, 2, 3)
]
VARIANTS: dict[str, dict[str, Any]] = {
    "sequential": {"diffusion": {"pair_forward": "sequential"}},
    "refits": {
        "diffusion": {
            "masking": "complement",
            "strata": 4,
            "isad": {"tokens": ["def", 7], "delta": 0.2},
            "p_pots": {"probe_steps": [], "refit_every": 5, "target": "loss"},
        }
    },
    "low_discrepancy": {"diffusion": {"t_sampler": "low_discrepancy", "masking": "bernoulli"}},
    "counts": {
        "diffusion": {
            "masking": "exact",
            "rows": 3,
            "strata": 4,
            "pair_forward": "sequential",
            "p_pots": {"num_x0": 2, "num_masks": 2, "refit_every": 5},
        }
    },
    "bell": {
        "diffusion": {"masking": "independent", "loss_weight": "bell", "t_sampler": "stratified"},
        "train": {"packing": True},
    },
    "scripts": {
        "diffusion": {
            "objective": "paper_scripts",
            "p_pots": {"target": "paper", "fit": "epr", "num_x0": 2, "num_t": 9, "num_masks": 2},
        },
    },
    "annealed": {"model": {"attention_annealing_steps": 8}},
    "no_baseline": {"diffusion": {"ema_decay": 0.0}},
    "token": {"diffusion": {"normalization": "token", "t_sampler": "stratified"}},
    "untied": {"model": {"tie_word_embeddings": False, "architecture": "qwen2", "logit_shift": True}},
    "checkpointed": {"model": {"activation_checkpointing": True}},
    "selective": {"model": {"activation_checkpointing": "selective"}},
}


def name_of(kind: str, ranks: int, micro: int, stage: int) -> str:
    return f"{kind}-{ranks}-{micro}-{stage}"


def run_values(corpus: Path, folder: Path, kind: str, ranks: int, micro: int, stage: int) -> dict[str, Any]:
    values = tiny_values(corpus, folder)
    values["run"]["name"] = name_of(kind, ranks, micro, stage)
    values["train"] |= {"steps": STEPS, "micro_batch_size": micro}
    values["parallel"] = {"zero_stage": stage}
    for section, changes in VARIANTS.get(kind, {}).items():
        values[section] = {**values[section], **copy.deepcopy(changes)}
    return values


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of all runs of this module, in one job on 1 rank and one on 2."""
    folder = tmp_path_factory.mktemp("runs")
    for ranks in (1, 2):
        batch = [run_values(corpus, folder, "plain", *layout) for layout in LAYOUTS if layout[0] == ranks]
        for kind in VARIANTS:
            layouts = [(1, 4, 0)] if ranks == 1 else [(2, 2, 1), (2, 4, 3)]
            batch += [run_values(corpus, folder, kind, *layout) for layout in layouts]
        train_all(ranks, batch)
    return folder


def series(runs: Path, name: str, key: str) -> np.ndarray:
    return np.array([record[key] for record in read_metrics(runs / name)])


@pytest.mark.parametrize(("ranks", "micro", "stage"), LAYOUTS)
def test_losses_agree_in_every_layout(runs: Path, ranks: int, micro: int, stage: int) -> None:
    reference, name = name_of("plain", 1, 4, 0), name_of("plain", ranks, micro, stage)
    assert len(series(runs, name, "loss")) == STEPS
    np.testing.assert_allclose(series(runs, name, "loss"), series(runs, reference, "loss"), rtol=1e-5)
    np.testing.assert_allclose(
        series(runs, name, "grad_norm"), series(runs, reference, "grad_norm"), rtol=1e-4
    )
    for key in ("masked_tokens", "tokens", "consumed_samples", "lr"):
        np.testing.assert_array_equal(series(runs, name, key), series(runs, reference, key))


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("ranks", "micro", "stage"), [(2, 2, 1), (2, 4, 3)])
def test_losses_agree_for_other_options(runs: Path, kind: str, ranks: int, micro: int, stage: int) -> None:
    reference, name = name_of(kind, 1, 4, 0), name_of(kind, ranks, micro, stage)
    for key in ("loss", *(["loss_controlled"] if kind != "no_baseline" else [])):
        np.testing.assert_allclose(series(runs, name, key), series(runs, reference, key), rtol=1e-5)


def test_pairs_that_take_turns_give_the_numbers_of_joint_ones(runs: Path) -> None:
    joint, turns = (name_of(kind, 1, 4, 0) for kind in ("plain", "sequential"))
    for key in ("loss", "loss_controlled", "grad_norm"):
        np.testing.assert_allclose(series(runs, turns, key), series(runs, joint, key), rtol=1e-4)
    np.testing.assert_allclose(series(runs, turns, "loss"), series(runs, joint, "loss"), rtol=1e-5)
    for key in ("tokens", "masked_tokens"):
        np.testing.assert_array_equal(series(runs, turns, key), series(runs, joint, key))


def test_the_baseline_leaves_training_bit_for_bit_as_it_was(runs: Path) -> None:
    with_it, without = (name_of(kind, 1, 4, 0) for kind in ("plain", "no_baseline"))
    for key in ("loss", "grad_norm"):
        np.testing.assert_array_equal(series(runs, with_it, key), series(runs, without, key))
    weights = [(runs / name / "hf" / "model.safetensors").read_bytes() for name in (with_it, without)]
    assert weights[0] == weights[1]
    assert "loss_controlled" not in read_metrics(runs / without)[-1]


def test_refits_from_training_s_own_statistics_enter_the_metrics(runs: Path) -> None:
    records = read_metrics(runs / name_of("refits", 1, 4, 0))
    assert [record["step"] for record in records if "p_of_t" in record] == [6, 11]
    first, last = (np.array(record["p_of_t"]["density"]) for record in (records[5], records[10]))
    assert np.ptp(first) > 1e-3
    assert np.abs(first - last).max() > 1e-3
    assert all(record["p_pots_gain"] > 0.9 for record in records if "p_pots_gain" in record)


def test_the_fitted_density_agrees(runs: Path) -> None:
    """With a probed table t agrees to 1e-6, because the tables are nearly equal."""
    from mdmscale.diffusion.density import DensityTable
    from mdmscale.training.state import TrainingState

    def table(name: str) -> DensityTable:
        state = TrainingState.read(runs / name / "checkpoints" / f"step-{STEPS:08d}")
        return DensityTable.from_state(state.components["p_pots"]["density"])

    reference = table(name_of("plain", 1, 4, 0))
    assert np.ptp(reference.density) > 1e-3, "a uniform table would prove nothing"
    for layout in LAYOUTS:
        other = table(name_of("plain", *layout))
        for u in np.linspace(0, 1, 101, endpoint=False):
            assert other.draw(u) == pytest.approx(reference.draw(u), abs=1e-6)


def test_variants_are_different_objectives(runs: Path) -> None:
    """Otherwise the agreement above would prove nothing."""

    def largest_difference(first: str, second: str) -> float:
        losses = [series(runs, name_of(kind, 1, 4, 0), "loss") for kind in (first, second)]
        return float(np.abs(losses[0] / losses[1] - 1).max())

    for first, second in combinations(("plain", "token", "untied", "counts", "bell", "scripts"), 2):
        assert largest_difference(first, second) > 1e-3
    # a model at random hardly attends, so that it matters little where it may look
    assert largest_difference("plain", "annealed") > 1e-4


@pytest.mark.parametrize("kind", ["checkpointed", "selective"])
def test_activation_checkpointing_changes_nothing(runs: Path, kind: str) -> None:
    plain, checkpointed = (series(runs, name_of(each, 1, 4, 0), "loss") for each in ("plain", kind))
    np.testing.assert_allclose(plain, checkpointed, rtol=1e-6)
