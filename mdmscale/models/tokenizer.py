"""Open tokenizers by folder or hub id."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError


def load_tokenizer(name_or_path: str | Path) -> Any:
    """Open the tokenizer of a folder or hub id.

    A folder whose tokenizer_config.json names no model's own class is opened as its tokenizer.json says.
    AutoTokenizer would look at the config.json beside it and turn the tokenizer of a qwen2 model into Qwen's.

    Raises:
        UserError: where there is no tokenizer, or it is damaged.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_generic = _declared_class(Path(name_or_path)) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    opener = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    try:
        return opener.from_pretrained(name_or_path)
    except Exception as error:  # transformers and tokenizers raise many types for damaged files
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer {str(name_or_path)!r}: no tokenizer folder or hub id: {reason}") from None


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
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "tokenizer_class"
        )
    except (OSError, ValueError, AttributeError):
        return None
