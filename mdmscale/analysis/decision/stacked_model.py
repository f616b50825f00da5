"""Many small models of one shape, stacked in one: every parameter has a leading dimension of lanes.

A step of a small model on a CPU is mostly overhead: of Python, of the launch of operations, of the optimizer.
Lanes (one for each seed or learning rate of a study) share it. No lane ever sees another one: its loss, its
gradient and its steps are those of a model of its own, to rounding.

The architecture is Hugging Face's Llama with tied embeddings, without grouped heads and biases.

Legend: lanes; rows = forward rows of a lane; length = tokens of a row; width = hidden size.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from mdmscale.diffusion.uniforms import Stream, generator


@dataclass(frozen=True)
class ModelShape:
    """The sizes of one lane's model. vocab_size counts the mask token, which has the highest id."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    rope_theta: float = 1000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.05

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size - 1

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """The names and shapes of the layers' matrices, which have weight decay."""
        width, inner = self.hidden_size, self.intermediate_size
        for layer in range(self.num_layers):
            yield f"{layer}.qkv", (3 * width, width)
            yield f"{layer}.out", (width, width)
            yield f"{layer}.gate_up", (2 * inner, width)
            yield f"{layer}.down", (width, inner)

    def others(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and shapes of embeddings and norms, which have no weight decay."""
        yield "embedding", (self.vocab_size, self.hidden_size)
        for layer in range(self.num_layers):
            yield f"{layer}.attention_norm", (self.hidden_size,)
            yield f"{layer}.mlp_norm", (self.hidden_size,)
        yield "norm", (self.hidden_size,)

    @property
    def num_decayed(self) -> int:
        """Parameters of the matrices. They come first in a lane's parameters."""
        return sum(math.prod(shape) for _, shape in self.matrices())

    @property
    def num_parameters(self) -> int:
        """Parameters of one lane."""
        return self.num_decayed + sum(math.prod(shape) for _, shape in self.others())


class StackedModel:
    """The models of all lanes.

    values, gradients: float32 [lanes, parameters], in which each named parameter is a view.
    """

    def __init__(self, shape: ModelShape, values: torch.Tensor) -> None:
        assert values.shape[1] == shape.num_parameters, (values.shape, shape.num_parameters)
        self.shape = shape
        self.values = values.contiguous()
        self.gradients = torch.zeros_like(self.values)
        self.parameters: dict[str, torch.Tensor] = {}  # [lanes, *shape] each, leaves of autograd
        first = 0
        for name, size in [*shape.matrices(), *shape.others()]:
            end = first + math.prod(size)
            leaf = self.values[:, first:end].unflatten(1, size).detach().requires_grad_()
            self.parameters[name] = leaf
            first = end
        self._rotations: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def set_gradients(self, loss: torch.Tensor) -> None:
        """Fill `gradients` with those of `loss`, the sum of the lanes' losses."""
        found = torch.autograd.grad(loss, list(self.parameters.values()))
        torch.cat([gradient.flatten(1) for gradient in found], dim=1, out=self.gradients)

    @property
    def num_lanes(self) -> int:
        return len(self.values)

    @classmethod
    def fresh(cls, shape: ModelShape, seeds: Sequence[int]) -> "StackedModel":
        """New models, each a function of its lane's seed: normal matrices and embeddings, norms of one."""
        return cls(shape, torch.stack([initial_values(shape, seed) for seed in seeds]))

    def logits(self, token_ids: torch.Tensor, first: int = 0, is_causal: bool = False) -> torch.Tensor:
        """The logits of positions `first` and later of every row.

        Args:
            token_ids: int64 [lanes, rows, length].
            is_causal: positions attend to earlier ones only.

        Returns:
            float32 [lanes, rows, length - first, vocab].
        """
        lanes, rows, length = token_ids.shape
        weights, width = self.parameters, self.shape.hidden_size
        offsets = torch.arange(lanes).view(-1, 1, 1) * self.shape.vocab_size
        embedding = weights["embedding"]  # [lanes, vocab, width]
        hidden = F.embedding((token_ids + offsets).view(lanes, -1), embedding.flatten(0, 1))
        for layer in range(self.shape.num_layers):
            normed = self._norm(hidden, f"{layer}.attention_norm")
            hidden = hidden + self._attention(normed, layer, rows, length, is_causal)
            normed = self._norm(hidden, f"{layer}.mlp_norm")
            gate, up = _linear(normed, weights[f"{layer}.gate_up"]).chunk(2, dim=-1)
            hidden = hidden + _linear(F.silu(gate) * up, weights[f"{layer}.down"])
        wanted = hidden.view(lanes, rows, length, width)[:, :, first:].flatten(1, 2)
        return _linear(self._norm(wanted, "norm"), embedding).view(lanes, rows, length - first, -1)

    def _attention(
        self, hidden: torch.Tensor, layer: int, rows: int, length: int, is_causal: bool
    ) -> torch.Tensor:
        lanes, heads = len(hidden), self.shape.num_heads
        qkv = _linear(hidden, self.parameters[f"{layer}.qkv"]).view(lanes * rows, length, 3, heads, -1)
        qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, lanes * rows, heads, length, head]
        query, key = self._rotated(qkv[:2])
        mixed = F.scaled_dot_product_attention(query, key, qkv[2], is_causal=is_causal)
        mixed = mixed.transpose(1, 2).reshape(lanes, rows * length, -1)
        return _linear(mixed, self.parameters[f"{layer}.out"])

    def _norm(self, hidden: torch.Tensor, name: str) -> torch.Tensor:
        eps = self.shape.rms_norm_eps
        return F.rms_norm(hidden, hidden.shape[-1:], eps=eps) * self.parameters[name][:, None]

    def _rotated(self, heads: torch.Tensor) -> torch.Tensor:
        """Queries and keys [..., length, head] with rotary position embeddings."""
        cosine, sine = self._rotation(heads.shape[-2])
        return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, dims=-1), sine)

    def _rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the rotation, float32 [length, head] each; the first sines are negative.

        With the sign there, the other half of a head only has to move: (-x2, x1) sin = (x2, x1) (-sin, sin).
        """
        if length not in self._rotations:
            head = self.shape.hidden_size // self.shape.num_heads
            frequencies = self.shape.rope_theta ** (-torch.arange(0, head, 2) / head)
            angles = torch.arange(length)[:, None] * frequencies  # [length, head / 2]
            sines = torch.cat([-angles.sin(), angles.sin()], dim=1)
            self._rotations[length] = angles.cos().repeat(1, 2), sines
        return self._rotations[length]


def initial_values(shape: ModelShape, seed: int) -> torch.Tensor:
    """The parameters of a new model, float32 [parameters]."""
    draws = generator(seed, Stream.INITIAL_WEIGHTS, 0)
    parts = []
    for name, size in [*shape.matrices(), *shape.others()]:
        is_norm = name.endswith("norm")
        values = torch.ones(size) if is_norm else torch.from_numpy(draws.standard_normal(size)).float()
        parts.append((values if is_norm else values * shape.initializer_range).flatten())
    return torch.cat(parts)


def _linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """inputs [lanes, tokens, in] through weight [lanes, out, in]."""
    return torch.bmm(inputs, weight.transpose(1, 2))
