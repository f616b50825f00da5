"""FLOPs compared with torch's count in a forward of the same model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from mdmscale.models.flops import count_flops, peak_flops
from mdmscale.models.shape import shape_of_config


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
def test_forward_is_a_third_of_training_and_torch_counts_the_same(
    architecture: str, heads: tuple[int, int]
) -> None:
    config = AutoConfig.for_model(
        architecture,
        vocab_size=128,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=8,
        is_causal=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    rows, length, masked = 2, 16, 5
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.zeros(rows, length, dtype=torch.int64), logits_to_keep=torch.arange(masked))
    expected = 3 * counter.get_total_flops()
    # torch counts the head at `masked` positions of each row; the rotary tables' little products are not ours
    counted = count_flops(shape_of_config(config)).of(rows * length, rows * length**2, rows * masked)
    assert counted == pytest.approx(expected, rel=2e-3)


def test_frozen_weights_need_no_gradient_of_their_own() -> None:
    config = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    shape = shape_of_config(config)
    trained, frozen = count_flops(shape), count_flops(shape, is_frozen=True)
    assert frozen.per_token == trained.per_token * 2 / 3
    assert frozen.per_pair == trained.per_pair


def test_the_cpu_has_no_known_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None
