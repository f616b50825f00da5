"""Train a tokenizer that gives every text back unchanged.

SentencePiece learns the vocabulary, and the `tokenizers` library runs it. SentencePiece writes a space as
U+2581, which a U+2581 in the text would be mistaken for, so the tokenizer's pieces hold plain spaces instead.
It then needs no normaliser, and decode(encode(text)) == text for every text: characters that are not in the
vocabulary become byte tokens.
"""

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError

_SPACE = "\u2581"
_UNKNOWN, _EOS, _MASK = "<unk>", "</s>", "<|mask|>"
_MAX_TRAINING_LINES = 4_000_000


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train a BPE tokenizer of exactly `vocab_size` tokens on `texts` and save it as a Hugging Face folder.

    It has an EOS token (`</s>`, also the padding) and a mask token (`<|mask|>`), but no BOS. A run of spaces
    can be one token. Every digit is a token by itself, and so are newlines and tabs.

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
    """Train on the texts' lines; returns the SentencePieceProcessor."""
    import sentencepiece

    model = io.BytesIO()
    # Where there are more than _MAX_TRAINING_LINES, SentencePiece draws that many with this seed.
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
    """The vocabulary and the merges with which a BPE of merge lists encodes as SentencePiece does.

    SentencePiece joins any two neighbours whose union is a piece, the best-scored union first. Hence every
    split of a piece into two pieces is a merge, ranked by the piece's score. Byte pieces and special tokens
    are never merged.
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
