"""Read tables row by row: CSV and TSV, parquet, Arrow, and Hugging Face datasets.

Rows are counted from 0, as `datasets` counts them; lines from 1, as editors do. Where all columns are read,
nulls are left out at any depth: Arrow writes one wherever another row has the key.
"""

import csv
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mdmscale.data.preparation.inputs import HubDataset
from mdmscale.data.preparation.jsonl import Record
from mdmscale.data.preparation.reading import LONGEST_LINE, opened
from mdmscale.models.hub import check_dataset
from mdmscale.system.errors import UserError, first_line

_ROWS_AT_ONCE = 1024
_SHOWN_COLUMNS = 10
# What every stream of Arrow ends with. Without it the file may have been cut between two batches.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_csv(path: Path, delimiter: str, columns: list[str] | None) -> Iterator[Record]:
    """The rows of a CSV file, whose first line names the columns. All values are texts.

    Raises:
        UserError: naming file and line, where a row has another number of fields than the first line has, or
            a quotation mark is not closed.
    """
    csv.field_size_limit(LONGEST_LINE)  # of Python's module; its default of 128 KiB is less than a document
    with opened(path) as file:
        rows = csv.reader((line for _, line in file.lines()), delimiter=delimiter, strict=True)
        line, names = 1, None
        while (row := _next_row(rows, path)) is not None:
            if row and names is None:
                names = _checked_header(row, path, columns)
            elif row and names is not None:
                if len(row) != len(names):
                    raise UserError(
                        f"{path}:{line}: {len(row)} fields, but the first line names {len(names)} columns"
                    )
                yield Record(dict(zip(names, row, strict=True)), f"{path}:{line}", file.consumed())
            line = rows.line_num + 1


def _next_row(rows: Any, path: Path) -> list[str] | None:
    try:
        return next(rows, None)
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: {error}; see the quotation marks") from None


def _checked_header(names: list[str], path: Path, columns: list[str] | None) -> list[str]:
    if len(set(names)) < len(names):
        raise UserError(f"{path}:1: the first line, which names the columns, has a name twice")
    check_columns(columns, names, path)
    return names


def read_parquet(path: Path, columns: list[str] | None) -> Iterator[Record]:
    """The rows of a parquet file; only `columns` are read if they are given.

    Raises:
        UserError: where the file is damaged or lacks one of the columns.
    """
    import pyarrow.parquet

    check_not_empty(path)
    with _named(path, "not a readable parquet file"):
        file = pyarrow.parquet.ParquetFile(path)
    check_columns(columns, file.schema_arrow.names, path)
    share = path.stat().st_size / max(1, file.metadata.num_rows)
    with _named(path, "damaged"):
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
        yield from _rows_of_batches(batches, path, columns, share)


def read_arrow(path: Path, columns: list[str] | None) -> Iterator[Record]:
    """The rows of an Arrow stream (as `datasets` writes them) or Arrow file.

    Raises:
        UserError: where the file is damaged, cut short, or lacks one of the columns.
    """
    import pyarrow

    check_not_empty(path)
    with _named(path, "cannot be read"):
        source = pyarrow.memory_map(str(path))
    with source, _named(path, "damaged or cut short"):
        try:
            stream = pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            yield from _read_arrow_file(source, path, columns)
            return
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        if source.read() != _END_OF_STREAM:
            raise UserError(f"{path}: cut short: the mark that ends an Arrow stream is missing")
        source.seek(0)
        stream = pyarrow.ipc.open_stream(source)
        check_columns(columns, stream.schema.names, path)
        yield from _rows_of_batches(stream, path, columns)


def _read_arrow_file(source: Any, path: Path, columns: list[str] | None) -> Iterator[Record]:
    import pyarrow

    with _named(path, "neither an Arrow stream nor an Arrow file"):
        file = pyarrow.ipc.open_file(source)
    check_columns(columns, file.schema.names, path)
    batches = (file.get_batch(number) for number in range(file.num_record_batches))
    yield from _rows_of_batches(batches, path, columns)


def _rows_of_batches(
    batches: Iterable[Any], path: Path, columns: list[str] | None, share: float | None = None
) -> Iterator[Record]:
    """The rows of record batches, each of which stands for `share` bytes of the file (else its own size)."""
    number = 0
    for batch in batches:
        wanted = batch if columns is None else batch.select(columns)
        # Arrow trusts the offsets in a file, and would read other memory where they are wrong.
        wanted.validate(full=True)
        num_bytes = batch.nbytes / max(1, len(batch)) if share is None else share
        arrays = dict(zip(wanted.schema.names, wanted.columns, strict=True))
        for row in range(len(wanted)):
            where = f"{path}, row {number}"
            try:
                values = {name: array[row].as_py() for name, array in arrays.items()}
            except (ValueError, OverflowError) as error:  # such as a date beyond those of Python
                raise UserError(f"{where}: cannot be read: {first_line(error)}") from None
            yield Record(values if columns else _without_nulls(values), where, num_bytes)
            number += 1


def read_hub(item: HubDataset, split: str, columns: list[str] | None) -> Iterator[Record]:
    """The rows of a Hugging Face dataset, streamed.

    Raises:
        UserError: where the dataset, the split or one of the columns is missing, or cannot be read.
    """
    check_dataset(f"input '{item}'", item.name)
    from datasets import load_dataset

    number = 0
    try:
        for row in load_dataset(item.name, item.config, split=split, streaming=True):
            check_columns(columns, list(row), item)
            yield Record(row if columns else _without_nulls(row), f"{item}, row {number}", 0)
            number += 1
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: datasets that are scripts
        place = f" after {number} rows" if number else ""
        reason = " ".join(str(error).split())
        raise UserError(f"input '{item}' (split {split}){place}: {reason}") from None


def check_columns(columns: list[str] | None, names: list[str], where: object) -> None:
    """Check that `columns` are among `names`.

    Raises:
        UserError: naming those there are.
    """
    for column in columns or ():
        if column not in names:
            raise UserError(f"{where}: no column {column!r} among {shown_names(names)}; see --text-key")


def shown_names(names: Iterable[str]) -> str:
    """The sorted names of columns or keys, for messages: not more and not longer than a line can hold."""
    ordered = sorted(names)
    shown = [reprlib.repr(name) for name in ordered[:_SHOWN_COLUMNS]]
    return f"[{', '.join(shown)}{', ...' if len(ordered) > _SHOWN_COLUMNS else ''}]"


def check_not_empty(path: Path) -> None:
    """Refuse a file of 0 bytes, which no writer of a binary format leaves.

    Raises:
        UserError: where it is empty or missing.
    """
    with opened(path) as file:
        if not file.file.read(1):
            raise UserError(f"{path}: is empty (0 bytes)")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list) and value and type(value[0]) is not int:
        return [_without_nulls(item) for item in value]
    return value


@contextmanager
def _named(path: Path, problem: str) -> Iterator[None]:
    """Errors of Arrow as a UserError that names the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: {problem}: {first_line(error)}") from None
