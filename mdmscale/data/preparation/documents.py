"""Read documents of text one at a time: from text, JSONL, parquet and Arrow files, and from Hugging Face."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.data.preparation.inputs import HubDataset, Input
from mdmscale.data.preparation.jsonl import check_unicode, read_jsonl
from mdmscale.models.hub import check_dataset
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class Document:
    """A text, and how many bytes of the input it stands for (0 where that is unknown)."""

    text: str
    input_bytes: float


def read_documents(inputs: list[Input], text_key: str, split: str) -> Iterator[Document]:
    """The inputs' documents, in order. Empty documents are left out.

    Args:
        text_key: the key (JSONL) or column (parquet, Arrow, Hugging Face) that holds the text.
        split: the split of a Hugging Face dataset.

    Raises:
        UserError: naming the file or line that cannot be read, or the keys or columns where `text_key` is
            missing.
    """
    for item in inputs:
        for document in _read(item, text_key, split):
            if document.text:
                yield document


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
    check_dataset(f"input '{item}'", item.name)
    from datasets import load_dataset

    try:
        rows = load_dataset(item.name, item.config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: datasets that are scripts
        raise UserError(f"input '{item}' (split {split}): {' '.join(str(error).split())}") from None
    for number, row in enumerate(rows):
        _check_column(text_key, list(row), item)
        yield Document(_as_text(row[text_key], f"{item}, row {number}: {text_key!r}"), 0)


def _check_column(text_key: str, names: list[str], item: Input) -> None:
    if text_key not in names:
        raise UserError(f"{item}: no column {text_key!r} among {sorted(names)}; see --text-key")


def _as_text(value: object, where: str) -> str:
    """The value of a column as text; null becomes an empty document."""
    if value is None:
        return ""
    if isinstance(value, str):
        return check_unicode(value, where)
    raise UserError(f"{where} is {type(value).__name__}, not text; see --text-key")
