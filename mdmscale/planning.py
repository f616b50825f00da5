"""What a config asks of a machine before anything runs: batch arithmetic, parameters, estimate of memory."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PretrainedConfig

from mdmscale.config import LoraSection, ModelSection, RunConfig
from mdmscale.config_loading import dump_config
from mdmscale.layout import BatchLayout
from mdmscale.models.backbone import (
    model_config,
    num_scratch_tokens,
    run_tokenizer,
    scratch_config,
)
from mdmscale.models.lora import add_lora

GIB = 2**30


def print_plan(config: RunConfig, layout: BatchLayout) -> None:
    """Print the resolved config, the batch arithmetic, the parameter count and the estimate of memory."""
    print(dump_config(config))
    console = Console()
    console.print(_batch_table(config, layout))
    hf_config, note = planned_model_config(config.model)
    num_parameters, num_trained = count_parameters(hf_config, config.model.lora)
    trained = f", {num_trained:,} of them trained" if num_trained < num_parameters else ""
    console.print(f"\nmodel: {num_parameters:,} parameters{trained}{note}\n", highlight=False)
    console.print(_memory_table(estimate_memory(config, layout, hf_config, num_parameters, num_trained)))


def planned_model_config(options: ModelSection) -> tuple[PretrainedConfig, str]:
    """The model's Hugging Face config, and a note on where it is from.

    A model.path that is no folder here is planned from the architecture keys where they are given, else
    looked up on the hub. A tokenizer is opened only where it decides the vocabulary.
    """
    keys = (options.vocab_size, options.hidden_size, options.num_hidden_layers, options.num_attention_heads)
    if options.path is not None and all(keys) and not Path(options.path).is_dir():
        return scratch_config(options, 0), f" (from the architecture keys, {options.path} not being here)"
    if options.path is not None or options.vocab_size is not None:
        return model_config(options, 0), ""
    return model_config(options, num_scratch_tokens(run_tokenizer(options))), ""


def count_parameters(config: PretrainedConfig, lora: LoraSection | None = None) -> tuple[int, int]:
    """Parameters of a model of this config (tied ones count once), and how many of them are trained.

    The model is built without memory for it.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if lora is not None:
            add_lora(model, lora, base="", seed=0)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)


def estimate_memory(
    config: RunConfig,
    layout: BatchLayout,
    hf_config: PretrainedConfig,
    num_parameters: int,
    num_trained: int,
) -> dict[str, float]:
    """Bytes a rank's device needs, by what for; allocator overhead and communication buffers come on top.

    Weights, gradients and optimizer state follow from the ZeRO stage, the tensor ranks and what is offloaded.
    Activations count what a Llama layer keeps for backward, about 10 vectors of the hidden size (of which
    tensor ranks share half) and 4 of the MLP's a token, or with activation checkpointing one hidden vector a
    layer and one whole layer.
    """
    parallel = config.parallel
    stage, ranks, tensor = parallel.zero_stage, layout.num_ranks * parallel.sequence, parallel.tensor
    width = 2 if config.model.dtype == "bf16" else 4
    master = 4 if config.model.dtype == "bf16" else 0

    def shard(size: float, from_stage: int) -> float:
        return size / tensor / (ranks if stage >= from_stage else 1)

    tokens = layout.rows_per_forward * config.data.sequence_length / parallel.sequence
    hidden, inner = hf_config.hidden_size, hf_config.intermediate_size
    per_layer = tokens * width * (5 * hidden + 5 * hidden / tensor + 4 * inner / tensor)
    if config.model.activation_checkpointing:
        activations = per_layer + hf_config.num_hidden_layers * tokens * width * hf_config.hidden_size
    else:
        activations = hf_config.num_hidden_layers * per_layer
    chunk = min(config.model.head_chunk_size, tokens)
    head = chunk * hf_config.vocab_size / tensor * 8
    if config.model.lora is None:  # else the head is frozen
        head += hf_config.vocab_size / tensor * hidden * 4
    return {
        "weights": shard(num_parameters * width, 3) if parallel.offload_parameters == "none" else 0.0,
        "gradients": shard(num_trained * (4 if stage > 0 else width), 2),
        "optimizer": shard(num_trained * (8 + master), 1) if parallel.offload_optimizer == "none" else 0.0,
        "activations": activations,
        "head": head,
    }


def _batch_table(config: RunConfig, layout: BatchLayout) -> Table:
    table = Table(title="batch, in samples", title_justify="left")
    for heading in ("ranks", "micro", "accumulation", "global", "rows a forward", "tokens a step"):
        table.add_column(heading, justify="right")
    rows = layout.rows_per_forward
    tokens = layout.global_batch_size * config.data.sequence_length
    values = (
        layout.num_ranks,
        layout.micro_batch_size,
        layout.accumulation,
        layout.global_batch_size,
        rows,
        tokens,
    )
    table.add_row(*(f"{value:,}" for value in values))
    return table


def _memory_table(estimate: dict[str, float]) -> Table:
    table = Table(title="memory a rank, estimated, GiB", title_justify="left")
    for heading in (*estimate, "all"):
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value / GIB:,.2f}" for value in (*estimate.values(), sum(estimate.values()))))
    return table
