"""The `model` section: what is trained, how it starts, and how its layers compute."""

from typing import Literal, Self

from pydantic import model_validator

from mdmscale.config.section import DType, HeadKind, Recomputation, Section, key


class LoraSection(Section):
    rank: int = key(16, "rank of each adapter", ge=1)
    alpha: int = key(32, "adapters are scaled by alpha / rank", ge=1)
    target_modules: list[str] | None = key(
        None,
        "names of the linear layers that get an adapter, such as q_proj; null: all except the head",
        min_length=1,
    )


class ModelSection(Section):
    path: str | None = key(None, "HF model folder or hub id to start from; null: train from scratch")
    tokenizer: str | None = key(None, "tokenizer folder or hub id; null: the tokenizer of model.path")
    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = key(
        "llama", "decoder family of a model from scratch"
    )
    vocab_size: int | None = key(
        None, "rows of the embedding; null: the tokenizer's size, rounded up to a multiple of 64", ge=2
    )
    hidden_size: int | None = key(None, "width of the residual stream", ge=1)
    intermediate_size: int | None = key(
        None, "width of the MLP; null: 8/3 of hidden_size, rounded up to a multiple of 64", ge=1
    )
    num_hidden_layers: int | None = key(None, "number of decoder layers", ge=1)
    num_attention_heads: int | None = key(None, "number of query heads", ge=1)
    num_key_value_heads: int | None = key(
        None, "number of key/value heads; null: the same as num_attention_heads", ge=1
    )
    head_dim: int | None = key(None, "width of a head; null: hidden_size / num_attention_heads", ge=1)
    max_position_embeddings: int = key(4096, "longest sequence that the model supports, in tokens", ge=1)
    rope_theta: float = key(10000.0, "base of the rotary position embedding", gt=0)
    rms_norm_eps: float = key(1e-5, "epsilon of RMSNorm", gt=0)
    tie_word_embeddings: bool = key(False, "use one matrix for input and output embeddings")
    initializer_range: float = key(
        0.02, "standard deviation of initial weights; small models train better with a larger one", gt=0
    )
    dtype: DType = key("bf16", "type of weights and activations; bf16 keeps fp32 master weights")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = key("sdpa", "attention implementation")
    logit_shift: bool | None = key(
        None,
        "predict position i from hidden state i-1, as Dream does; null: as the mdm section of model.path's "
        "config.json says (a folder without one is refused), false from scratch",
    )
    mask_token_id: int | None = key(
        None,
        "id of the mask token; null: the model's or the tokenizer's, or a new token if neither has one",
        ge=0,
    )
    activation_checkpointing: Recomputation = key(
        "none",
        "what backward recomputes instead of storing it: none; selective, all except the outputs of matrix "
        "products and attention; or full, whole layers. true means full, false none",
    )
    compile: bool = key(
        False, "compile the decoder layers with torch.compile; takes minutes at start, then speeds up steps"
    )
    head: HeadKind = key(
        "auto",
        "how the head computes loss and gradient of a chunk of logits: chunked, operation by operation; "
        "fused, in two kernels of torch.compile; or auto, fused on CUDA and chunked elsewhere",
    )
    head_chunk_size: int | None = key(
        None, "masked positions projected to the vocabulary at a time; null: as many as fit in 0.5 GiB", ge=1
    )

    attention_annealing_steps: int = key(
        0,
        "steps over which a causal model's attention opens to later positions; 0: all are open at once",
        ge=0,
    )
    lora: LoraSection | None = key(
        None, "train low-rank adapters and freeze the weights of model.path; null: train all weights"
    )

    @model_validator(mode="after")
    def _options_fit_the_start(self) -> Self:
        if self.lora is not None and self.path is None:
            raise ValueError("lora is set but path is null; adapters need a trained model to start from")
        if self.attention_annealing_steps and self.attention == "flash_attention_2":
            raise ValueError(
                f"attention_annealing_steps = {self.attention_annealing_steps} needs a mask over pairs of "
                "positions, which flash_attention_2 does not support; set attention to sdpa"
            )
        if self.activation_checkpointing == "selective" and self.attention == "flash_attention_2":
            raise ValueError(
                "activation_checkpointing = selective does not recognise the operation of flash_attention_2 "
                "and would recompute it; set attention to sdpa, or activation_checkpointing to full"
            )
        return self

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> Self:
        if self.path is None:
            needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tokenizer")
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a model from scratch (model.path: null) also needs {', '.join(missing)}")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads and groups and heads % groups:
            raise ValueError(
                f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"
            )
        if heads and self.hidden_size and self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = {heads}"
            )
        return self
