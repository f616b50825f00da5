"""Read documents of text one at a time, from text files and from the rows of data sets."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mdmscale.data.preparation.formats import holds_records, read_records
from mdmscale.data.preparation.inputs import Input
from mdmscale.data.preparation.reading import opened
from mdmscale.data.preparation.tables import shown_names
from mdmscale.system.errors import UserError
from mdmscale.system.unicode import check_utf8


@dataclass(frozen=True)
class Document:
    """A text, and how many bytes of the input it stands for (0 where that is unknown)."""

    text: str
    input_bytes: float
    where: str  # the file, and the line or row, for messages


def read_documents(inputs: list[Input], text_key: str, split: str) -> Iterator[Document]:
    """The inputs' documents, in order. Empty documents are left out.

    Args:
        text_key: the key (JSON) or column (CSV, parquet, Arrow, Hugging Face) that holds the text.
        split: the split of a Hugging Face dataset.

    Raises:
        UserError: naming the file or line that cannot be read, or the keys or columns where `text_key` is
            missing.
    """
    for item in inputs:
        for document in _read_rows(item, text_key, split) if holds_records(item) else _read_text(item):
            if document.text:
                yield document


def _read_text(item: Input) -> Iterator[Document]:
    assert isinstance(item, Path)  # datasets have rows
    with opened(item) as file:
        raw = file.file.read()
        num_bytes = file.consumed()
    if (place := raw.find(b"\0")) >= 0:
        raise UserError(
            f"{item}: not text, as it has a zero byte at {place}; leave it out, convert it to UTF-8, or give "
            "it the ending of its format"
        )
    try:
        yield Document(raw.decode("utf-8-sig"), num_bytes, str(item))
    except UnicodeDecodeError as error:
        raise UserError(f"{item}: not UTF-8 at byte {error.start}; convert it or leave it out") from None


def _read_rows(item: Input, text_key: str, split: str) -> Iterator[Document]:
    for record in read_records(item, split, [text_key]):
        if text_key not in record.values:
            raise UserError(
                f"{record.where}: no key {text_key!r} among {shown_names(record.values)}; see --text-key"
            )
        text = _as_text(record.values[text_key], f"{record.where}: {text_key!r}")
        yield Document(text, record.num_bytes, record.where)


def _as_text(value: object, where: str) -> str:
    """The value of a key or column as text; null becomes an empty document."""
    if value is None:
        return ""
    if isinstance(value, str):
        return check_utf8(value, where)
    raise UserError(f"{where} is {type(value).__name__}, not text; see --text-key")
