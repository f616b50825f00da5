"""Which files of a folder are data, and which of them belong to a split.

A folder of `datasets.save_to_disk` says so itself: state.json names the files, and dataset_dict.json the
splits. Other files that lie there are caches of `.map`. Elsewhere names tell, as in the repositories of the
Hugging Face hub: `test-00000-of-00001.parquet`, `data/validation.jsonl`. What no name gives to a split
belongs to `train`, which is the default; so nobody trains on a test set without having asked for it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mdmscale.data.preparation.endings import COMPRESSIONS, DATA_ENDINGS, ending
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.links import check_link, is_plain_name

DEFAULT_SPLIT = "train"
_STATE, _SPLITS, _INFO = "state.json", "dataset_dict.json", "dataset_info.json"
_NO_DATA = {_STATE, _SPLITS, _INFO, "dataset_infos.json"}  # they describe a dataset, beside its files
_CACHE = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")  # a result of .map
# The words by which `datasets` tells the splits of a repository's files, between any of -._ and digits.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words}
_SHARD = re.compile(r"(?:.*-)?([^-]+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class _Found:
    file: Path
    split: str | None  # None: nothing says it


def data_files(folder: Path, suffixes: list[str], split: str) -> tuple[list[Path], Counter[str]]:
    """The files of a folder's `split`, sorted by path, and how many files of other splits are left out.

    Args:
        suffixes: endings of the files that are read, with or without that of a compression after them.

    Raises:
        UserError: where no file has such an ending, the folder has other splits than this, or a link leads
            out of the folder.
    """
    try:
        found = list(_walk(folder, folder, suffixes, split))
    except OSError as error:
        raise UserError(f"input '{folder}': {error.filename}: cannot be read: {error.strerror}") from None
    for each in found:
        check_link(each.file, folder)
    mine = [each.file for each in found if (each.split or DEFAULT_SPLIT) == split]
    others = Counter(
        each.split or "no named split" for each in found if (each.split or DEFAULT_SPLIT) != split
    )
    if not found:
        raise UserError(
            f"input '{folder}': no file in this folder ends with {' '.join(suffixes)}; see --suffix"
        )
    if not mine:
        raise UserError(
            f"input '{folder}': has no file of the split {split!r}, but of {', '.join(sorted(others))}; "
            "see --split"
        )
    return mine, others


def _walk(folder: Path, root: Path, suffixes: list[str], split: str) -> Iterator[_Found]:
    if (folder / _SPLITS).is_file():
        for name in _named_splits(folder):  # other splits count once each; their files are not looked for
            files = _saved_files(folder / name) if name == split else [folder / name]
            yield from (_Found(file, name) for file in files)
    elif (folder / _STATE).is_file() and "_data_files" in read_object(folder / _STATE):
        yield from (_Found(file, split_of(file.relative_to(root))) for file in _saved_files(folder))
    else:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue  # of git, of the hub's downloads, of macOS
            if path.is_dir() and not path.is_symlink():
                yield from _walk(path, root, suffixes, split)
            elif path.is_file() and _is_data(path, suffixes):
                named = ending(path) in DATA_ENDINGS  # test_x.py is source code, and no test set
                yield _Found(path, split_of(path.relative_to(root)) if named else None)


def _is_data(path: Path, suffixes: list[str]) -> bool:
    name = path.name.lower()
    endings = tuple(suffix.lower() for suffix in suffixes)
    whole = [name, *(name.removesuffix(end) for end in COMPRESSIONS if name.endswith(end))]
    return (
        path.name not in _NO_DATA
        and not _CACHE.fullmatch(path.name)
        and any(each.endswith(endings) for each in whole)
    )


def _named_splits(folder: Path) -> list[str]:
    splits = read_object(folder / _SPLITS).get("splits")
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise UserError(f"{folder / _SPLITS}: is damaged: its splits are no list of names")
    _check_names(splits, folder / _SPLITS)
    return splits


def _saved_files(folder: Path) -> list[Path]:
    """The files of one saved dataset, in the order of its rows."""
    entries = read_object(folder / _STATE).get("_data_files")
    try:
        names = [entry["filename"] for entry in entries]  # type: ignore[union-attr]
    except (TypeError, KeyError):
        raise UserError(f"{folder / _STATE}: is damaged: its _data_files name no files") from None
    _check_names(names, folder / _STATE)
    files = [folder / name for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file, though {_STATE} beside it names it")
    return files


def _check_names(names: list[str], index: Path) -> None:
    for name in names:
        if not is_plain_name(name):
            raise UserError(f"{index}: names {name!r}, which is not in its folder")


def split_of(path: Path) -> str | None:
    """The split that a file's path within its folder names: `train_sft-00000-of-00003.parquet` or
    `data/test.csv`; None where it names none."""
    if (shard := _SHARD.match(path.name)) and _split_of_words(shard[1]):
        return shard[1]  # the name of the split, whole: a dataset may have train_sft beside train_gen
    for part in reversed(path.parts):
        if split := _split_of_words(part):
            return split
    return None


def _split_of_words(name: str) -> str | None:
    words = re.split(r"[-._ \d]+", name.lower())
    return next((_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD), None)
