"""What --dry-run tells: parameters as a built model has them, and memory by ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest

from mdmscale.config import RunConfig
from mdmscale.layout import make_layout
from mdmscale.models.backbone import build_backbone
from mdmscale.planning import count_parameters, estimate_memory, planned_model_config, print_plan

PARAMETERS = 1_000


def estimate(values: dict[str, Any], num_ranks: int = 2, **sections: dict[str, Any]) -> dict[str, float]:
    changed = {**values, **{name: {**values.get(name, {}), **keys} for name, keys in sections.items()}}
    config = RunConfig.model_validate(changed)
    hf_config, _ = planned_model_config(config.model)
    return estimate_memory(config, make_layout(config, num_ranks), hf_config, PARAMETERS, PARAMETERS)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_parameters_are_counted_as_the_built_model_has_them(
    tiny: dict[str, Any], family: str, tied: bool
) -> None:
    tiny["model"].update(architecture=family, tie_word_embeddings=tied)
    options = RunConfig.model_validate(tiny).model
    model = build_backbone(options, eps=1e-3, seed=0).model
    hf_config, _ = planned_model_config(options)
    assert count_parameters(hf_config)[0] == sum(parameter.numel() for parameter in model.parameters())


def test_a_tied_head_is_counted_once(tiny: dict[str, Any]) -> None:
    counts = []
    for tied in (False, True):
        tiny["model"]["tie_word_embeddings"] = tied
        counts.append(count_parameters(planned_model_config(RunConfig.model_validate(tiny).model)[0])[0])
    assert counts[0] - counts[1] == 512 * 32


def test_a_model_that_is_not_here_is_planned_from_its_keys(tiny: dict[str, Any]) -> None:
    here = count_parameters(planned_model_config(RunConfig.model_validate(tiny).model)[0])
    tiny["model"].update(path="nowhere/model", vocab_size=512)
    hf_config, note = planned_model_config(RunConfig.model_validate(tiny).model)
    assert count_parameters(hf_config) == here
    assert "nowhere/model" in note


def test_adapters_alone_need_gradients_and_optimizer_state(tiny: dict[str, Any]) -> None:
    tiny["model"].update(path="nowhere/model", vocab_size=512)
    whole = planned_model_config(RunConfig.model_validate(tiny).model)[0]
    num_parameters, num_trained = count_parameters(whole)
    assert num_parameters == num_trained
    tiny["model"]["lora"] = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}
    config = RunConfig.model_validate(tiny)
    with_lora, adapters = count_parameters(whole, config.model.lora)
    width, groups = 32, 16  # of the residual stream and of two key/value heads
    assert adapters == 2 * (2 * (width + width) + 2 * (width + groups))  # layers x rank x (in + out)
    assert with_lora == num_parameters + adapters
    memory = estimate_memory(config, make_layout(config, 1), whole, with_lora, adapters)
    assert memory["gradients"] == 4 * adapters and memory["optimizer"] == 8 * adapters


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("dtype", "weights", "gradients", "optimizer"), [("fp32", 4, 4, 8), ("bf16", 2, 4, 12)]
)
def test_each_zero_stage_shards_one_thing_more(
    tiny: dict[str, Any], ranks: int, dtype: str, weights: int, gradients: int, optimizer: int
) -> None:
    tiny["train"]["micro_batch_size"] = 1
    tiny["model"]["dtype"] = dtype
    for stage in range(4):
        memory = estimate(tiny, ranks, parallel={"zero_stage": stage})
        assert memory["optimizer"] == PARAMETERS * optimizer / (ranks if stage >= 1 else 1)
        accumulated = weights if stage == 0 else gradients  # ZeRO-0 adds in the weights' own dtype
        assert memory["gradients"] == PARAMETERS * accumulated / (ranks if stage >= 2 else 1)
        assert memory["weights"] == PARAMETERS * weights / (ranks if stage >= 3 else 1)


def test_sharing_and_offload_take_parts_off_the_device(tiny: dict[str, Any]) -> None:
    whole = estimate(tiny, 2, parallel={"zero_stage": 3})
    tensor = estimate(tiny, 4, parallel={"zero_stage": 3, "tensor": 2})
    sequence = estimate(tiny, 2, parallel={"zero_stage": 3, "sequence": 2})
    for name in ("weights", "gradients", "optimizer", "head"):
        assert tensor[name] == whole[name] / 2
    assert whole["activations"] / 2 < tensor["activations"] < whole["activations"]
    assert sequence["activations"] == whole["activations"] / 2
    assert sequence["weights"] == whole["weights"], "sequence ranks share ZeRO's shards like data ranks"
    host = {"zero_stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"}
    offloaded = estimate(tiny, 2, parallel=host)
    assert offloaded["optimizer"] == offloaded["weights"] == 0
    assert offloaded["gradients"] == whole["gradients"]


def test_a_mirror_pair_takes_the_activations_of_two_rows(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    single = estimate(tiny, diffusion={"masking": "bernoulli"})
    pair = estimate(tiny, diffusion={"masking": "mirror"})
    assert pair["activations"] == 2 * single["activations"]
    assert pair["weights"] == single["weights"]

    config = RunConfig.model_validate(tiny)
    print_plan(config, make_layout(config, 2))
    columns = [cell.strip() for cell in _table_row(capsys.readouterr().out, "ranks").split("│")[1:-1]]
    assert columns == ["2", "4", "1", "8", "8", "256"], (
        "4 samples a forward are 8 rows; a step has 8 x 32 tokens"
    )


def _table_row(text: str, heading: str) -> str:
    lines = text.splitlines()
    top = next(number for number, line in enumerate(lines) if line.startswith("┃") and heading in line)
    return lines[top + 2]


def test_activation_checkpointing_and_small_chunks_need_less(tiny: dict[str, Any]) -> None:
    tiny["model"]["num_hidden_layers"] = 8
    plain = estimate(tiny)
    assert estimate(tiny, model={"activation_checkpointing": True})["activations"] < plain["activations"] / 4
    assert estimate(tiny, model={"head_chunk_size": 16})["head"] < plain["head"]


def test_a_dry_run_needs_no_data(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["data"]["path"] = str(tmp_path / "nowhere")
    config = RunConfig.model_validate(tiny)
    print_plan(config, make_layout(config, 1))
    assert not list(tmp_path.iterdir())
