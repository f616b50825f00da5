"""A row has the same hidden states and gradients when it is packed as when it is alone."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mdmscale.config.model import ModelSection
from mdmscale.models.annealing import annealed_mask, visible_positions
from mdmscale.models.backbone import FAMILIES, build_backbone
from mdmscale.models.packed_attention import PackedRows, attend_in_rows, packed_attention

LENGTHS = (7, 7, 3, 11, 1)
ROWS = PackedRows.of(LENGTHS, torch.device("cpu"))


def build(corpus: Path, family: str) -> PreTrainedModel:
    options = ModelSection(
        tokenizer=str(corpus / "tokenizer"),
        architecture=family,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        dtype="fp32",
        initializer_range=0.3,
    )
    return build_backbone(options, 1e-3, seed=0).model


def outputs(model: PreTrainedModel, packs: bool, pairs: torch.Tensor | None) -> torch.Tensor:
    """The hidden states of rows with LENGTHS, [tokens, hidden]."""
    rows = [torch.arange(length) + 10 * number + 5 for number, length in enumerate(LENGTHS)]
    if packs:
        return model.model(
            input_ids=torch.cat(rows)[None],
            attention_mask=pairs,
            position_ids=torch.cat([torch.arange(length) for length in LENGTHS])[None],
            packed_rows=ROWS,
        ).last_hidden_state[0]
    alone = []
    for row in rows:
        mask = None if pairs is None else annealed_mask(None, pairs[0, 0].numpy(), 1, len(row))
        alone.append(model.model(input_ids=row[None], attention_mask=mask).last_hidden_state[0])
    return torch.cat(alone)


@pytest.mark.parametrize("annealed", [False, True], ids=["all", "some"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_as_they_are_alone(corpus: Path, family: str, checkpointed: bool, annealed: bool) -> None:
    pairs = torch.from_numpy(visible_positions(0, 1, 4, max(LENGTHS)))[None, None] if annealed else None
    results = []
    for packs in (False, True):
        model = build(corpus, family).train()
        if packs:
            attend_in_rows(model)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        hidden = outputs(model, packs, pairs)
        (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
        results.append((hidden.detach(), {name: each.grad for name, each in model.model.named_parameters()}))
    (alone, gradients), (packed, packed_gradients) = results
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-4)


def test_no_row_sees_another() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2))
    before = packed_attention(query, key, value, ROWS)
    value[:, :, 14:17] += 1.0  # the third row
    moved = (packed_attention(query, key, value, ROWS) - before).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [14, 15, 16]
