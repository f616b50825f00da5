"""Tiny GGUF files of models with random weights, written as llama.cpp's converter writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WORDS = [
    "barn",
    "cat",
    "don't",
    "hats",
    "kettle",
    "lantern",
    "meadow",
    "orchard",
    "pebble",
    "quill",
    "they'll",
]
TEXT = [f"Line {n}:\n\n{n}. the {WORDS[n % 11]}'s 12  {WORDS[n % 7]} it\n" for n in range(300)]
SPECIALS = ["<|none|>", "<|start|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def split_digits() -> Any:
    """SmolLM's rule: each digit is a word of its own, the rest goes by GPT-2's rule."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def byte_level_tokenizer(pre_tokenizer: Any) -> Tokenizer:
    """A byte-level BPE tokenizer trained on TEXT, which SPECIALS begin."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def byte_level_fields(tokenizer: Tokenizer, pre: str, num_unused: int = 0) -> dict[str, Any]:
    """What a GGUF file says about a byte-level tokenizer, with `num_unused` names for spare rows."""
    words = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    tokens += [f"[PAD{len(tokens) + number}]" for number in range(num_unused)]
    types = [TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL for token in tokens]
    types[len(tokens) - num_unused :] = [TokenType.UNUSED] * num_unused
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": list(map(int, types)),
        "merges": [" ".join(merge) for merge in words["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 0,
        "add_bos_token": False,
        "chat_template": TEMPLATE,
    }


def make_model(model_type: str, vocab_size: int, **changes: Any) -> PreTrainedModel:
    """A causal model with random weights, biases and norms."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
    config = AutoConfig.for_model(model_type, vocab_size=vocab_size, **{**sizes, **heads, **changes})
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + ("norm" in name))
    return model


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: dict[str, Any],
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    quantised: bool = False,
) -> Path:
    """Write the model. `more` are further keys, None to leave one out; `tensors` are further tensors."""
    config = model.config
    name = config.model_type
    fields = {
        f"{name}.context_length": config.max_position_embeddings,
        f"{name}.embedding_length": config.hidden_size,
        f"{name}.block_count": config.num_hidden_layers,
        f"{name}.feed_forward_length": config.intermediate_size,
        f"{name}.attention.head_count": config.num_attention_heads,
        f"{name}.attention.head_count_kv": config.num_key_value_heads,
        f"{name}.attention.key_length": 8,
        f"{name}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{name}.rope.dimension_count": 8,
        f"{name}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{name}.vocab_size": config.vocab_size,
        **{f"tokenizer.{_key(key)}": value for key, value in tokenizer.items()},
        **(more or {}),
    }
    architecture = fields.pop("general.architecture", name)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in fields.items():
        if value is not None:
            _add_field(writer, key, value)
    for key, weight in {**_stored(model), **(tensors or {})}.items():
        if quantised and weight.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _key(name: str) -> str:
    return name if name == "chat_template" else f"ggml.{name}"


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _stored(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names. Its llama code wants q and k in another order of rows."""
    config = model.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    stored = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        weight = parameter.detach().numpy()
        if config.model_type == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
            weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        stored[f"{names.get_name(module)}.{kind}"] = weight
    return stored
