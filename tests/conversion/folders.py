"""Tiny model folders of every family with random weights, as the family's own code writes them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 100
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLADA = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 48,
    "activation_type": "silu",
    "block_type": "llama",
    "rope": True,
    "rope_theta": 500000.0,
    "layer_norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "max_sequence_length": 64,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
    "weight_tying": False,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "mask_token_id": 97,
}
DREAM = {
    "model_type": "Dream",
    "architectures": ["DreamModel"],
    **SIZES,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "mask_token_id": 98,
    "pad_token_id": 1,
}
Weights = dict[str, torch.Tensor]


def make_tokenizer(folder: Path, num_tokens: int = VOCAB, reserved: tuple[str, ...] = ()) -> None:
    """A tokenizer of `num_tokens` words. The last `reserved` ones are special tokens."""
    words = {f"word{number}": number for number in range(num_tokens - len(reserved))}
    words["</s>"] = words.pop("word1")
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(reserved))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)


def random_weights(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Weights:
    """Random weights with which every layer matters: norms near 1, all others with deviation 0.2."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) * 0.2 + ("norm" in name or "ln_f" in name)).to(dtype)
        for name, shape in shapes.items()
    }


def llada_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """LLaDA's own names and shapes, in the llama block or with fused projections in the sequential one."""
    width, mlp, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    groups = width // config["n_heads"] * config["n_kv_heads"]
    root = "model.transformer"
    shapes: dict[str, tuple[int, ...]] = {f"{root}.wte.weight": (rows, width)}
    for layer in range(config["n_layers"]):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "ff_norm": (width,),
            "attn_out": (width, width),
        }
        if config["block_type"] == "sequential":
            block |= {
                "att_proj": (width + 2 * groups, width),
                "ff_proj": (mlp, width),
                "ff_out": (width, mlp // 2),
            }
        else:
            block |= {"q_proj": (width, width), "k_proj": (groups, width), "v_proj": (groups, width)}
            block |= {"ff_proj": (mlp, width), "up_proj": (mlp, width), "ff_out": (width, mlp)}
        shapes |= {f"{root}.blocks.{layer}.{module}.weight": shape for module, shape in block.items()}
    shapes[f"{root}.ln_f.weight"] = (width,)
    if not config["weight_tying"]:
        shapes[f"{root}.ff_out.weight"] = (rows, width)
    return shapes


def write_folder(
    folder: Path,
    config: dict[str, Any],
    weights: Weights,
    file_format: str = "safetensors",
    num_shards: int = 1,
) -> Path:
    """Write config.json and weights as `safetensors` or `bin`. Several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, ending = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[file_format]
    save: Callable[[Weights, Path], None] = save_file if file_format == "safetensors" else torch.save
    if num_shards == 1:
        save(weights, folder / f"{stem}.{ending}")
        return folder
    weight_map = {}
    for number in range(num_shards):
        file_name = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{ending}"
        shard = dict(list(weights.items())[number::num_shards])
        save(shard, folder / file_name)
        weight_map |= dict.fromkeys(shard, file_name)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def read_weights(folder: Path) -> Weights:
    """All tensors in a folder of safetensors files."""
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_bytes(left: Weights, right: Weights) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


def make_arm(folder: Path, architecture: str, tied: bool = False, **values: Any) -> Path:
    """An autoregressive model as transformers saves it, with a tokenizer of exactly its vocabulary size."""
    config = AutoConfig.for_model(architecture, **{**SIZES, "tie_word_embeddings": tied, **values})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def dream_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Dream's names and shapes."""
    width, mlp, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    groups = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for layer in range(config["num_hidden_layers"]):
        root = f"model.layers.{layer}"
        for side, size in (("q", width), ("k", groups), ("v", groups)):
            shapes[f"{root}.self_attn.{side}_proj.weight"] = (size, width)
            shapes[f"{root}.self_attn.{side}_proj.bias"] = (size,)
        shapes[f"{root}.self_attn.o_proj.weight"] = (width, width)
        for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp))):
            shapes[f"{root}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{root}.{name}.weight"] = (width,)
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (rows, width)}
