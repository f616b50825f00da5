"""Dream: Qwen2's weights with Dream's own config.json, and predictions shifted by one position."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mdmscale.conversion.expressible import unexpressed_attention
from mdmscale.system.errors import UserError
from mdmscale.weights.tensor_source import TensorInfo

# Fields with the same meaning in Dream's and in Qwen2's config.json.
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# Values for fields that config.json leaves out, as in DreamConfig. It never leaves out the sizes.
DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu"}


def hf_config(values: dict[str, Any], infos: dict[str, TensorInfo], where: Path) -> PretrainedConfig:
    """The same model's Qwen2 config, or its Llama config where the weights have no biases.

    Raises:
        UserError: where config.json lacks a size.
    """
    dream = {**DEFAULTS, **values}
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [name for name in sizes if name not in dream]:
        raise UserError(f"{where}: has no {missing[0]}")
    has_biases = "model.layers.0.self_attn.q_proj.bias" in infos
    scaling = dict(dream.get("rope_scaling") or {})
    rope_type = scaling.pop("type", None) or scaling.pop("rope_type", "default")
    rope = {**scaling, "rope_type": rope_type, "rope_theta": float(dream["rope_theta"])}
    return AutoConfig.for_model(
        "qwen2" if has_biases else "llama",
        **{name: dream[name] for name in SHARED if name in dream},
        rope_parameters=rope,
    )


def unexpressed(config: PretrainedConfig) -> list[str]:
    """What Dream's code cannot express of a model, one line for each field."""
    problems = unexpressed_attention(config, "Dream's code")
    if config.model_type != "qwen2":
        problems.append(f"it is a {config.model_type} model, and Dream's code needs the biases of qwen2")
    return problems


def dream_config(config: PretrainedConfig, mask_token_id: int) -> dict[str, Any]:
    """config.json for Dream's own code."""
    rope = dict(config.rope_parameters)
    theta, rope_type = rope.pop("rope_theta"), rope.get("rope_type", "default")
    return {
        "architectures": ["DreamModel"],
        "auto_map": {
            "AutoConfig": "configuration_dream.DreamConfig",
            "AutoModel": "modeling_dream.DreamModel",
        },
        "model_type": "Dream",
        **{name: getattr(config, name) for name in SHARED},
        "rope_theta": theta,
        "rope_scaling": None if rope_type == "default" else rope,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
        "use_cache": False,
        "mask_token_id": mask_token_id,
    }
