"""Print samples as text, with what is trained in colour, so that it can be seen before any training.

Without colours (no terminal, or NO_COLOR) brackets enclose what is trained.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from mdmscale.diffusion.sample import Sample
from mdmscale.system.errors import UserError

OPEN, CLOSE = "⟦", "⟧"
_TRAINED, _GIVEN, _SPECIAL = "bold green", "dim", "magenta"
_REPEATED = 4  # from so many of the same special token on, one is printed with their number
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}  # control characters


def print_samples(samples: Iterable[tuple[str, Sample]], tokenizer: Any, console: Console) -> None:
    """Print samples, each under its title with its number of tokens and of trained ones; then the sums.

    Raises:
        UserError: where there are none.
    """
    is_coloured = console.is_terminal and not console.no_color
    num_samples = num_tokens = num_trained = 0
    for title, sample in samples:
        length, trained = len(sample.token_ids), int(sample.eligible.sum())
        head = Text(f"── {title}: {length:,} tokens, {trained:,} trained", style="bold")
        console.print(head, soft_wrap=True)
        console.print(sample_text(sample, tokenizer, is_coloured=is_coloured), soft_wrap=True)
        num_samples += 1
        num_tokens += length
        num_trained += trained
    if not num_samples:
        raise UserError("no sample to show: the data holds none")
    share = num_trained / max(1, num_tokens)
    how = "in bold green" if is_coloured else f"between {OPEN} and {CLOSE}"
    noun = "sample" if num_samples == 1 else "samples"
    summary = f"── {num_samples:,} {noun}, {num_tokens:,} tokens; {num_trained:,} ({share:.0%}) are trained"
    console.print(Text(f"{summary}: what is {how}", style="bold"), soft_wrap=True)


def sample_text(sample: Sample, tokenizer: Any, *, is_coloured: bool) -> Text:
    """A sample as text: trained tokens in colour or in brackets, special tokens visible."""
    text, ids = Text(), sample.token_ids.tolist()
    for is_trained, run in groupby(range(len(ids)), key=lambda place: bool(sample.eligible[place])):
        places = list(run)
        style = _TRAINED if is_trained else _GIVEN
        marked = is_trained and not is_coloured
        text.append(OPEN if marked else "")
        for piece, is_special in _pieces(ids, places[0], places[-1] + 1, tokenizer):
            text.append(piece.translate(_VISIBLE), style=f"{style} {_SPECIAL}" if is_special else style)
        text.append(CLOSE if marked else "")
    return text if is_coloured else Text(text.plain)


def _pieces(ids: list[int], start: int, stop: int, tokenizer: Any) -> Iterable[tuple[str, bool]]:
    """The tokens `start`, ..., `stop` - 1 as (text, whether it is a special token's)."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def kind(place: int) -> int | None:
        return ids[place] if ids[place] in special else None

    for token, run in groupby(range(start, stop), key=kind):
        places = list(run)
        if token is None:
            yield _decoded(ids, places[0], places[-1] + 1, tokenizer), False
        elif len(places) < _REPEATED:
            yield tokenizer.convert_ids_to_tokens(token) * len(places), True
        else:
            yield f"{tokenizer.convert_ids_to_tokens(token)} (x{len(places)})", True


def _decoded(ids: list[int], start: int, stop: int, tokenizer: Any) -> str:
    """Ordinary tokens as text, decoded behind those before, as many tokenizers drop a space in front."""
    before, whole = (_decode(ids[:end], tokenizer) for end in (start, stop))
    return whole[len(before) :] if whole.startswith(before) else _decode(ids[start:stop], tokenizer)


def _decode(ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
