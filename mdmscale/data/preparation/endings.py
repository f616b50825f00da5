"""What the ending of a file's name says: its format, and how it is compressed. Case does not count."""

from pathlib import Path

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
LINE_ENDINGS = (".jsonl", ".jsonlines", ".ndjson")
COMPRESSED_INSIDE = (".parquet", ".arrow")
RECORD_ENDINGS = (*LINE_ENDINGS, ".json", ".csv", ".tsv", *COMPRESSED_INSIDE)
DATA_ENDINGS = (".txt", *RECORD_ENDINGS)  # what is read of a folder


def ending(path: Path) -> str:
    """The ending that names the format, in small letters and without that of a compression."""
    return (path.with_suffix("") if compression_of(path) else path).suffix.lower()


def compression_of(path: Path) -> str | None:
    """The ending that says how the file is compressed; None where it is not."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else None
