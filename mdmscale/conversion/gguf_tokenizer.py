"""The tokenizer of a GGUF file, through transformers' own reader.

A GGUF file holds tokens and merges, but of the rules that cut text into words only a name. transformers
takes GPT-2's rules for names that it does not know, and SentencePiece's space in front whatever the file
says. Text is then cut in other ways than in the model's training: "\\n\\n1" of SmolLM2 becomes three tokens
instead of two. So the rules are set here, and a name without rules is refused.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from mdmscale.conversion.gguf_file import GgufFile, alone
from mdmscale.conversion.tokenizer_files import drop_tokens_from
from mdmscale.system.errors import UserError, first_line

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # values of tokenizer.ggml.token_type
MEND = (
    "put the original tokenizer.json and tokenizer_config.json beside it in a folder, and import the folder"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_gguf_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the file's tokenizer to `folder`.

    Raises:
        UserError: where the file has no tokenizer, or one whose rules are not known.
    """
    from transformers import AutoTokenizer

    if "tokenizer.ggml.tokens" not in file.fields:
        raise UserError(f"{file.path}: has no tokenizer (tokenizer.ggml.tokens)")
    try:
        with alone(file.path) as lone:
            tokenizer = AutoTokenizer.from_pretrained(
                lone, gguf_file=file.path.name, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # transformers and tokenizers raise many types
        raise UserError(f"{file.path}: its tokenizer cannot be read: {first_line(error)}") from None
    _set_rules(tokenizer.backend_tokenizer, file)
    _check_tokens(tokenizer, file)
    tokenizer.save_pretrained(folder)
    _drop_unused(folder / "tokenizer.json", file)
    # transformers adds GPT-2's <|endoftext|> to every byte-level vocabulary.
    drop_tokens_from(folder, len(file.fields["tokenizer.ggml.tokens"]))


def _set_rules(backend: Any, file: GgufFile) -> None:
    """Set how text is cut into words before the merges apply."""
    match file.fields.get("tokenizer.ggml.model"):
        case "gpt2":
            _set_byte_level_rules(backend, file)
        case "llama":
            _set_sentencepiece_rules(backend, file.fields.get("tokenizer.ggml.add_space_prefix", True))
        case other:
            raise UserError(f"{file.path}: tokenizer.ggml.model = {other!r} is not supported; {MEND}")


def _set_byte_level_rules(backend: Any, file: GgufFile) -> None:
    """The rules of the original tokenizer.json of each family, under the name that llama.cpp gives them."""
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    match name := file.fields.get("tokenizer.ggml.pre"):
        case "gpt-2":
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "smollm" | "starcoder" | "refact":
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        case "llama-bpe" | "llama3" | "llama-v3":
            words = pre_tokenizers.Split(Regex(WORDS % "{1,3}"), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
            backend.model.ignore_merges = True  # a word that is a token is that token
        case "qwen2":
            words = pre_tokenizers.Split(Regex(WORDS % ""), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
            backend.normalizer = normalizers.NFC()
        case _:
            raise UserError(
                f"{file.path}: tokenizer.ggml.pre = {name!r}: it is not known how this tokenizer cuts text "
                f"into words; {MEND}"
            )


def _set_sentencepiece_rules(backend: Any, adds_space: bool) -> None:
    """As tokenizer.json of Llama 2: spaces become ▁, and each text between special tokens begins with one."""
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces] if adds_space else [spaces])
    backend.pre_tokenizer = None
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)


def _check_tokens(tokenizer: Any, file: GgufFile) -> None:
    """Check that the special tokens have their ids and stay whole in a text.

    Raises:
        UserError: naming the first that does not.
    """
    tokens = file.fields["tokenizer.ggml.tokens"]
    types = file.fields.get("tokenizer.ggml.token_type", [])
    for token_id, (text, kind) in enumerate(zip(tokens, types, strict=False)):
        if kind not in (CONTROL, USER_DEFINED):
            continue
        found = tokenizer.encode(text, add_special_tokens=False)
        if found != [token_id]:
            raise UserError(
                f"{file.path}: the special token {text!r} has the id {token_id}, but transformers makes it "
                f"{found}; {MEND}"
            )


def _drop_unused(path: Path, file: GgufFile) -> None:
    """Take tokens such as [PAD151900] out of tokenizer.json: llama.cpp names every spare embedding row so.

    The rows stay. As in the original folder, no token has their ids.
    """
    types = file.fields.get("tokenizer.ggml.token_type", [])
    if UNUSED not in types:
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {text: number for text, number in vocab.items() if types[number] != UNUSED}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
