"""Open tokenizers by folder or hub id."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from mdmscale.models.hub import check_local, labelled, opening_arguments, why_not_opened
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_json
from mdmscale.system.links import check_links

TEMPLATES_FOLDER = "additional_chat_templates"  # each file in it is one more chat template, by name
# What tokenizers keep in files, whatever their kind; a folder without any of these has no tokenizer.
_FILES = ("*token*", "vocab*", "*.model", "tekken.json", "*.tiktoken")


def check_tokenizer_folder(option: str, source: str | Path) -> None:
    """Refuse a missing folder, and one without a tokenizer's files. Needs neither torch nor transformers.

    `option` is what `source` was given for.

    Raises:
        UserError: naming a folder in `source` that has a tokenizer, if there is one, or a link out of it.
    """
    check_local(option, source)
    folder = Path(source)
    check_links(folder / TEMPLATES_FOLDER)
    if not folder.is_dir() or any(file.is_file() for name in _FILES for file in folder.glob(name)):
        return
    inside = next(folder.glob("*/tokenizer.json"), None)
    mend = f"give {inside.parent}" if inside else "give the folder of a tokenizer"
    raise UserError(f"{labelled(option, source)}: no tokenizer in this folder (no tokenizer.json); {mend}")


def load_tokenizer(name_or_path: str | Path, option: str = "tokenizer") -> Any:
    """Open the tokenizer of a folder or hub id.

    `option` is what it was given for, as errors name it.

    A folder whose tokenizer_config.json names no model's own class is opened as its tokenizer.json says.
    AutoTokenizer would look at the config.json beside it and turn the tokenizer of a qwen2 model into Qwen's.

    Raises:
        UserError: where there is no tokenizer, it is damaged, or it needs code of its own.
    """
    check_tokenizer_folder(option, name_or_path)
    arguments = opening_arguments(option, name_or_path)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # takes seconds

    is_generic = _declared_class(Path(name_or_path)) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    opener = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    try:
        return opener.from_pretrained(name_or_path, trust_remote_code=False, **arguments)
    except Exception as error:  # transformers and tokenizers raise many types for damaged files
        folder = Path(name_or_path)
        lacks = " (no tokenizer.json)" if folder.is_dir() and not (folder / "tokenizer.json").exists() else ""
        raise UserError(
            f"{labelled(option, name_or_path)}: no tokenizer there, or a damaged one{lacks}: "
            f"{why_not_opened(error)}"
        ) from None


def num_token_ids(tokenizer: Any) -> int:
    """One more than the largest token id: the number of rows that a table by id needs.

    Ids may have gaps, so it can be more than `len(tokenizer)`, which counts tokens.
    """
    # A vocabulary of 100,000 takes 30 ms to walk, and SFT asks for each sample. Tokens are never removed.
    return _num_token_ids(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _num_token_ids(tokenizer: Any, num_tokens: int) -> int:
    return max(tokenizer.get_vocab().values()) + 1


def _declared_class(folder: Path) -> str | None:
    try:
        return read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        return None
