"""The sizes of a model that a plan needs, from the architecture keys alone: no weights, no torch.

Legend: hidden = width of the residual stream; query, key = widths of all query and all key heads; inner =
width of the MLP.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.config import LoraSection, ModelSection


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
    has_biases: bool = False  # config.json's attention_bias; qwen2 has some anyway

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
        """Elements of a layer's matrices, which is what its multiplications are counted from."""
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
        """Elements of the input embedding; the head has as many."""
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


def planned_shape(options: ModelSection) -> tuple[ModelShape, str]:
    """The model's shape, and a note on where it is from.

    A model.path that is no folder here is planned from the architecture keys where they are given, else
    looked up on the hub. A tokenizer is opened only where it decides the vocabulary.

    Raises:
        UserError: for a folder that is no model's, or that differs from the keys.
    """
    keys = (options.vocab_size, options.hidden_size, options.num_hidden_layers, options.num_attention_heads)
    if all(keys) and (options.path is None or not Path(options.path).is_dir()):
        note = "" if options.path is None else f" (from the architecture keys, {options.path} not being here)"
        return shape_of_keys(options), note
    from mdmscale.models.backbone import model_config, num_scratch_tokens, run_tokenizer  # imports torch

    num_tokens = num_scratch_tokens(run_tokenizer(options)) if options.path is None else 0
    return shape_of_config(model_config(options, num_tokens)), ""


def shape_of_keys(options: ModelSection) -> ModelShape:
    """The shape that the keys of `model` describe, with the defaults of a model from scratch."""
    vocab, hidden, layers = options.vocab_size, options.hidden_size, options.num_hidden_layers
    heads = options.num_attention_heads
    assert vocab and hidden and layers and heads
    return ModelShape(
        family=options.architecture,
        vocab=vocab,
        hidden=hidden,
        inner=options.intermediate_size or -(-(hidden * 8 // 3) // 64) * 64,
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
