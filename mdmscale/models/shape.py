"""The sizes of a llama-like model, from the architecture keys or a Hugging Face config. Needs no torch.

Legend: hidden = hidden_size, the width of the residual stream; inner = intermediate_size, the width of the
MLP; query, key = the width of all query heads together, and of all key heads together.
"""

from dataclasses import dataclass
from typing import Any

from mdmscale.config.model import LoraSection, ModelSection

# Embedding rows and MLP widths are rounded up to a multiple of it: matrix products are faster with round
# sizes, and tensor parallelism needs sizes that divide.
ROW_MULTIPLE = 64
HEAD_LOGITS = 1 << 27  # in a chunk of the head


@dataclass(frozen=True)
class ModelShape:
    """A llama-like decoder."""

    family: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    is_tied: bool
    has_biases: bool = False  # config.json's attention_bias; qwen2 has biases in q, k and v without it

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        return self.key_heads * self.head_dim

    @property
    def has_head_norms(self) -> bool:
        return self.family == "qwen3"

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer: name -> (inputs, outputs)."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key),
            "v_proj": (self.hidden, self.key),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def layer_matrices(self) -> int:
        """Elements of a layer's matrices, from which its FLOPs are counted."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_vectors(self) -> int:
        """Elements of a layer's norms and biases."""
        biases = self.query + 2 * self.key if self.has_biases or self.family == "qwen2" else 0
        output_bias = self.hidden if self.has_biases and self.family != "qwen2" else 0
        head_norms = 2 * self.head_dim if self.has_head_norms else 0
        return 2 * self.hidden + biases + output_bias + head_norms

    @property
    def embedding(self) -> int:
        """Elements of the input embedding; the head has the same number."""
        return self.vocab * self.hidden

    @property
    def num_parameters(self) -> int:
        """All parameters; a tied head counts once."""
        layers = self.layers * (self.layer_matrices + self.layer_vectors)
        return layers + self.embedding * (1 if self.is_tied else 2) + self.hidden

    def num_adapters(self, lora: LoraSection) -> int:
        """Parameters of LoRA's adapters."""
        targets = self.linears if lora.target_modules is None else lora.target_modules
        sizes = (sum(self.linears[name]) for name in targets if name in self.linears)
        return self.layers * lora.rank * sum(sizes)


def shape_of_keys(options: ModelSection, vocab_size: int) -> ModelShape:
    """The shape that the keys of `model` describe, with the defaults for a model trained from scratch."""
    hidden, layers, heads = options.hidden_size, options.num_hidden_layers, options.num_attention_heads
    assert hidden and layers and heads
    return ModelShape(
        family=options.architecture,
        vocab=vocab_size,
        hidden=hidden,
        inner=options.intermediate_size or round_up(hidden * 8 // 3, ROW_MULTIPLE),
        layers=layers,
        heads=heads,
        key_heads=options.num_key_value_heads or heads,
        head_dim=options.head_dim or hidden // heads,
        is_tied=options.tie_word_embeddings,
    )


def shape_of_config(config: Any) -> ModelShape:
    """The shape of a Hugging Face config."""
    return ModelShape(
        family=config.model_type,
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        is_tied=config.tie_word_embeddings,
        has_biases=getattr(config, "attention_bias", False),
    )


def indivisible(shape: ModelShape, tensor: int, sequence: int) -> list[str]:
    """One problem for each size of a model that does not divide among the ranks that share it."""
    sizes = (
        ("num_attention_heads", shape.heads, tensor * sequence),
        ("num_key_value_heads", shape.key_heads, tensor),
        ("intermediate_size", shape.inner, tensor),
        ("vocab_size", shape.vocab, tensor),
    )
    return [
        f"parallel.tensor = {tensor}"
        + (f" x parallel.sequence = {sequence}" if ranks != tensor else "")
        + f" does not divide the model's {name} = {size}; choose a divisor"
        for name, size, ranks in sizes
        if size % ranks
    ]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def head_chunk(vocab: int) -> int:
    """How many masked positions the head projects to `vocab` rows at a time: half a GiB of fp32 logits.

    This is enough for matrix products at full speed, and small beside the gradient of a large head.
    """
    return max(1, HEAD_LOGITS // vocab)
