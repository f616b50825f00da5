"""What identifies a tokenizer: whatever decides which token ids a text becomes, and what an id means.

Data carry it (data/tokenizer_record.py) and so do checkpoints (training/identity.py), so that neither is used
with another tokenizer. It comes from the opened tokenizer, not from its files: the same tokenizer may be
stored in several ways.
"""

import hashlib
import json
from typing import Any

# Scripts, digits, spaces, lines, code and marks that tokenizers split in different ways.
_PROBE = (
    "The quick brown fox's 1234567 jumps; it WON'T fall 3.14% ...\n\n  def f(x):\n\treturn x**2  # naïve\r\n"
    "Größe A\u030angström e\u0301 \ufb01 \uff12 \u00a0 «да, мир» 東京タワー 안녕 مرحبا नमस्ते 🙂👍🏽 "
    "http://a.b/c?d=e&f_g <s> [X]"
)


def tokenizer_identity(tokenizer: Any, num_ids: int | None = None) -> dict[str, Any]:
    """The identity of an opened tokenizer, as values for JSON.

    `token_ids` is a hash of the first `num_ids` ids; None: of all but a mask token at the end, because an
    import adds one and the data stay valid. `around_text` is what the tokenizer itself puts around a text.
    """
    vocab = tokenizer.get_vocab()
    if num_ids is None:
        last = max(vocab.values())
        num_ids = last if tokenizer.mask_token_id == last else last + 1
    template = tokenizer.chat_template
    return {
        "num_ids": num_ids,
        "token_ids": _hash_of_ids(tokenizer, vocab, num_ids),
        "around_text": [int(token_id) for token_id in tokenizer.encode("")],
        "eos_token_id": tokenizer.eos_token_id,
        "chat_template": None if template is None else _digest(json.dumps(template, sort_keys=True)),
    }


def identity_differences(recorded: dict[str, Any], tokenizer: Any, with_template: bool) -> list[str]:
    """In what `tokenizer` differs from the one whose identity was recorded; empty where they agree.

    It may have more tokens, after those that the record knows.
    """
    mine = tokenizer_identity(tokenizer, recorded.get("num_ids"))
    differences = []
    if mine["token_ids"] != recorded.get("token_ids", mine["token_ids"]):
        differences.append("other token ids")
    for name, what in (("around_text", "tokens put around a text"), ("eos_token_id", "EOS")):
        if mine[name] != recorded.get(name, mine[name]):
            differences.append(f"{what} {mine[name]} instead of {recorded[name]}")
    if with_template and mine["chat_template"] != recorded.get("chat_template", mine["chat_template"]):
        differences.append("another chat template")
    return differences


def _hash_of_ids(tokenizer: Any, vocab: dict[str, int], num_ids: int) -> str:
    """A hash of the first `num_ids` tokens, of how they merge, and of the ids of a text.

    The text shows what the settings around the vocabulary do. They are not hashed themselves, because classes
    of transformers state the same behaviour in different ways.
    """
    tokens = sorted((token_id, token) for token, token_id in vocab.items() if token_id < num_ids)
    probe = tokenizer(_PROBE, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
    return _digest(json.dumps([tokens, _merges(tokenizer), list(probe)]))


def _merges(tokenizer: Any) -> Any:
    """The merges of a BPE or the scores of a unigram model, which decide between ways to split a word."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = json.loads(backend.to_str())["model"]
    return model.get("merges") or (model["vocab"] if isinstance(model.get("vocab"), list) else None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
