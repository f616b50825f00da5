from pathlib import Path

import pytest
import torch

from mdmscale.config.model import ModelSection
from mdmscale.models.backbone import build_backbone
from mdmscale.models.head import naive_masked_cross_entropy
from mdmscale.models.mdm import MaskedDiffusionModel


@pytest.fixture(scope="module")
def options(corpus: Path) -> ModelSection:
    return ModelSection(
        tokenizer=str(corpus / "tokenizer"),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        dtype="fp32",
    )


def test_reads_the_hidden_states_at_the_positions(options: ModelSection) -> None:
    backbone = build_backbone(options, eps=1e-3, seed=0)
    model = MaskedDiffusionModel(backbone.model, head_chunk_size=3)
    ids = torch.arange(20, 32).reshape(2, 6)
    positions = torch.tensor([0, 3, 6, 7, 11])
    targets, weights = torch.tensor([5, 6, 7, 8, 9]), torch.ones(5)
    output = model(ids, None, positions, targets, weights)

    hidden = backbone.model.model(ids).last_hidden_state[positions // 6, positions % 6]
    naive = naive_masked_cross_entropy(hidden, backbone.model.lm_head.weight, targets, weights)
    torch.testing.assert_close(output.losses, naive.losses)


def test_activation_checkpointing_changes_no_gradient(options: ModelSection) -> None:
    gradients = []
    for enabled in (False, True):
        backbone = build_backbone(options, eps=1e-3, seed=0)
        model = MaskedDiffusionModel(backbone.model, head_chunk_size=3).train()
        if enabled:
            backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.arange(20, 32).reshape(2, 6)
        model(ids, None, torch.tensor([1, 8]), torch.tensor([5, 6]), torch.ones(2)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
