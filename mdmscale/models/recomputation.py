"""Activation checkpointing: which of a layer's tensors are kept for backward, and which are made anew in it.

full: a layer's input is kept, and all is done again. selective: what is expensive is kept, too, the outputs
of matrix products and of attention; norms, rotation, gate and sums, whose outputs are half of what backward
needs and take little time, are done again (as in arXiv 2205.05198, but by operation).
"""

from collections import defaultdict, deque
from typing import Any

import torch
from torch.nn.attention import varlen  # noqa: F401  (registers an operation of KEPT)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from mdmscale.config.section import Recomputation

aten = torch.ops.aten
# Products of activations with each other (bmm) are not: as eager attention's scores they are larger than all.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}


def recompute_activations(model: PreTrainedModel, what: Recomputation) -> None:
    """Let backward make anew what `model.activation_checkpointing` says, layer by layer."""
    if what == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = _keep_and_give_back
    model.gradient_checkpointing_enable(options)


def _keep_and_give_back() -> tuple["_Keep", "_GiveBack"]:
    """The modes that one layer's forward and its repetition run under.

    torch's create_selective_checkpoint_contexts asks for the same operations in both, but ZeRO-3 gathers
    parameters in between as it sees fit.
    """
    outputs: dict[Any, deque[Any]] = defaultdict(deque)
    return _Keep(outputs), _GiveBack(outputs)


class _Keep(TorchDispatchMode):
    """Keeps the outputs of KEPT operations, but not the layer's last: backward needs nothing made from it."""

    def __init__(self, outputs: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self.outputs = outputs
        self.last: tuple[Any, Any] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in KEPT:
            if self.last is not None:
                operation, earlier = self.last
                self.outputs[operation].append(earlier)
            # detached, or the graph that is to be forgotten would hang on it
            self.last = func, tree_map_only(torch.Tensor, torch.Tensor.detach, output)
        return output

    def __exit__(self, *error: Any) -> None:
        self.last = None
        super().__exit__(*error)


class _GiveBack(TorchDispatchMode):
    """Gives what `_Keep` kept in place of doing it again, in the same order."""

    def __init__(self, outputs: dict[Any, deque[Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = self.outputs.get(func)
        return kept.popleft() if kept else func(*args, **(kwargs or {}))
