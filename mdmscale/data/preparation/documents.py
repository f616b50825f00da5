"""Documents of text, one at a time, from text files, JSONL, parquet, Arrow and Hugging Face datasets."""

import glob
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.data.preparation.jsonl import check_unicode, read_jsonl
from mdmscale.system.errors import UserError

_HUB = "hf:"
_STDLIB_BYTES = 5_000_000
# Tests repeat themselves, and encodings and pydoc_data are tables: little of them reads like code.
_STDLIB_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Document:
    """A text, and the bytes of input it accounts for (0 where that is unknown)."""

    text: str
    input_bytes: float


@dataclass(frozen=True)
class HubDataset:
    """A dataset that `datasets.load_dataset` opens."""

    name: str
    config: str | None

    def __str__(self) -> str:
        return _HUB + self.name + (f":{self.config}" if self.config else "")


Input = Path | HubDataset


def find_inputs(inputs: list[str], suffixes: list[str]) -> list[Input]:
    """Resolve files, globs, folders (files that end with one of `suffixes`), `hf:NAME[:CONFIG]` and `stdlib`.

    Raises:
        UserError: for an input that names nothing.
    """
    found = [item for name in inputs for item in _find(name, suffixes)]
    return list(dict.fromkeys(found))


def input_bytes(inputs: list[Input]) -> int | None:
    """Size of all inputs on disk, or None where one is not on disk."""
    files = [item for item in inputs if isinstance(item, Path)]
    return sum(file.stat().st_size for file in files) if len(files) == len(inputs) else None


def read_documents(inputs: list[Input], text_key: str, split: str) -> Iterator[Document]:
    """The inputs' documents in order; empty ones are passed over.

    Raises:
        UserError: for an unreadable file or line, naming it; for a missing text column, naming the others.
    """
    for item in inputs:
        for document in _read(item, text_key, split):
            if document.text:
                yield document


def _find(name: str, suffixes: list[str]) -> list[Input]:
    if name == "stdlib":
        return list(stdlib_files())
    if name.startswith(_HUB):
        dataset, _, config = name.removeprefix(_HUB).partition(":")
        return [HubDataset(dataset, config or None)]
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [
            file for file in sorted(path.rglob("*")) if file.is_file() and file.name.endswith(tuple(suffixes))
        ]
        problem = f"no file in this folder ends with {' or '.join(suffixes)}; see --suffix"
    else:
        files = sorted(file for file in map(Path, glob.glob(name, recursive=True)) if file.is_file())
        problem = "no file matches" if glob.has_magic(name) else "no such file or folder"
    if not files:
        raise UserError(f"input {name!r}: {problem}")
    return list(files)


def stdlib_files() -> list[Path]:
    """About 5 MB of the Python standard library's source, its files chosen by the hashes of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    names = [file.relative_to(root) for file in root.rglob("*.py")]
    names = [name for name in names if not _STDLIB_LEFT_OUT & set(name.parts)]
    names.sort(key=lambda name: hashlib.sha256(name.as_posix().encode()).digest())
    chosen: list[Path] = []
    num_bytes = 0
    for name in names:
        if num_bytes >= _STDLIB_BYTES:
            break
        chosen.append(root / name)
        num_bytes += (root / name).stat().st_size
    if not chosen:
        raise UserError(f"input 'stdlib': this Python has no library source in {root}; give files instead")
    return sorted(chosen)


def _read(item: Input, text_key: str, split: str) -> Iterator[Document]:
    if isinstance(item, HubDataset):
        return _read_hub(item, text_key, split)
    match item.suffix:
        case ".jsonl":
            return _read_jsonl(item, text_key)
        case ".parquet":
            return _read_parquet(item, text_key)
        case ".arrow":
            return _read_arrow(item, text_key)
        case _:
            return _read_text(item)


def _read_text(path: Path) -> Iterator[Document]:
    try:
        raw = path.read_bytes()
        yield Document(raw.decode("utf-8"), len(raw))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it or leave it out") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _read_jsonl(path: Path, text_key: str) -> Iterator[Document]:
    for record in read_jsonl(path):
        if text_key not in record.values:
            raise UserError(
                f"{record.where}: no key {text_key!r} among {sorted(record.values)}; see --text-key"
            )
        yield Document(_as_text(record.values[text_key], f"{record.where}: {text_key!r}"), record.num_bytes)


def _read_parquet(path: Path, text_key: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None
    _check_column(text_key, file.schema_arrow.names, path)
    share = path.stat().st_size / max(1, file.metadata.num_rows)
    batches = file.iter_batches(batch_size=1024, columns=[text_key])
    while (batch := _next_batch(batches, path)) is not None:
        yield from _texts_of_column(batch.column(0), share, path, text_key)


def _next_batch(batches: Iterator[Any], path: Path) -> Any | None:
    import pyarrow

    try:
        return next(batches, None)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged: {error}") from None


def _read_arrow(path: Path, text_key: str) -> Iterator[Document]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_stream(source)
            batches = iter(reader)
        except pyarrow.ArrowInvalid:
            try:
                reader = pyarrow.ipc.open_file(source)
            except pyarrow.ArrowInvalid as error:
                raise UserError(f"{path}: neither an Arrow stream nor an Arrow file: {error}") from None
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        _check_column(text_key, reader.schema.names, path)
        for batch in batches:
            yield from _texts_of_column(
                batch.column(text_key), batch.nbytes / max(1, len(batch)), path, text_key
            )


def _texts_of_column(column: Any, input_bytes: float, path: Path, text_key: str) -> Iterator[Document]:
    for value in column:
        yield Document(_as_text(value.as_py(), f"{path}: column {text_key!r}"), input_bytes)


def _read_hub(item: HubDataset, text_key: str, split: str) -> Iterator[Document]:
    from datasets import load_dataset

    try:
        rows = load_dataset(item.name, item.config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: data sets that are scripts
        raise UserError(f"input '{item}' (split {split}): {' '.join(str(error).split())}") from None
    for number, row in enumerate(rows):
        _check_column(text_key, list(row), item)
        yield Document(_as_text(row[text_key], f"{item}, row {number}: {text_key!r}"), 0)


def _check_column(text_key: str, names: list[str], item: Input) -> None:
    if text_key not in names:
        raise UserError(f"{item}: no column {text_key!r} among {sorted(names)}; see --text-key")


def _as_text(value: object, where: str) -> str:
    """A column's value as text; null is an empty document."""
    if value is None:
        return ""
    if isinstance(value, str):
        return check_unicode(value, where)
    raise UserError(f"{where} is {type(value).__name__}, not text; see --text-key")
