"""Find and open a GGUF file, llama.cpp's format of one file with config, tokenizer and quantised weights."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError, first_line

WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file: its shape in torch's order, its format such as Q4_1, and its undecoded data."""

    shape: tuple[int, ...]
    format: str
    data: Any


@dataclass(frozen=True)
class GgufFile:
    """An opened file. Its weights stay on disk.

    Attributes:
        fields: what the file says about the model and its tokenizer, by key.
        tensors: the file's tensors under its own names, such as blk.0.attn_q.weight.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    @property
    def formats(self) -> str:
        """The formats of the tensors, the most frequent first."""
        return ", ".join(
            name for name, _ in Counter(each.format for each in self.tensors.values()).most_common()
        )


def find_gguf(source: Path) -> Path | None:
    """The GGUF file that `source` stands for: itself, or the only one in a folder without other weights.

    Raises:
        UserError: where `source` is a missing or another kind of file, or a folder of several GGUF files.
    """
    if source.is_file():
        if source.suffix != ".gguf":
            raise UserError(f"{source}: is a file but no .gguf; give the folder with config.json and weights")
        return source
    if source.suffix == ".gguf" and not source.exists():
        raise UserError(f"{source}: no such file")
    files = sorted(source.glob("*.gguf"))
    if not files or any(any(source.glob(pattern)) for pattern in WEIGHTS):
        return None
    if len(files) > 1:
        raise UserError(f"{source}: holds {', '.join(file.name for file in files)}; give one of these files")
    return files[0]


def open_gguf(path: Path) -> GgufFile:
    """Read the file's keys and list of tensors.

    Raises:
        UserError: where the package gguf is missing, or the file is damaged, truncated, or a part of one.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading it needs the package gguf; pip install 'mdmscale[gguf]'") from None
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path}: is no GGUF file (it does not begin with GGUF)")
    try:
        reader = GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
        tensors = {
            each.name: StoredTensor(tuple(map(int, reversed(each.shape))), each.tensor_type.name, each.data)
            for each in reader.tensors
        }
    except OSError:
        raise
    except Exception as error:  # the reader checks nothing, so damage surfaces as many types
        raise UserError(f"{path}: is damaged, truncated or not finished ({first_line(error)})") from None
    if fields.get("split.count", 0) > 1:
        raise UserError(
            f"{path}: is one of {fields['split.count']} parts; join them with llama-gguf-split --merge"
        )
    return GgufFile(path, fields, tensors)


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """A folder with nothing but a link to the file.

    transformers would also read an adapter, a tokenizer_config.json or a generation_config.json beside it.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield Path(folder)
