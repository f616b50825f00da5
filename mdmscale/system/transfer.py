"""Copies between host and device during which the host does not wait."""

from typing import Any

import torch


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Small host values on `device`. They are copied from page-locked memory, so the host does not wait."""
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class Arriving:
    """Values that are being copied to the host. The device may not have computed them yet."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values
        self._event: Any = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> torch.Tensor:
        """Wait until the values have arrived, and return them."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
