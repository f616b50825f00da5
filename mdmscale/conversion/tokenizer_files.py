"""Copy tokenizer files; change only the mask token, and drop references to code in the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mdmscale.models.tokenizer import TEMPLATES_FOLDER, load_tokenizer
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_json
from mdmscale.system.links import check_links

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# Tokenizers whose own code only wraps a library class. mdmscale runs no code of a folder.
LIBRARY_CLASSES = {"DreamTokenizer": "Qwen2Tokenizer"}
SPECIAL = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files that exist. A class with code in the folder becomes the library's class.

    Raises:
        UserError: where a link leads out of the folder.
    """
    check_links(source)
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    check_links(source / TEMPLATES_FOLDER)
    if templates := sorted((source / TEMPLATES_FOLDER).glob("*.jinja")):
        (target / TEMPLATES_FOLDER).mkdir()
        for template in templates:
            shutil.copyfile(template, target / TEMPLATES_FOLDER / template.name)

    def use_library_class(config: dict[str, Any]) -> None:
        config.pop("auto_map", None)
        name = config.get("tokenizer_class")
        if name in LIBRARY_CLASSES:
            config["tokenizer_class"] = LIBRARY_CLASSES[name]

    _edit(target / "tokenizer_config.json", use_library_class)


def name_mask_token(folder: Path, text: str) -> None:
    """Declare the existing token `text` as the mask token."""

    def say(config: dict[str, Any]) -> None:
        config["mask_token"] = text

    _edit(folder / "tokenizer_config.json", say, create=True)


def add_mask_token(folder: Path, text: str, token_id: int) -> None:
    """Add `text` as a special token with this id, and declare it as the mask token."""
    if not (folder / "tokenizer.json").is_file():
        load_tokenizer(folder).save_pretrained(folder)  # writes tokenizer.json from the other files
    token = {"content": text, **SPECIAL}

    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer.setdefault("added_tokens", []).append({"id": token_id, **token})

    def declare(config: dict[str, Any]) -> None:
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"][str(token_id)] = token

    _edit(folder / "tokenizer.json", add)
    _edit(folder / "tokenizer_config.json", declare)
    _edit(folder / "added_tokens.json", lambda ids: ids.update({text: token_id}))
    name_mask_token(folder, text)


def drop_tokens_from(folder: Path, num_rows: int) -> None:
    """Remove the added tokens with ids from `num_rows` on: a model of `num_rows` rows cannot embed them."""
    dropped: set[str] = set()

    def drop(tokenizer: dict[str, Any]) -> None:
        dropped.update(token["content"] for token in tokenizer["added_tokens"] if token["id"] >= num_rows)
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] < num_rows]

    def forget(config: dict[str, Any]) -> None:
        decoder = config.get("added_tokens_decoder", {})
        for token_id in [token_id for token_id in decoder if int(token_id) >= num_rows]:
            del decoder[token_id]
        _forget_mask(config, dropped)

    def forget_ids(ids: dict[str, Any]) -> None:
        for text in dropped & ids.keys():
            del ids[text]

    _edit(folder / "tokenizer.json", drop)
    _edit(folder / "tokenizer_config.json", forget)
    _edit(folder / "special_tokens_map.json", lambda config: _forget_mask(config, dropped))
    _edit(folder / "added_tokens.json", forget_ids)


def open_copied(folder: Path) -> Any | None:
    """Open the copied tokenizer as users of the folder will; None where there is no tokenizer.

    Raises:
        UserError: where the opened tokenizer gives its added tokens other ids than the files do.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    tokenizer = load_tokenizer(folder)
    declared: dict[str, int] = {}

    def collect(config: dict[str, Any]) -> None:
        decoder = config.get("added_tokens_decoder", {})
        declared.update({token["content"]: int(token_id) for token_id, token in decoder.items()})

    _edit(folder / "tokenizer_config.json", collect)
    vocab = tokenizer.get_vocab()
    for text, token_id in declared.items():
        if vocab.get(text) != token_id:
            raise UserError(
                f"tokenizer_config.json: {text!r} has the id {token_id}, but {vocab.get(text)} in the opened "
                "tokenizer; the source's vocabulary files are incomplete"
            )
    return tokenizer


def check_mask_token(folder: Path, text: str, token_id: int) -> None:
    """Check that the written tokenizer has the mask token.

    Raises:
        UserError: where it does not.
    """
    tokenizer = open_copied(folder)
    assert tokenizer is not None
    if (tokenizer.mask_token, tokenizer.mask_token_id) != (text, token_id):
        raise UserError(
            f"{folder}: its tokenizer has {tokenizer.mask_token!r} ({tokenizer.mask_token_id}) as mask token "
            f"instead of {text!r} ({token_id}); choose another with --mask-token"
        )


def _forget_mask(config: dict[str, Any], dropped: set[str]) -> None:
    mask = config.get("mask_token")
    if (mask["content"] if isinstance(mask, dict) else mask) in dropped:
        del config["mask_token"]


def _edit(path: Path, change: Callable[[dict[str, Any]], None], create: bool = False) -> None:
    """Apply `change` to a JSON object on disk, if the file exists or `create` is set."""
    if not path.is_file() and not create:
        return
    try:
        content = read_json(path) if path.is_file() else {}
        change(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path.name}: is damaged: {error}") from None
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
