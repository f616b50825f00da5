"""LLaDA: Llama's model with other names and another config.json, or Qwen2's where q, k and v have biases.

Checked against the forward pass of LLaDA's own modelling code: half-split RoPE, no padding of the vocabulary,
act(ff_proj(x)) * up_proj(x). The name `ff_out` has two meanings: in a block it is down_proj, at the top level
it is lm_head.
"""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from mdmscale.conversion.expressible import unexpressed_attention
from mdmscale.system.errors import UserError
from mdmscale.weights.tensor_source import TensorInfo
from mdmscale.weights.tensor_views import Part

TOP_NAMES = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}

# Every field of LLaDA's ModelConfig with its default, which holds where config.json leaves the field out.
# These are GPT-2's values, not LLaDA's.
DEFAULTS: dict[str, Any] = {
    "d_model": 768,
    "n_heads": 12,
    "n_kv_heads": None,
    "n_layers": 12,
    "mlp_ratio": 4,
    "mlp_hidden_size": None,
    "activation_type": "swiglu",
    "block_type": "sequential",
    "block_group_size": 1,
    "alibi": False,
    "alibi_bias_max": 8.0,
    "rope": False,
    "rope_full_precision": True,
    "flash_attention": False,
    "attention_dropout": 0.1,
    "multi_query_attention": None,
    "attention_layer_norm": False,
    "residual_dropout": 0.1,
    "embedding_dropout": 0.1,
    "input_emb_norm": False,
    "layer_norm_type": "default",
    "layer_norm_with_affine": True,
    "rms_norm_eps": 1e-5,
    "attention_layer_norm_with_affine": True,
    "max_sequence_length": 1024,
    "rope_theta": 10000.0,
    "include_qkv_bias": False,
    "include_bias": False,
    "bias_for_layer_norm": None,
    "scale_logits": False,
    "vocab_size": 50257,
    "embedding_size": 50304,
    "weight_tying": True,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
    "mask_token_id": 50256,
    "init_device": None,
    "init_fn": "normal",
    "init_std": 0.02,
    "init_cutoff_factor": None,
    "precision": None,
}
# Values that the architecture with the names above must have.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "block_group_size": (1,),
    "alibi": (False,),
    "rope": (True,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "include_bias": (False,),
    "bias_for_layer_norm": (False, None),
    "scale_logits": (False,),
}


def hf_config(values: dict[str, Any], where: Path) -> PretrainedConfig:
    """The Hugging Face config of the model that LLaDA's config.json `values` describes.

    Raises:
        UserError: naming every field whose value belongs to another architecture.
    """
    llada = {**DEFAULTS, **values}
    problems = [
        f"{where}: {name} = {llada[name]!r} is not supported, only {allowed[0]!r}"
        for name, allowed in REQUIRED.items()
        if llada[name] not in allowed
    ]
    if (llada["block_type"], llada["activation_type"]) not in (("llama", "silu"), ("sequential", "swiglu")):
        problems.append(
            f"{where}: block_type = {llada['block_type']!r} with activation_type = "
            f"{llada['activation_type']!r} is not supported, only llama with silu or sequential with swiglu"
        )
    if problems:
        raise UserError(*problems)
    heads = llada["n_heads"]
    mlp = llada["mlp_hidden_size"] or llada["mlp_ratio"] * llada["d_model"]
    return AutoConfig.for_model(
        "qwen2" if llada["include_qkv_bias"] else "llama",
        vocab_size=llada["embedding_size"] or llada["vocab_size"],
        hidden_size=llada["d_model"],
        # In a sequential block, ff_proj computes both halves of swiglu.
        intermediate_size=mlp // 2 if llada["block_type"] == "sequential" else mlp,
        num_hidden_layers=llada["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=llada["n_kv_heads"] or (1 if llada["multi_query_attention"] else heads),
        max_position_embeddings=llada["max_sequence_length"],
        rms_norm_eps=llada["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": float(llada["rope_theta"])},
        tie_word_embeddings=llada["weight_tying"],
        initializer_range=llada["init_std"],
        bos_token_id=None,  # the import settles the ids: a default of LLaDA's code says nothing of them
        eos_token_id=None,
        pad_token_id=None,
    )


def hf_parts(infos: dict[str, TensorInfo], config: PretrainedConfig, where: Path) -> dict[str, Part]:
    """The Hugging Face names, each with the LLaDA tensor, or part of one, that holds its weight.

    Raises:
        UserError: where LLaDA has no tensor of that name.
    """
    parts: dict[str, Part] = {}
    for name in infos:
        parts |= _hf_parts_of(name, infos, config, where)
    return parts


def _hf_parts_of(
    name: str, infos: dict[str, TensorInfo], config: PretrainedConfig, where: Path
) -> dict[str, Part]:
    match = re.fullmatch(r"((?:model\.)?transformer\.)(?:blocks\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        raise UserError(f"{where}: {name} is not a weight of a LLaDA model")
    root, layer, module, kind = match.groups()
    if layer is None:
        if module not in TOP_NAMES:
            raise UserError(f"{where}: {name} is not a weight of a LLaDA model")
        return {f"{TOP_NAMES[module]}.{kind}": Part(name)}
    prefix = f"model.layers.{layer}"
    if module == "att_proj":
        return _split(name, prefix, kind, ("q_proj", "k_proj", "v_proj"), _attention_rows(config))
    if module == "ff_proj" and f"{root}blocks.{layer}.up_proj.{kind}" not in infos:
        # LLaDA's swiglu splits into (x, gate) and returns silu(gate) * x.
        return _split(name, prefix, kind, ("up_proj", "ff_proj"), [config.intermediate_size] * 2)
    if module not in BLOCK_NAMES:
        raise UserError(f"{where}: {name} is not a weight of a LLaDA model")
    return {f"{prefix}.{BLOCK_NAMES[module]}.{kind}": Part(name)}


def _split(name: str, prefix: str, kind: str, modules: tuple[str, ...], rows: list[int]) -> dict[str, Part]:
    parts, start = {}, 0
    for module, num_rows in zip(modules, rows, strict=True):
        parts[f"{prefix}.{BLOCK_NAMES[module]}.{kind}"] = Part(name, start, start + num_rows)
        start += num_rows
    return parts


def _attention_rows(config: PretrainedConfig) -> list[int]:
    head_dim = config.hidden_size // config.num_attention_heads
    groups = config.num_key_value_heads * head_dim
    return [config.hidden_size, groups, groups]


def llada_parts(infos: dict[str, TensorInfo]) -> dict[str, Part]:
    """LLaDA's names, each with the tensor of `infos` that holds its weight."""
    top = {ours: theirs for theirs, ours in TOP_NAMES.items()}
    block = {ours: theirs for theirs, ours in BLOCK_NAMES.items()}
    parts = {}
    for name in infos:
        stem, kind = name.rsplit(".", 1)
        if stem in top:
            theirs = top[stem]
        else:
            _, _, layer, module = stem.split(".", 3)
            theirs = f"blocks.{layer}.{block[module]}"
        parts[f"model.transformer.{theirs}.{kind}"] = Part(name)
    return parts


def unexpressed(config: PretrainedConfig) -> list[str]:
    """What LLaDA's code cannot express of a model, one line for each field."""
    problems = unexpressed_attention(config, "LLaDA's code")
    if config.model_type not in ("llama", "mistral", "qwen2"):
        problems.append(f"LLaDA's code lacks parts of a {config.model_type} model")
    if config.hidden_act != "silu":
        problems.append(f"hidden_act = {config.hidden_act!r} is not silu, as LLaDA's models have it")
    if (rope_type := config.rope_parameters.get("rope_type", "default")) != "default":
        problems.append(f"rope_type = {rope_type!r} is not supported by LLaDA's code")
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            problems.append(f"{name}: biases beyond those of q, k and v are not supported by LLaDA's code")
    return problems


def llada_config(config: PretrainedConfig, mask_token_id: int) -> dict[str, Any]:
    """config.json for LLaDA's own code. It names every field, as the defaults are not LLaDA's values."""
    rope = config.rope_parameters
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return {
        "architectures": ["LLaDAModelLM"],
        "auto_map": {
            "AutoConfig": "configuration_llada.LLaDAConfig",
            "AutoModel": "modeling_llada.LLaDAModelLM",
            "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
        },
        "model_type": "llada",
        "use_cache": False,
        **DEFAULTS,
        "d_model": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "mlp_hidden_size": config.intermediate_size,
        "activation_type": "silu",
        "block_type": "llama",
        "rope": True,
        "attention_dropout": config.attention_dropout,
        "residual_dropout": 0.0,
        "embedding_dropout": 0.0,
        "layer_norm_type": "rms",
        "rms_norm_eps": config.rms_norm_eps,
        "max_sequence_length": config.max_position_embeddings,
        "rope_theta": rope["rope_theta"],
        "include_qkv_bias": config.model_type == "qwen2",
        "bias_for_layer_norm": False,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        "weight_tying": config.tie_word_embeddings,
        "eos_token_id": eos,
        "pad_token_id": eos if config.pad_token_id is None else config.pad_token_id,
        "mask_token_id": mask_token_id,
        "init_fn": "mitchell",
        "init_std": config.initializer_range,
    }
