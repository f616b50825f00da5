"""torch.compile of the decoder layers: all layers and all batches share the same compiled code.

To compile the whole model would take as many times longer as it has layers, and would give the same kernels.
Embedding, head and everything else outside the layers are not compiled here.
"""

import os
import shutil
import sys
from functools import cache
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

# Each kind of input gets its own code: with or without gradients; one row or several; no mask, a padding mask
# or an annealed mask. The limit leaves room for more. At torch's own limit of 8 it would stop compiling.
RECOMPILE_LIMIT = 32


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds the tools that it needs, see `needs`."""
    if device.type == "cuda":
        return _can_compile_for_cuda(device)
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


@cache
def _can_compile_for_cuda(device: torch.device) -> bool:
    """Cached, because the head asks in every forward."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    is_able = find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)
    return is_able and any(map(shutil.which, compilers))


def needs(device: torch.device) -> str:
    """What torch.compile needs to make code for a device, in words."""
    if device.type == "cuda":
        return "Triton, a C compiler (CC, gcc or clang) and a GPU of compute capability 7.0 or more"
    return "a C++ compiler (CXX, or else g++; clang++ on macOS)"


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile each decoder layer at its first call.

    Lengths and numbers of rows change from batch to batch, so sizes are symbolic from the start. A layer that
    does not fit in one graph is an error: a graph in pieces would be slower, and nothing would say so.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for layer in model.model.layers:
        layer.compile(backend=backend, dynamic=True, fullgraph=True)  # in place: parameters keep their names
