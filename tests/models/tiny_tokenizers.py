"""Tiny tokenizers of unusual kinds: a mask token that is an ordinary word, ids with gaps."""

import json

from models.tiny_folder import CORPUS, EOS_TOKEN, make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def word_tokenizer(vocab: dict[str, int], **special: str) -> PreTrainedTokenizerFast:
    """Words between white space, with the ids given. The first word is EOS and stands for unknown ones."""
    eos = next(iter(vocab))
    backend = Tokenizer(models.WordLevel(vocab, unk_token=eos))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **special)


def gap_tokenizer(num_tokens: int = 600, largest: int = 70_000) -> PreTrainedTokenizerFast:
    """`num_tokens` tokens with the ids 0, 1, ..., but the last of them, "far", has the id `largest`."""
    words = {EOS_TOKEN: 0, **{f"w{number}": number for number in range(1, num_tokens - 1)}, "far": largest}
    return word_tokenizer(words)


def ordinary_mask_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose mask token is the ordinary token for " step"."""
    backend = make_tokenizer().backend_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS_TOKEN, mask_token="\u0120step")


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """BPE of the Llama 2 kind, with U+2581 for spaces, whose mask token is the ordinary one for " step"."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    alphabet = sorted({character for line in CORPUS for character in line})
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", EOS_TOKEN, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    values = json.loads(backend.to_str())
    values["added_tokens"] = values["added_tokens"][:2]  # byte pieces are ordinary tokens
    backend = Tokenizer.from_str(json.dumps(values))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token=EOS_TOKEN, mask_token="\u2581step"
    )
