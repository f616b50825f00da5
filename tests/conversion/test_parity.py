"""Imported models agree with an independent forward pass on the source's weights, to 1e-5 in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import (
    DREAM,
    LLADA,
    SIZES,
    Weights,
    dream_shapes,
    llada_shapes,
    make_arm,
    make_tokenizer,
    random_weights,
    write_folder,
)
from conversion.references import dream_logits, llada_logits
from transformers import AutoModelForCausalLM

from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.models.mdm import MaskedDiffusionModel

SEQUENTIAL = {**LLADA, "block_type": "sequential", "activation_type": "swiglu", "mlp_hidden_size": 96}
TOLERANCE = 1e-5


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def mdm_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [rows, length, vocab] in training, computed from the losses of every target."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    shift, vocab = model.config.mdm["logit_shift"], model.config.vocab_size
    mdm = MaskedDiffusionModel(model, head_chunk_size=64)
    places = torch.arange(ids.numel())
    predicted_from = places - (places % ids.shape[1] > 0).long() if shift else places
    positions = predicted_from.repeat_interleave(vocab)
    targets = torch.arange(vocab).repeat(ids.numel())
    with torch.no_grad():
        output = mdm(ids, None, positions, targets, torch.ones(len(targets)))
    return -output.losses.view(*ids.shape, vocab)


def assert_parity(folder: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Compare the log-probabilities in training, and the raw logits too if nothing is shifted."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    if not model.config.mdm["logit_shift"]:
        with torch.no_grad():
            assert (model(ids).logits - logits).abs().max() <= TOLERANCE
    assert (mdm_logits(folder, ids) - logits.log_softmax(-1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
@pytest.mark.parametrize("config", [LLADA, SEQUENTIAL], ids=["llama-block", "fused"])
def test_llada(tmp_path: Path, ids: torch.Tensor, config: dict[str, Any], file_format: str) -> None:
    weights = random_weights(llada_shapes(config))
    write_folder(tmp_path / "llada", config, weights, file_format, num_shards=2)
    import_folder(tmp_path / "llada", tmp_path / "ours", ImportOptions())
    logits = llada_logits(config, weights, ids)
    assert logits.std() > 0.1, "the reference says something"
    assert_parity(tmp_path / "ours", ids, logits)


def test_llada_with_its_llama_block_and_fused_attention(tmp_path: Path, ids: torch.Tensor) -> None:
    weights = random_weights(llada_shapes(LLADA))
    logits = llada_logits(LLADA, weights, ids)
    fused: Weights = {}
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            sides = [weights[name.replace("q_proj", f"{side}_proj")] for side in "qkv"]
            fused[name.replace("q_proj", "att_proj")] = torch.cat(sides)
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            fused[name] = tensor
    write_folder(tmp_path / "llada", LLADA, fused)
    import_folder(tmp_path / "llada", tmp_path / "ours", ImportOptions())
    assert_parity(tmp_path / "ours", ids, logits)


def test_dream(tmp_path: Path, ids: torch.Tensor) -> None:
    weights = random_weights(dream_shapes(DREAM))
    write_folder(tmp_path / "dream", DREAM, weights, num_shards=2)
    import_folder(tmp_path / "dream", tmp_path / "ours", ImportOptions())
    assert_parity(tmp_path / "ours", ids, dream_logits(DREAM, weights, ids))


ARMS: dict[str, dict[str, Any]] = {
    "llama": {"architecture": "llama"},
    "llama-biases": {"architecture": "llama", "attention_bias": True, "mlp_bias": True},
    "llama3-rope": {
        "architecture": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral": {"architecture": "mistral", "head_dim": 16},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3", "head_dim": 16},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ARMS)
def test_arm(tmp_path: Path, ids: torch.Tensor, kind: str, tied: bool) -> None:
    """In causal mode the imported weights give the source's logits, plus columns for the mask token."""
    source = make_arm(tmp_path / "arm", tied=tied, **ARMS[kind])
    import_folder(source, tmp_path / "ours", ImportOptions())
    original: Any = AutoModelForCausalLM.from_pretrained(source).eval()
    ours: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", is_causal=True).eval()
    with torch.no_grad():
        expected, logits = original(ids).logits, ours(ids).logits
    assert expected.std() > 0.1
    assert logits.shape[-1] == 128
    assert (logits[..., : SIZES["vocab_size"]] - expected).abs().max() <= TOLERANCE
    bidirectional: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        changed = (bidirectional(ids).logits - logits).abs().max()
    assert changed > 1e-2, "the import attends in both directions"


def test_diffullama_is_shifted_and_masks_with_token_811(tmp_path: Path, ids: torch.Tensor) -> None:
    source = make_arm(tmp_path / "llama", "llama", vocab_size=1000)
    make_tokenizer(source, 1000)
    facts = import_folder(source, tmp_path / "ours", ImportOptions(family="diffullama"))
    assert facts["logit shift"] is True and facts["mask token"].startswith("811 ")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert model.config.mdm["mask_token_id"] == 811
    with torch.no_grad():
        own = model(ids).logits
    # Its code compares logits[:-1] with x[1:], so the first position is free.
    shifted = mdm_logits(tmp_path / "ours", ids)
    assert (shifted[:, 1:] - own[:, :-1].log_softmax(-1)).abs().max() <= TOLERANCE
