"""Activation checkpointing: which tensors of a layer are saved for backward, and which backward recomputes.

full: only the input of a layer is saved, and backward recomputes the whole layer. selective: the outputs of
expensive operations, matrix products and attention, are saved too. Norms, rotary embedding, gate and sums are
recomputed: they take little time, but their outputs are half of what backward needs. The idea is that of
arXiv 2205.05198; here the choice is made operation by operation.
"""

from collections import defaultdict, deque
from typing import Any

import torch
from torch.nn.attention import varlen  # noqa: F401  (registers an operation of SAVED)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from mdmscale.config.section import Recomputation

aten = torch.ops.aten
# Without products of two activations (bmm): eager attention's scores are one, and the largest tensor of all.
SAVED = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}


def recompute_activations(model: PreTrainedModel, what: Recomputation) -> None:
    """Let backward recompute what `model.activation_checkpointing` says, layer by layer."""
    if what == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = _save_and_reuse
    model.gradient_checkpointing_enable(options)


def _save_and_reuse() -> tuple["_SaveOutputs", "_ReuseOutputs"]:
    """The dispatch modes that a layer's forward and its recomputation run under.

    torch's create_selective_checkpoint_contexts requires the same operations in both. Under ZeRO-3 they
    differ, because it gathers parameters in between whenever it needs to.
    """
    outputs: dict[Any, deque[Any]] = defaultdict(deque)
    return _SaveOutputs(outputs), _ReuseOutputs(outputs)


class _SaveOutputs(TorchDispatchMode):
    """Saves the outputs of SAVED operations, except for the last one of a layer.

    Backward needs nothing that is computed from the last one.
    """

    def __init__(self, outputs: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self.outputs = outputs
        self.last: tuple[Any, Any] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in SAVED:
            if self.last is not None:
                operation, earlier = self.last
                self.outputs[operation].append(earlier)
            # detached, or it would keep alive the graph that checkpointing is there to free
            self.last = func, tree_map_only(torch.Tensor, torch.Tensor.detach, output)
        return output

    def __exit__(self, *error: Any) -> None:
        self.last = None
        super().__exit__(*error)


class _ReuseOutputs(TorchDispatchMode):
    """Returns the outputs that `_SaveOutputs` saved, in the same order, instead of computing them again."""

    def __init__(self, outputs: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        saved = self.outputs.get(func)
        return saved.popleft() if saved else func(*args, **(kwargs or {}))
