import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mdmscale.config.training import OptimizerSection
from mdmscale.engine.optim import learning_rate, make_optimizer, parameter_groups, set_learning_rate


def options(**values: object) -> OptimizerSection:
    return OptimizerSection(**{"lr": 1.0, **values})  # type: ignore[arg-type]


def rates(num_steps: int, **values: object) -> list[float]:
    return [learning_rate(step, num_steps, options(**values)) for step in range(num_steps)]


def test_warm_up_is_linear_and_starts_above_zero() -> None:
    assert rates(10, schedule="constant", warmup_steps=4) == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)


def test_linear() -> None:
    assert rates(8, schedule="linear", warmup_steps=4, min_lr_ratio=0.5)[4:] == pytest.approx(
        [1, 0.875, 0.75, 0.625]
    )


def test_cosine_is_halfway_in_the_middle() -> None:
    curve = rates(100, schedule="cosine", min_lr_ratio=0.1)
    assert curve[0] == 1
    assert curve[50] == pytest.approx(0.55)
    assert curve[99] == pytest.approx(0.1, abs=1e-3)


def test_wsd_holds_then_decays() -> None:
    curve = rates(100, schedule="wsd", warmup_steps=10, decay_steps=20)
    assert curve[10:81] == pytest.approx([1.0] * 71)
    assert curve[90] == pytest.approx(0.5)
    assert rates(100, schedule="wsd")[89:92] == pytest.approx([1.0, 1.0, 0.9]), (
        "a tenth of the steps by default"
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_norms_biases_and_embeddings_are_not_decayed(family: str, tied: bool) -> None:
    config = AutoConfig.for_model(
        family,
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))  # type: ignore[attr-defined]
    expected = {name for name in names.values() if "norm" in name or name.endswith("bias") or "embed" in name}
    assert undecayed == expected
    assert decayed == set(names.values()) - expected
    assert any("q_proj.weight" in name for name in decayed)


def test_set_learning_rate_reaches_every_group() -> None:
    optimizer = make_optimizer(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)), options())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_one_kernel_takes_the_steps_of_many() -> None:
    """Fused AdamW agrees with torch's plain AdamW."""
    weights = []
    for is_fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
        optimizer = make_optimizer(model, options(lr=1e-2))
        for group in optimizer.param_groups:
            assert group["fused"]
            group["fused"] = is_fused
        for _ in range(20):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    fused, plain = weights
    assert (fused - plain).norm() < 1e-6 * plain.norm()
