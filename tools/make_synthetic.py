#!/usr/bin/env python
"""Write a large LLaDA-named checkpoint of random bf16 weights, to measure conversions with.

python tools/make_synthetic.py FOLDER --layers 7 --width 4096
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--layers", type=int, default=7, help="decoder layers (default: 7)")
    parser.add_argument("--width", type=int, default=4096, help="hidden size (default: 4096)")
    parser.add_argument("--mlp", type=int, default=12288, help="intermediate size (default: 12288)")
    parser.add_argument("--vocab", type=int, default=32768, help="vocabulary (default: 32768)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    write_config(arguments)
    width, mlp, root = arguments.width, arguments.mlp, "model.transformer"
    shards: list[dict[str, tuple[int, ...]]] = [{f"{root}.wte.weight": (arguments.vocab, width)}]
    for layer in range(arguments.layers):
        block: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ff_norm": (width,)}
        block |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (width, width))
        block |= {"ff_proj": (mlp, width), "up_proj": (mlp, width), "ff_out": (width, mlp)}
        shards.append({f"{root}.blocks.{layer}.{name}.weight": shape for name, shape in block.items()})
    shards.append({f"{root}.ln_f.weight": (width,), f"{root}.ff_out.weight": (arguments.vocab, width)})
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights = {
            key: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02) for key, shape in shapes.items()
        }
        save_file(weights, arguments.folder / name)
        weight_map |= dict.fromkeys(weights, name)
    index = {"weight_map": weight_map}
    (arguments.folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_config(arguments: argparse.Namespace) -> None:
    config = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "d_model": arguments.width,
        "n_heads": arguments.width // 128,
        "n_layers": arguments.layers,
        "mlp_hidden_size": arguments.mlp,
        "activation_type": "silu",
        "block_type": "llama",
        "rope": True,
        "rope_theta": 500000.0,
        "layer_norm_type": "rms",
        "max_sequence_length": 4096,
        "vocab_size": arguments.vocab,
        "embedding_size": arguments.vocab,
        "weight_tying": False,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "mask_token_id": arguments.vocab - 1,
    }
    (arguments.folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
