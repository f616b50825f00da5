"""Checks that the machine has what a config needs: CUDA, a compiler, asynchronous I/O."""

import torch

from mdmscale.config.run import RunConfig
from mdmscale.engine import private
from mdmscale.models.compiling import can_compile, needs
from mdmscale.system.errors import UserError


def check_hardware(config: RunConfig, device: torch.device) -> None:
    """Refuse options that this machine cannot run.

    Raises:
        UserError: naming the options and their requirements.
    """
    problems = [
        f"parallel.{name} = true: DeepSpeed's quantisation kernels need a CUDA device; this machine has none"
        for name in ("quantized_weights", "quantized_gradients")
        if getattr(config.parallel, name) and device.type != "cuda"
    ]
    if not can_compile(device):
        problems += [
            f"model.{key}: torch.compile needs {needs(device)}; without, set the option to {other}"
            for key, other, is_on in (
                ("compile = true", "false", config.model.compile),
                ("head = fused", "chunked", config.model.head == "fused"),
            )
            if is_on
        ]
    if config.parallel.swaps and not private.can_swap():
        problems.append(
            "parallel.offload_optimizer = nvme: DeepSpeed's asynchronous I/O needs libaio with headers and "
            "a C++ compiler; install libaio-dev (Debian, Ubuntu) or libaio-devel (Red Hat)"
        )
    if problems:
        raise UserError(*problems)
