"""Folders of weights as tensor sources: safetensors or PyTorch .bin files, one file or several with an index.

Nothing in such a folder is trusted: .bin files are read with weights_only, and an index may name only files
beside itself, none of which is a link to elsewhere.
"""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from mdmscale.system.errors import UserError, first_line
from mdmscale.system.files import read_json
from mdmscale.system.links import check_links, is_plain_name
from mdmscale.system.sums import check_sums
from mdmscale.weights.tensor_source import TensorInfo, TensorSource

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# safetensors' names of all dtypes that torch has.
_DTYPES = {
    "C64": torch.complex64,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,  # two values in an element
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class WeightFile(Protocol):
    """One opened file of tensors."""

    def infos(self) -> dict[str, TensorInfo]: ...

    def read(self, name: str) -> torch.Tensor: ...


class SafetensorsFile:
    """A .safetensors file. Its header is read at once, each tensor when it is asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: is damaged or no safetensors file: {first_line(error)}") from None

    def infos(self) -> dict[str, TensorInfo]:
        return {name: self._info(name) for name in self._file.offset_keys()}

    def read(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name)

    def _info(self, name: str) -> TensorInfo:
        view = self._file.get_slice(name)
        shape, kind = tuple(view.get_shape()), view.get_dtype()
        if kind not in _DTYPES:
            raise UserError(f"{self._path}: {name} has the dtype {kind}, which torch does not have")
        dtype = _DTYPES[kind]
        if dtype == torch.float4_e2m1fn_x2 and shape:
            shape = (*shape[:-1], shape[-1] // 2)
        return TensorInfo(shape, dtype)


class BinFile:
    """A .bin file of torch.save, memory-mapped if its format allows that. Code in it is refused, not run."""

    def __init__(self, path: Path) -> None:
        self._tensors = _load_bin(path)

    def infos(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(tuple(item.shape), item.dtype) for name, item in self._tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        # A copy: tensors of one .bin file may share their storage.
        return self._tensors[name].clone(memory_format=torch.contiguous_format)


class WeightFolder:
    """The tensors of a model folder, with one of its files open at a time.

    A folder that has sums is checked against them first (system/sums.py), which reads all of its files.

    Attributes:
        ignored: an index beside a single file of the same format. Two saves of different size leave both.
            transformers takes the single file, and so does this class.

    Raises:
        UserError: naming the file that is missing, damaged, outside the folder, or holds code.
    """

    def __init__(self, folder: Path) -> None:
        check_links(folder)
        check_sums(folder)
        self.folder = folder
        self.ignored: str | None = None
        self._file_of: dict[str, str] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._open_name: str | None = None
        self._open_file: WeightFile | None = None
        for file_name, names in _listed_files(folder).items():
            self._add(file_name, names)
            if names is None and (folder / (file_name + INDEX_SUFFIX)).is_file():
                self.ignored = file_name + INDEX_SUFFIX
        self._open_file = None

    def tensors(self) -> dict[str, TensorInfo]:
        return dict(self._infos)

    def read(self, name: str) -> torch.Tensor:
        return self._opened(self._file_of[name]).read(name)

    def _add(self, file_name: str, names: set[str] | None) -> None:
        infos = self._opened(file_name).infos()
        if missing := sorted((names or set()) - infos.keys()):
            raise UserError(
                f"{self.folder / file_name}: has no tensor {missing[0]}, which the index says it has"
            )
        for name, info in infos.items():
            if names is None or name in names:
                self._file_of[name] = file_name
                self._infos[name] = info

    def _opened(self, file_name: str) -> WeightFile:
        if self._open_file is None or self._open_name != file_name:
            self._open_file = None  # closes the file before this one, which frees its pages
            path = self.folder / file_name
            self._open_file = BinFile(path) if path.suffix == ".bin" else SafetensorsFile(path)
            self._open_name = file_name
        return self._open_file


def check_expected(source: TensorSource, expected: dict[str, tuple[int, ...]], where: Path) -> None:
    """Refuse weights that are not exactly the expected ones.

    Raises:
        UserError: naming the first that is missing, has another shape, or is unknown.
    """
    infos = source.tensors()
    if missing := [name for name in expected if name not in infos]:
        raise UserError(f"{where}: {len(missing)} weights are missing, such as {missing[0]}")
    for name, shape in expected.items():
        if infos[name].shape != shape:
            raise UserError(
                f"{where}: {name} has the shape {infos[name].shape}, where its config.json asks for {shape}"
            )
    if unknown := [name for name in infos if name not in expected]:
        raise UserError(f"{where}: {len(unknown)} weights are not known to the model, such as {unknown[0]}")


def check_floating(infos: dict[str, TensorInfo], where: Path) -> None:
    """Refuse weights of integers or of 8 bits: they are parts of a quantised model, and mean nothing alone.

    Raises:
        UserError: naming the first.
    """
    for name, info in infos.items():
        if info.dtype not in FLOATING:
            kind = str(info.dtype).removeprefix("torch.")
            raise UserError(
                f"{where}: {name} has the dtype {kind}, so the model is quantised; get it in bf16 or fp32"
            )


def _listed_files(folder: Path) -> dict[str, set[str] | None]:
    """The files, with the tensors to take from each (None: all), in transformers' order of preference.

    safetensors files come before .bin files, and a single file before an index.
    """
    for single in SINGLE_FILES:
        if (folder / single).is_file():
            return {single: None}
        if (folder / (single + INDEX_SUFFIX)).is_file():
            return dict(_read_index(folder / (single + INDEX_SUFFIX)))
    shards = sorted(path.name for path in folder.iterdir() if "-of-" in path.name)
    reason = f"{shards[0]} is there, but no index of the shards" if shards else "no weights there"
    raise UserError(f"{folder}: {reason}; expected {SINGLE_FILES[0]} or {SINGLE_FILES[1]}, or {INDEX_SUFFIX}")


def _read_index(path: Path) -> dict[str, set[str]]:
    try:
        weight_map = read_json(path)["weight_map"]
        pairs: Iterable[tuple[str, str]] = weight_map.items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is damaged: no weight_map of tensors and files") from None
    listed: dict[str, set[str]] = {}
    for name, file_name in pairs:
        if not is_plain_name(file_name):
            raise UserError(f"{path}: names the file {file_name!r}, which is not in its folder")
        if not file_name.endswith((".safetensors", ".bin")):
            raise UserError(f"{path}: names the file {file_name!r}, which is neither .safetensors nor .bin")
        listed.setdefault(file_name, set()).add(name)
    for file_name in listed:
        if not (path.parent / file_name).is_file():
            raise UserError(f"{path.parent / file_name}: is missing, but {path.name} names it")
    return dict(sorted(listed.items()))


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors (pickled code or objects), or is damaged; nothing of it was "
            "run; get the model as safetensors"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path}: is damaged: {first_line(error)}") from None
    if not isinstance(loaded, dict) or not all(isinstance(item, torch.Tensor) for item in loaded.values()):
        raise UserError(f"{path}: is no dictionary of tensors")
    return loaded


def _is_zip(path: Path) -> bool:
    """Whether torch can memory-map the file. It cannot map the format of torch before 1.6."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
