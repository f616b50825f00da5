"""DeepSpeed's files of one tensor rank, read parameter by parameter.

For each parameter group of the optimizer they hold one flat vector cut into as many pieces as ZeRO had ranks.
ZeRO 1 and 2 concatenate the group's parameters and cut the whole; ZeRO 3 cuts each of them, padded to a
multiple of the ranks, and concatenates the pieces. ZeRO 0 keeps whole tensors. Files are mapped: only what is
asked for is read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import ENGINE_FOLDER
from mdmscale.training.checkpoint import TrainingState

MASTER, MOMENTS = "master", ("exp_avg", "exp_avg_sq")


class DeepSpeedFiles:
    """Weights and optimizer values as the ranks of one place along the tensor axis hold them.

    Raises:
        UserError: naming the file that is missing or damaged.
    """

    def __init__(self, folder: Path, state: TrainingState, tensor_rank: int) -> None:
        self.folder = folder
        self.state = state
        self.num_shards = state.world_size // state.tensor  # that ZeRO cuts into
        self._place = f"mp_rank_{tensor_rank:02d}"
        names = [f"zero_pp_rank_{rank}_{self._place}_model_states.pt" for rank in range(self.num_shards)]
        self._models = [
            self._open(name)
            for name in (names if state.zero_stage == 3 else [f"{self._place}_model_states.pt"])
        ]
        self.module: dict[str, torch.Tensor] = self._models[0]["module"]

    @property
    def tied(self) -> set[str]:
        """Names of parameters that are others' under a second name."""
        return set(self._models[0].get("shared_params") or {})

    @cached_property
    def trained(self) -> set[str]:
        """The parameters that the optimizer knows; the others are frozen."""
        return {name for group in self.state.parameter_groups for name in group}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of this tensor rank's part of a parameter."""
        if self.state.zero_stage < 3:
            return tuple(self.module[name].shape)
        first = self._models[0]
        shapes = {key: shape for group in first["param_shapes"] for key, shape in group.items()}
        return tuple((shapes | (first["frozen_param_shapes"] or {}))[name])

    def weight(self, name: str) -> torch.Tensor:
        """The parameter as it is trained: in bf16 the rounded one, not its fp32 master."""
        if self.state.zero_stage < 3:
            return self.module[name]
        if name in self.trained:
            return self.optimizer_value(name, MASTER).to(self.module[name].dtype)
        pieces = [model["frozen_param_fragments"][name].flatten() for model in self._models]
        return _whole(pieces, self.shape(name))

    def optimizer_value(self, name: str, kind: str) -> torch.Tensor:
        """The fp32 master of a trained parameter, or one of its two moments, whole and in fp32."""
        group = next(place for place, names in enumerate(self.state.parameter_groups) if name in names)
        match self.state.zero_stage:
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

    def _of_stage_0(self, name: str, kind: str) -> torch.Tensor:
        ordered = [each for group in self.state.parameter_groups for each in group]
        if kind != MASTER:
            return self._adam_states(0)[ordered.index(name)][kind]
        masters = self._models[0]["optimizer"].get("fp32_groups")
        if masters is None:  # trained in fp32
            return self.module[name]
        return [master for group in masters for master in group][ordered.index(name)]

    def _of_stage_1(self, name: str, kind: str, group: int) -> torch.Tensor:
        names = self.state.parameter_groups[group]
        start = sum(math.prod(self.shape(each)) for each in names[: names.index(name)])
        stop, values = start + math.prod(self.shape(name)), []
        # All ranks' pieces are as long as the first's, but for padding that the last may lack.
        length = self._adam_states(0)[group][MOMENTS[0]].numel()
        for rank in range(start // length, (stop - 1) // length + 1):
            piece = self._flat(rank, kind, group)
            values.append(piece[max(start - rank * length, 0) : stop - rank * length])
        return torch.cat(values).view(self.shape(name))

    def _of_stage_3(self, name: str, kind: str) -> torch.Tensor:
        ranks, start = self.num_shards, 0
        for each in (each for group in self.state.parameter_groups for each in group):
            width = -(-math.prod(self.shape(each)) // ranks)
            if each == name:
                break
            start += width
        pieces = [self._sub_groups(rank, kind)[start : start + width] for rank in range(ranks)]
        return _whole(pieces, self.shape(name))

    def _sub_groups(self, rank: int, kind: str) -> torch.Tensor:
        """All that a rank of ZeRO-3 holds, one vector; DeepSpeed cuts large groups into several."""
        optimizer = self._optimizers[rank]
        states = self._adam_states(rank)
        parts = (
            optimizer["fp32_flat_groups"] if kind == MASTER else [states[key][kind] for key in sorted(states)]
        )
        return parts[0] if len(parts) == 1 else _Joined(parts)  # type: ignore[return-value]

    def _flat(self, rank: int, kind: str, group: int) -> torch.Tensor:
        if kind == MASTER:
            return self._optimizers[rank]["single_partition_of_fp32_groups"][group]
        return self._adam_states(rank)[group][kind]

    def _adam_states(self, rank: int) -> dict[int, dict[str, torch.Tensor]]:
        """torch's AdamW state by the place of the (flat) parameter."""
        if self.state.zero_stage == 0:
            optimizer = self._models[0]["optimizer"]
            return optimizer.get("optimizer_state_dict", optimizer)["state"]
        name = "optimizer_state_dict" if self.state.zero_stage == 3 else "base_optimizer_state"
        return self._optimizers[rank][name]["state"]

    @cached_property
    def _optimizers(self) -> list[dict[str, Any]]:
        engine = self.folder / ENGINE_FOLDER
        files = [
            next(iter(engine.glob(f"*zero_pp_rank_{rank}_{self._place}_optim_states.pt")), None)
            for rank in range(self.num_shards)
        ]
        if None in files:
            raise UserError(f"{engine}: the optimizer states of rank {files.index(None)} are missing")
        return [self._open(file.name)["optimizer_state_dict"] for file in files if file is not None]

    def _open(self, name: str) -> dict[str, Any]:
        """One of DeepSpeed's files, mapped into memory; only known classes are unpickled."""
        path = self.folder / ENGINE_FOLDER / name
        try:
            with _known_classes():
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{path}: is missing") from None
        except Exception as error:  # whatever damage raises in torch
            raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


class _Joined:
    """Vectors that are sliced as if they were concatenated, without a copy of all of them."""

    def __init__(self, parts: list[torch.Tensor]) -> None:
        self._parts = parts

    def __getitem__(self, at: slice) -> torch.Tensor:
        found, start, stop = [], at.start, at.stop
        for part in self._parts:
            found.append(part[max(start, 0) : max(stop, 0)])
            start, stop = start - part.numel(), stop - part.numel()
        return torch.cat(found)


def _whole(pieces: list[torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    """Ranks' pieces of one padded parameter, put together."""
    return torch.cat(pieces)[: math.prod(shape)].view(shape)


@contextmanager
def _known_classes() -> Iterator[None]:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        yield
