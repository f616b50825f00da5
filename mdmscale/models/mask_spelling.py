"""Clean token ids without the mask token, where that is an ordinary word.

A mask token is mostly a special one, which no text encodes to. Some models have taken an ordinary token for
it (DiffuLLaMA: 811 of Llama 2). Then a text with that word holds masks before anything is masked: training
would take clean positions for masked ones, and would teach the model to predict its mask.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from mdmscale.system.errors import UserError

MaskInText = Literal["error", "drop", "reencode"]
MASK_IN_TEXT: tuple[MaskInText, ...] = ("error", "drop", "reencode")


def without_mask(
    pieces: Sequence[Sequence[int]], tokenizer: Any, rule: MaskInText, where: str
) -> list[list[int]] | None:
    """The token ids of a text's pieces (a prompt and a response, say) without the mask token.

    Args:
        rule: what happens to a text that holds it. `error` refuses the text, `drop` leaves it out (None),
            and `reencode` spells the mask token with other tokens; the decoded text stays the same. Where no
            other tokens spell it, the text is left out.

    Raises:
        UserError: naming `where`, with the number of mask tokens, under `error`.
    """
    mask = tokenizer.mask_token_id
    num_masks = 0 if mask is None else sum(list(ids).count(mask) for ids in pieces)
    if not num_masks:
        return [list(ids) for ids in pieces]
    if rule == "error":
        raise UserError(
            f"{where}: holds the mask token ({tokenizer.mask_token!r}, id {mask}) as {num_masks} of its "
            f"{sum(map(len, pieces))} tokens, but training puts it in place of the tokens to predict; "
            "tools/prepare_data.py --mask-in-text reencode spells it with other tokens, drop leaves such "
            "texts out"
        )
    spelling = _spelling(tokenizer, mask) if rule == "reencode" else None
    if spelling is None:
        return None
    spelled = [[new for old in ids for new in (spelling if old == mask else (old,))] for ids in pieces]
    return spelled if _decode(tokenizer, spelled) == _decode(tokenizer, pieces) else None


@lru_cache(maxsize=4)
def _spelling(tokenizer: Any, mask: int) -> tuple[int, ...] | None:
    """The fewest other tokens, and of these the longest first, whose pieces joined are the mask's piece."""
    vocab = tokenizer.get_vocab()
    added = tokenizer.get_added_vocab()  # among them the special tokens
    piece = tokenizer.convert_ids_to_tokens(mask)
    best: list[tuple[int, ...] | None] = [None] * len(piece) + [()]  # of the piece from each place on
    for start in reversed(range(len(piece))):
        for stop in range(len(piece), start, -1):
            part, rest = piece[start:stop], best[stop]
            if rest is None or part in added or vocab.get(part, mask) == mask:
                continue
            if best[start] is None or len(rest) + 1 < len(best[start] or ()):
                best[start] = (vocab[part], *rest)
    return best[0]


def _decode(tokenizer: Any, pieces: Sequence[Sequence[int]]) -> str:
    ids = [token_id for piece in pieces for token_id in piece]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
