"""The lines at the start of a run's log: hosts, devices, layout, batch, versions, seed."""

import hashlib
import json
import platform
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from mdmscale.parallel.ranks import Ranks

if TYPE_CHECKING:
    from mdmscale.config.run import RunConfig
    from mdmscale.parallel.batch_layout import BatchLayout


def config_hash(config: "RunConfig") -> str:
    """12 hex digits that identify a config. Two runs share them if all options agree, name and seed too."""
    return hashlib.sha256(json.dumps(config.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


def gather_facts(config: "RunConfig", layout: "BatchLayout", ranks: Ranks) -> list[str]:
    """The lines, which are the same on every rank. Every rank calls this."""
    mine = (socket.gethostname(), _device(ranks.device))
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, mine)
    hosts = list(dict.fromkeys(host for host, _ in gathered))
    devices = list(dict.fromkeys(device for _, device in gathered))
    names = ("torch", "deepspeed", "transformers")
    rows = layout.rows_per_forward
    return [
        f"hosts     {len(hosts)}: {_listed(hosts)}",
        f"devices   {ranks.world_size} x {_listed(devices)}",
        f"layout    {describe_ranks(ranks)}, ZeRO-{config.parallel.zero_stage}, {config.model.dtype}",
        f"batch     {layout.global_batch_size} samples a step: {layout.dp_size} data ranks x "
        f"{layout.micro_batch_size} x {layout.gradient_accumulation_steps} accumulated; {rows} rows of up to "
        f"{config.data.sequence_length} tokens a forward",
        f"versions  python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names)
        + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ""),
        f"seed      {config.run.seed}; config {config_hash(config)}",
    ]


def describe_ranks(ranks: Ranks) -> str:
    """The ranks by axis, such as "8 ranks (2 data x 2 sequence x 2 tensor)"."""
    sizes = {"data": ranks.dp_size, "sequence": ranks.sp_size, "tensor": ranks.tp_size}
    parts = [f"{size} {axis}" for axis, size in sizes.items() if size > 1 or axis == "data"]
    return f"{ranks.world_size} ranks" + (f" ({' x '.join(parts)})" if len(parts) > 1 else "")


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads each"
    properties = torch.cuda.get_device_properties(device)
    driver = _driver()
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB" + (
        f", driver {driver}" if driver else ""
    )


def _driver() -> str | None:
    """The version of NVIDIA's driver, read from its kernel module."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            words = file.readline().split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _listed(names: list[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
