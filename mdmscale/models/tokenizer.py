"""Tokenizers: opening one by name, and training one that gives every text back unchanged.

SentencePiece learns the vocabulary; `tokenizers` runs it. Pieces keep their spaces as spaces (SentencePiece
writes U+2581, which then could not be told from a U+2581 in the text), so no normaliser is needed and
decode(encode(text)) == text for every text: what is not in the vocabulary is spelt in bytes.
"""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError

_SPACE = "\u2581"
_UNKNOWN, _EOS, _MASK = "<unk>", "</s>", "<|mask|>"
_MAX_TRAINING_LINES = 4_000_000


def load_tokenizer(name_or_path: str | Path) -> Any:
    """Open a tokenizer folder or hub id.

    A folder whose tokenizer names no model's class is opened as its tokenizer.json says: AutoTokenizer would
    look at the config.json beside it, and rebuild the tokenizer of a qwen2 model as Qwen's.

    Raises:
        UserError: where there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_generic = _declared_class(Path(name_or_path)) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    opener = PreTrainedTokenizerFast if is_generic else AutoTokenizer
    try:
        return opener.from_pretrained(name_or_path)
    except Exception as error:  # whatever the damage raises in transformers or tokenizers
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"tokenizer {str(name_or_path)!r}: no tokenizer folder or hub id: {reason}") from None


def _declared_class(folder: Path) -> str | None:
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "tokenizer_class"
        )
    except (OSError, ValueError, AttributeError):
        return None


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a BPE tokenizer of exactly `vocab_size` tokens on `texts` and save it as an HF folder.

    EOS (`</s>`, also the padding) and the mask token (`<|mask|>`) are set; there is no BOS. Runs of spaces
    are tokens, each digit is one, and a newline or tab never joins another character.

    Raises:
        UserError: where `vocab_size` does not suit the texts.
    """
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab, merges = _bpe_tables(_train_sentencepiece(texts, vocab_size))
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=_UNKNOWN))
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=_UNKNOWN,
        eos_token=_EOS,
        pad_token=_EOS,
        mask_token=_MASK,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


def _train_sentencepiece(texts: Iterable[str], vocab_size: int) -> Any:
    """Train on lines; returns the SentencePieceProcessor."""
    import sentencepiece

    model = io.BytesIO()
    # The seed picks the lines where there are more than _MAX_TRAINING_LINES.
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in re.split(r"[\t\r\n]", text) if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            unk_piece=_UNKNOWN,
            eos_piece=_EOS,
            control_symbols=[_MASK],
            user_defined_symbols=["\n", "\t"],
            input_sentence_size=_MAX_TRAINING_LINES,
            shuffle_input_sentence=True,
            max_sentence_length=2**20,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1]
        raise UserError(
            f"--train-tokenizer {vocab_size}: choose another size or give more text: {reason}"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _bpe_tables(processor: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary and merges that make a merge-list BPE do what SentencePiece's does.

    SentencePiece joins any two neighbours whose union is a piece, the best-scored first: hence every split of
    a piece into two pieces is a merge, ranked by the piece's score. Byte pieces and special tokens take no
    part.
    """
    ids = range(processor.vocab_size())
    special = {i for i in ids if processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i)}
    pieces = [processor.id_to_piece(i) for i in ids]
    names = [piece if i in special else piece.replace(_SPACE, " ") for i, piece in enumerate(pieces)]
    ordinary = {names[i]: processor.get_score(i) for i in ids if i not in special}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(ordinary, key=lambda name: -ordinary[name])
        for cut in range(1, len(piece))
        if piece[:cut] in ordinary and piece[cut:] in ordinary
    ]
    return {name: i for i, name in enumerate(names)}, merges
