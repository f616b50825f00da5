"""An autoregressive model computes what transformers' own causal model computes, in every layout of rows."""

from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.model import ModelSection
from mdmscale.data.collate import Collator
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.models.backbone import FAMILIES, build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import PackedRows, _causal_option, attend_in_rows, packed_attention
from mdmscale.system.errors import UserError

LENGTHS = (7, 7, 3, 11, 2)
NOISE = Noise(DiffusionSection(objective="ar"))


def options(corpus: Path, **values: object) -> ModelSection:
    keys = {"tokenizer": str(corpus / "tokenizer"), "hidden_size": 32, "num_hidden_layers": 2}
    keys |= {"num_attention_heads": 4, "num_key_value_heads": 2, "dtype": "fp32", "initializer_range": 0.3}
    return ModelSection.model_validate({**keys, **values})


def samples() -> list[NoisedSample]:
    made = []
    for number, length in enumerate(LENGTHS):
        tokens = np.random.default_rng(number).integers(5, 500, length)
        sample = Sample(tokens, np.arange(length) >= number % 3)
        made.append(noise_sample(sample, Levels.at(0.5), np.zeros(length), NOISE))
    return made


def plain_losses(corpus: Path, **values: object) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Of transformers' model, a sample at a time: mean cross-entropies, and gradients of their sum."""
    model = build_backbone(options(corpus, **values), 1e-3, 0, "ar").model
    losses = []
    for sample in samples():
        tokens = torch.from_numpy(sample.token_ids)
        logits = model(tokens[None], use_cache=False).logits[0, :-1]
        is_target = torch.from_numpy(sample.masks[0, 1:])
        losses.append(F.cross_entropy(logits[is_target], tokens[1:][is_target]))
    torch.stack(losses).sum().backward()
    return losses, {name: each.grad for name, each in model.model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_losses_and_gradients_are_those_of_transformers(
    corpus: Path, family: str, packs: bool, attention: str
) -> None:
    if packs and attention == "eager":
        pytest.skip("packing needs sdpa")
    expected, gradients = plain_losses(corpus, architecture=family, attention=attention)
    backbone = build_backbone(options(corpus, architecture=family, attention=attention), 1e-3, 0, "ar")
    if packs:
        attend_in_rows(backbone.model)
    model = MaskedDiffusionModel(backbone.model, head_chunk_size=8).train()
    batch = Collator(backbone.mask_token_id, backbone.logit_shift, packs)(samples())
    assert (batch.row_lengths is not None) == packs
    output = model(**batch.model_inputs)
    losses = batch.sum_by_draw(batch.weights * output.losses)
    torch.testing.assert_close(losses.detach(), torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    output.loss.backward()
    mine = {name: each.grad for name, each in backbone.model.model.named_parameters()}
    for name, gradient in gradients.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_packed_position_attends_to_earlier_ones_of_its_row_only() -> None:
    torch.manual_seed(0)
    rows = PackedRows.of(LENGTHS, torch.device("cpu"))
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, 2, 2))
    before = packed_attention(query, key, value, rows, is_causal=True)
    value[:, :, 19] += 1.0  # the third token of the fourth row, which begins at 17
    after = packed_attention(query, key, value, rows, is_causal=True)
    moved = (after - before).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(19, 28))


def test_the_kernel_of_gpus_has_the_argument_that_makes_it_causal() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    assert _causal_option().keys() <= signature(varlen.varlen_attn).parameters.keys()


@pytest.mark.slow
def test_compiled_packed_rows_have_the_same_gradients() -> None:
    rows = PackedRows.of(LENGTHS, torch.device("cpu"))
    gradients = []
    for attend in (packed_attention, torch.compile(packed_attention)):
        torch.manual_seed(0)
        inputs = [torch.randn(1, heads, sum(LENGTHS), 8, requires_grad=True) for heads in (4, 2, 2)]
        attend(*inputs, rows, is_causal=True).square().sum().backward()
        gradients.append([each.grad for each in inputs])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_the_folder_says_what_it_is(corpus: Path, tmp_path: Path) -> None:
    backbone = build_backbone(options(corpus), 1e-3, 0, "ar")
    assert backbone.logit_shift and backbone.model.config.is_causal is True
    assert backbone.model.config.mdm["objective"] == "ar"
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    adapted = build_backbone(ModelSection(path=str(tmp_path), dtype="fp32"), 1e-3, 0)
    assert adapted.model.config.is_causal is False and adapted.logit_shift
    assert adapted.model.config.mdm["objective"] == "full", "an MDM may start from an autoregressive model"


def test_a_model_that_predicts_in_place_is_refused_unless_the_user_insists(
    corpus: Path, tmp_path: Path
) -> None:
    backbone = build_backbone(options(corpus), 1e-3, 0)
    backbone.model.save_pretrained(tmp_path)
    backbone.tokenizer.save_pretrained(tmp_path)
    start = ModelSection(path=str(tmp_path), dtype="fp32")
    with pytest.raises(UserError, match=r"predicts each token in place.*set model.logit_shift: true"):
        build_backbone(start, 1e-3, 0, "ar")
    assert build_backbone(start.model_copy(update={"logit_shift": True}), 1e-3, 0, "ar").logit_shift
