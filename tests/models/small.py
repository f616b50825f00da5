"""A small masked diffusion model, and batches for it in every layout of training."""

from pathlib import Path
from typing import Any

import torch

from mdmscale.config.model import ModelSection
from mdmscale.models.annealing import annealed_mask, visible_positions
from mdmscale.models.backbone import build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import attend_in_rows

LAYOUTS = ("plain", "padded", "annealed", "packed", "packed and annealed")


def small_model(corpus: Path, layout: str = "plain", **options: Any) -> MaskedDiffusionModel:
    """A model in training mode for batches of `layout`. The same options give the same model."""
    keys: dict[str, Any] = {
        "tokenizer": str(corpus / "tokenizer"),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "dtype": "fp32",
        "initializer_range": 0.3,
    }
    backbone = build_backbone(ModelSection(**keys | options), 1e-3, seed=0)
    if layout.startswith("packed"):
        attend_in_rows(backbone.model)
    return MaskedDiffusionModel(backbone.model, head_chunk_size=16).train()


def small_batch(layout: str, lengths: tuple[int, ...]) -> dict[str, Any]:
    """The arguments of a forward, for rows of `lengths` in which every third token is masked."""
    rows, longest = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(sum(lengths))
    pairs = visible_positions(0, 1, 4, longest)
    places = torch.arange(longest)
    is_token = places < torch.tensor(lengths)[:, None]  # [rows, longest]
    batch: dict[str, Any] = {"attention_mask": None}
    if layout.startswith("packed"):
        batch |= {"position_ids": places.expand(rows, -1)[is_token][None], "row_lengths": lengths}
        if "annealed" in layout:
            batch["attention_mask"] = torch.from_numpy(pairs)[None, None]
        shape, positions = (1, sum(lengths)), torch.arange(0, sum(lengths), 3)
    else:
        if layout == "padded":
            batch["attention_mask"] = is_token.long()
        elif layout == "annealed":
            batch["attention_mask"] = annealed_mask(is_token.long(), pairs, rows, longest)
        shape, positions = (rows, longest), is_token.flatten().nonzero().flatten()[::3]
    token_ids = torch.randint(5, 500, shape, generator=generator)
    return batch | {
        "input_ids": token_ids,
        "positions": positions,
        "targets": token_ids.flatten()[positions],
        "weights": torch.rand(len(positions), generator=generator),
    }


def loss_and_gradients(model: MaskedDiffusionModel, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The loss of a batch and the gradient of each trained parameter, by its name."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return {"loss": loss.detach()} | {name: each.grad for name, each in trained.items()}  # type: ignore[dict-item]


def assert_same(mine: dict[str, torch.Tensor], twin: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare tensors, each to `tolerance` relative to its largest element."""
    assert mine.keys() == twin.keys()
    for name, value in twin.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(mine[name], value, rtol=0, atol=tolerance * scale, msg=name)
