"""Reads checkpoints of any ZeRO stage, number of ranks and tensor parallelism, parameter by parameter.

It needs no engine and no process group: it opens DeepSpeed's files and joins the pieces of the ranks.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mdmscale.engine.averaging import AVERAGE
from mdmscale.engine.files import DeepSpeedFiles
from mdmscale.engine.state import read_layout
from mdmscale.parallel.tensor import split_dimension
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import MODEL_FOLDER
from mdmscale.weights.adapter_names import CONFIG_FILE, public_name
from mdmscale.weights.tensor_source import TensorInfo

PREFIX = "backbone."  # of the backbone's parameter names in the trained module


class DeepSpeedCheckpoint:
    """The weights of a checkpoint under their Hugging Face names (a TensorSource), and its optimizer's state.

    With `averaged`, `read` returns the average of train.ema_decay of the weights that are trained.

    Raises:
        UserError: naming the file that is missing or damaged; if there is no average.
    """

    def __init__(self, folder: Path, averaged: bool = False) -> None:
        self.folder = folder
        self.model_folder = folder / MODEL_FOLDER
        self.layout = read_layout(folder)
        self._parts = [DeepSpeedFiles(folder, self.layout, rank) for rank in range(self.layout.tensor)]
        self._averaged = averaged
        if averaged and self.average_updates is None:
            raise UserError(
                f"{folder}: has no average of the weights, as it was trained without train.ema_decay; export "
                "the weights themselves"
            )

    def tensors(self) -> dict[str, TensorInfo]:
        """Every weight once. A pair of tied weights is listed under one of its two names."""
        module = self._parts[0].module
        return {
            public: TensorInfo(self.shape(name), module[name].dtype)
            for public, name in self._by_public_name.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """A weight in the model's precision."""
        own = self._by_public_name[name]
        if self._averaged and own in self.trained:
            dtype = self._parts[0].module[own].dtype
            return self.optimizer_value(own, AVERAGE).to(dtype).contiguous()
        return self.weight(own).contiguous()

    @cached_property
    def adapter(self) -> dict[str, Any] | None:
        """peft's adapter_config.json, parsed, if the run trains adapters. Their tensors have peft's names."""
        path = self.model_folder / CONFIG_FILE
        return read_object(path) if path.is_file() else None

    @cached_property
    def _by_public_name(self) -> dict[str, str]:
        return {public_name(name.removeprefix(PREFIX)): name for name in self.names}

    @cached_property
    def names(self) -> list[str]:
        """The names of the trained module's parameters, with one name for each tied pair."""
        tied = self._parts[0].tied
        config = read_object(self.model_folder / "config.json")
        if config.get("tie_word_embeddings"):
            tied.add(f"{PREFIX}lm_head.weight")
        return [name for name in self._parts[0].module if name not in tied]

    @property
    def trained(self) -> set[str]:
        """The parameters that the optimizer trains; the others are frozen."""
        return self._parts[0].trained

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole parameter."""
        shape, dimension = list(self._parts[0].shape(name)), self._dimension(name)
        if dimension is not None:
            shape[dimension] *= len(self._parts)
        return tuple(shape)

    def weight(self, name: str) -> torch.Tensor:
        """A whole parameter in the model's precision. In bf16 it is the rounded fp32 master."""
        return self._joined(name, [part.weight(name) for part in self._parts_of(name)])

    def optimizer_value(self, name: str, kind: str) -> torch.Tensor:
        """The fp32 master of a trained parameter, or part of AdamW's state of it, whole and in fp32."""
        return self._joined(name, [part.optimizer_value(name, kind) for part in self._parts_of(name)])

    @property
    def optimizer_step(self) -> int:
        """The optimizer's own count of steps, on which Adam's bias correction depends."""
        return self._parts[0].optimizer_step

    @property
    def average_updates(self) -> int | None:
        """How often the average of the weights has been updated; None if there is none."""
        return self._parts[0].average_updates

    def _dimension(self, name: str) -> int | None:
        return split_dimension(name) if len(self._parts) > 1 else None

    def _parts_of(self, name: str) -> list[DeepSpeedFiles]:
        """The tensor ranks to read a parameter from: all, or only the first if each has all of it."""
        return self._parts[:1] if self._dimension(name) is None else self._parts

    def _joined(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        dimension = self._dimension(name)
        return parts[0] if dimension is None else torch.cat(parts, dimension)
