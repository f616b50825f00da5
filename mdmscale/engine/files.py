"""Reads DeepSpeed's files of one tensor rank, parameter by parameter.

The files hold one flat vector for each parameter group of the optimizer, cut into one piece per ZeRO rank.
ZeRO 1 and 2 concatenate the group's parameters and cut the result. ZeRO 3 pads each parameter to a multiple
of the number of ranks, cuts it, and concatenates the pieces. ZeRO 0 keeps whole tensors. Files are mapped
into memory, so only the parts that are used are read from disk.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mdmscale.engine import private
from mdmscale.engine.averaging import UPDATES
from mdmscale.engine.private import MASTER, MOMENTS
from mdmscale.engine.state import EngineLayout
from mdmscale.system.errors import UserError
from mdmscale.system.links import check_links
from mdmscale.system.run_folder import ENGINE_FOLDER


def file_patterns(layout: EngineLayout) -> list[str]:
    """The names of all ranks' files of a layout. The optimizer's are patterns, see private.py."""
    shards = range(layout.world_size // layout.tensor)
    patterns = []
    for tensor_rank in range(layout.tensor):
        models: list[int | None] = [*shards] if layout.zero_stage == 3 else [None]
        patterns += [private.model_file(tensor_rank, shard) for shard in models]
        if layout.zero_stage > 0:
            patterns += [private.optimizer_file(tensor_rank, shard) for shard in shards]
    return patterns


class DeepSpeedFiles:
    """Weights and optimizer values of the ranks at one place of the tensor axis.

    Raises:
        UserError: naming the file that is missing or damaged.
    """

    def __init__(self, folder: Path, layout: EngineLayout, tensor_rank: int) -> None:
        check_links(folder / ENGINE_FOLDER)
        self.folder = folder
        self.layout = layout
        self.tensor_rank = tensor_rank
        self.num_shards = layout.world_size // layout.tensor  # pieces into which ZeRO cuts
        shards: list[int | None] = [*range(self.num_shards)] if layout.zero_stage == 3 else [None]
        self._models = [self._open(private.model_file(tensor_rank, shard)) for shard in shards]
        self.module: dict[str, torch.Tensor] = self._models[0][private.MODULE]

    @property
    def tied(self) -> set[str]:
        """The second names of parameters that have two names."""
        return set(self._models[0].get(private.TIED) or {})

    @cached_property
    def trained(self) -> set[str]:
        """The parameters that the optimizer trains; the others are frozen."""
        return {name for group in self.layout.parameter_groups for name in group}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of this tensor rank's part of a parameter."""
        if self.layout.zero_stage < 3:
            return tuple(self.module[name].shape)
        return tuple(self._whole_shapes[name])

    def weight(self, name: str) -> torch.Tensor:
        """The parameter in the model's precision. In bf16 it is the rounded fp32 master."""
        if self.layout.zero_stage < 3:
            return self.module[name]
        if name in self.trained:
            return self.optimizer_value(name, MASTER).to(self.module[name].dtype)
        pieces = [model[private.FROZEN_PIECES][name].flatten() for model in self._models]
        return _whole(pieces, self.shape(name))

    def optimizer_value(self, name: str, kind: str) -> torch.Tensor:
        """The fp32 master of a trained parameter, or part of AdamW's state of it, whole and in fp32."""
        group = next(number for number, names in enumerate(self.layout.parameter_groups) if name in names)
        match self.layout.zero_stage:
            case 0:
                return self._of_stage_0(name, kind)
            case 3:
                return self._of_stage_3(name, kind)
            case _:
                return self._of_stage_1(name, kind, group)

    @cached_property
    def optimizer_step(self) -> int:
        """The optimizer's own count of steps, on which Adam's bias correction depends."""
        return int(next(iter(self._adam_states(0).values()))["step"])

    @property
    def average_updates(self) -> int | None:
        """How often the average of the weights has been updated; None if there is none."""
        state: dict[str, torch.Tensor] = next(iter(self._adam_states(0).values()), {})
        return int(state[UPDATES]) if UPDATES in state else None

    def _of_stage_0(self, name: str, kind: str) -> torch.Tensor:
        ordered = [each for group in self.layout.parameter_groups for each in group]
        if kind != MASTER:
            return self._adam_states(0)[ordered.index(name)][kind]
        masters = self._models[0][private.OPTIMIZER].get(private.MASTERS)
        if masters is None:  # the run trains in fp32
            return self.module[name]
        return [master for group in masters for master in group][ordered.index(name)]

    def _of_stage_1(self, name: str, kind: str, group: int) -> torch.Tensor:
        names = self.layout.parameter_groups[group]
        start = sum(math.prod(self.shape(each)) for each in names[: names.index(name)])
        stop, values = start + math.prod(self.shape(name)), []
        # Every rank's piece is as long as the first one, but the last may lack padding.
        length = self._adam_states(0)[group][MOMENTS[0]].numel()
        for rank in range(start // length, (stop - 1) // length + 1):
            piece = self._flat(rank, kind, group)
            values.append(piece[max(start - rank * length, 0) : stop - rank * length])
        return torch.cat(values).view(self.shape(name))

    def _of_stage_3(self, name: str, kind: str) -> torch.Tensor:
        ranks, start = self.num_shards, 0
        for each in (each for group in self.layout.parameter_groups for each in group):
            width = -(-math.prod(self.shape(each)) // ranks)
            if each == name:
                break
            start += width
        pieces = [self._sub_groups(rank, kind)[start : start + width] for rank in range(ranks)]
        return _whole(pieces, self.shape(name))

    def _sub_groups(self, rank: int, kind: str) -> torch.Tensor:
        """All values of a ZeRO-3 rank as one vector. DeepSpeed cuts large groups into several."""
        if kind == MASTER:
            parts = self._optimizers[rank][private.FLAT_MASTERS]
        else:
            states = self._adam_states(rank)
            parts = [states[key][kind] for key in sorted(states)]
        return parts[0] if len(parts) == 1 else _Joined(parts)  # type: ignore[return-value]

    def _flat(self, rank: int, kind: str, group: int) -> torch.Tensor:
        if kind == MASTER:
            return self._optimizers[rank][private.PARTITIONS][group]
        return self._adam_states(rank)[group][kind]

    def _adam_states(self, rank: int) -> dict[int, dict[str, torch.Tensor]]:
        """The state of torch's AdamW, by the index of the (flat) parameter."""
        if self.layout.zero_stage == 0:
            optimizer = self._models[0][private.OPTIMIZER]
            return optimizer.get(private.INNER_STATE, optimizer)["state"]
        name = private.INNER_STATE if self.layout.zero_stage == 3 else private.BASE_STATE
        return self._optimizers[rank][name]["state"]

    @cached_property
    def _whole_shapes(self) -> dict[str, torch.Size]:
        """ZeRO-3 records the shapes, as its tensors are empty."""
        first = self._models[0]
        shapes = {name: shape for group in first[private.SHAPES] for name, shape in group.items()}
        return shapes | (first[private.FROZEN_SHAPES] or {})

    @cached_property
    def _optimizers(self) -> list[dict[str, Any]]:
        engine = self.folder / ENGINE_FOLDER
        files = [
            next(iter(engine.glob(private.optimizer_file(self.tensor_rank, rank))), None)
            for rank in range(self.num_shards)
        ]
        if None in files:
            raise UserError(f"{engine}: the optimizer states of rank {files.index(None)} are missing")
        return [self._open(file.name)[private.INNER_STATE] for file in files if file is not None]

    def _open(self, name: str) -> dict[str, Any]:
        return private.read_file(self.folder / ENGINE_FOLDER / name, mapped=True)


class _Joined:
    """Several vectors that can be sliced like one concatenated vector. Only the slice is copied."""

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self._parts = parts

    def __getitem__(self, at: slice) -> torch.Tensor:
        found, start, stop = [], at.start, at.stop
        for part in self._parts:
            found.append(part[max(start, 0) : max(stop, 0)])
            start, stop = start - part.numel(), stop - part.numel()
        return torch.cat(found)


def _whole(pieces: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Join the ranks' pieces of one parameter and drop the padding."""
    return torch.cat(pieces)[: math.prod(shape)].view(shape)
