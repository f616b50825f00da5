"""The rows of a file, read as the ending of its name says. Text and SFT data share these readers."""

from collections.abc import Iterator

from mdmscale.data.preparation.endings import (
    COMPRESSED_INSIDE,
    COMPRESSIONS,
    RECORD_ENDINGS,
    compression_of,
    ending,
)
from mdmscale.data.preparation.inputs import HubDataset, Input
from mdmscale.data.preparation.jsonl import Record, read_json, read_jsonl
from mdmscale.data.preparation.tables import read_arrow, read_csv, read_hub, read_parquet
from mdmscale.system.errors import UserError


def holds_records(item: Input) -> bool:
    """Whether it is read row by row; any other file is text."""
    return isinstance(item, HubDataset) or ending(item) in RECORD_ENDINGS


def read_records(item: Input, split: str, columns: list[str] | None = None) -> Iterator[Record]:
    """The rows of a file, or of a Hugging Face dataset's `split`, in order.

    Args:
        columns: those that are needed; other columns of a table are not read, and a table without one of them
            is refused. JSON objects are whole in any case.

    Raises:
        UserError: naming the file, and the line or row where there is one, that cannot be read.
    """
    if isinstance(item, HubDataset):
        return read_hub(item, split, columns)
    if ending(item) in COMPRESSED_INSIDE and compression_of(item):
        raise UserError(
            f"{item}: of compressed files ({' '.join(COMPRESSIONS)}), text, JSON and CSV are read; unpack it"
        )
    match ending(item):
        case ".parquet":
            return read_parquet(item, columns)
        case ".arrow":
            return read_arrow(item, columns)
        case ".csv":
            return read_csv(item, ",", columns)
        case ".tsv":
            return read_csv(item, "\t", columns)
        case ".json":
            return read_json(item)
        case _:
            return read_jsonl(item)
