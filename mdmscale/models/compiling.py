"""torch.compile of the decoder layers: one compiled code that all layers and all batches share.

A whole model would take the compiler as many times longer as it has layers, for the same kernels. Embedding,
head and what surrounds the layers stay as they are.
"""

import os
import shutil
import sys
from functools import cache
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

# Kinds of input, each with code of its own: with gradients or not, of one row or more, and without a mask,
# with one of padding or one of pairs. There is room beside them; at its own limit of 8 torch would give up.
RECOMPILE_LIMIT = 32


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs, see `needs`."""
    if device.type == "cuda":
        return _can_compile_for_cuda(device)
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


@cache
def _can_compile_for_cuda(device: torch.device) -> bool:
    """Looked up once: the head asks in every forward."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    is_able = find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)
    return is_able and any(map(shutil.which, compilers))


def needs(device: torch.device) -> str:
    """What torch.compile makes code with for a device, in words."""
    if device.type == "cuda":
        return "Triton, a C compiler (CC, gcc or clang) and a GPU of compute capability 7.0 or more"
    return "a C++ compiler (CXX, or else g++; clang++ on macOS)"


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile each decoder layer at its first call.

    Batches have other lengths and numbers of rows all the time, so that sizes are symbols from the start. A
    layer that does not fit in one graph is an error: each piece of a broken one would be slower in silence.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in model.model.layers:
        layer.compile(backend=backend, dynamic=True, fullgraph=True)  # in place: parameters keep their names
