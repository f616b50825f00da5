"""dataset.json beside prepared shards says with which tokenizer they were made; another is refused.

The ids of one tokenizer are other words in another, so such a run would train on nonsense and not notice.
"""

from pathlib import Path
from typing import Any

from mdmscale.config.data import DataSection
from mdmscale.data.shards import find_prefixes
from mdmscale.data.source import path_list
from mdmscale.models.tokenizer_identity import identity_differences, tokenizer_identity
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object

DATASET_FILE = "dataset.json"
IDENTITY = "tokenizer_identity"


def record_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What dataset.json says about the tokenizer of the shards beside it."""
    return {IDENTITY: tokenizer_identity(tokenizer)}


def check_tokenizer(data: DataSection, tokenizer: Any) -> None:
    """Refuse prepared shards of `data.path` that were made with another tokenizer than `tokenizer`.

    Shards without a record are accepted, such as Megatron's own.

    Raises:
        UserError: naming both tokenizers and what differs; or where a record is damaged.
    """
    name = str(tokenizer.name_or_path)
    folders = dict.fromkeys(prefix.parent for prefix in find_prefixes(path_list(data)))
    problems = []
    for path in (folder / DATASET_FILE for folder in folders):
        if not path.is_file():
            continue
        dataset = read_object(path)
        recorded = dataset.get(IDENTITY)
        if not isinstance(recorded, dict):
            continue
        differences = identity_differences(recorded, tokenizer, with_template=data.kind == "sft")
        if differences:
            problems.append(
                f"data.path: {path} says that these data were made with the tokenizer "
                f"{_name(dataset, path)!r}, but the run's, {name!r}, has {', '.join(differences)}; "
                f"prepare the data again with it (tools/prepare_data.py --tokenizer {name})"
            )
    if problems:
        raise UserError(*problems)


def _name(dataset: dict[str, Any], path: Path) -> str:
    """The tokenizer that dataset.json names. One that was trained with the data lies beside it."""
    name = str(dataset.get("tokenizer"))
    beside = path.parent / name
    return str(beside) if beside.is_dir() else name
