"""Encode documents to token ids in parallel. The order of the results does not depend on the workers."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any

import numpy as np

from mdmscale.data.preparation.documents import Document
from mdmscale.models.mask_spelling import MaskInText, without_mask
from mdmscale.models.prompts import opening_ids
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError

_BATCH_CHARACTERS = 2**20
_BATCH_DOCUMENTS = 1024
_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class EncodedBatch:
    """The token ids of some documents, one after the other, each with BOS (if any) and EOS."""

    token_ids: np.ndarray  # int32 [tokens]
    lengths: np.ndarray  # int64 [documents]
    text_bytes: int  # the texts' length in UTF-8
    input_bytes: float  # how much of the input they and the dropped ones stand for
    num_dropped: int = 0  # documents left out, because they hold the mask token
    num_reencoded: int = 0  # documents in which other tokens spell the mask token

    def documents(self) -> list[np.ndarray]:
        """The token ids of each document."""
        return np.split(self.token_ids, np.cumsum(self.lengths)[:-1]) if len(self.lengths) else []


def encode_documents(
    documents: Iterable[Document], tokenizer: str, workers: int, mask_in_text: MaskInText = "error"
) -> Iterator[EncodedBatch]:
    """Encode `documents` with the tokenizer of that name or folder, and add EOS at the end of each.

    Where the tokenizer opens texts with BOS, documents begin with it, as prompts do. Special tokens written
    in a text are encoded as plain text. So a text holds the mask token only if that is an ordinary word of
    the tokenizer, and `mask_in_text` says what then happens; see mask_spelling.py.

    Raises:
        UserError: where the tokenizer has no EOS token, or under `error` a document holds the mask token.
    """
    if load_tokenizer(tokenizer).eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer!r} has no EOS token, but documents must end with one; set its eos_token"
        )
    batches = _batches(documents)
    if workers == 1:
        yield from (_encode(tokenizer, mask_in_text, batch) for batch in batches)
        return
    # spawn, as forking a process in which tokenizer threads run can deadlock
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker)
    try:
        encode = partial(_encode, tokenizer, mask_in_text)
        yield from _in_order(partial(pool.submit, encode), batches, workers * _BATCHES_AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    submit: Callable[[list[Document]], Future[EncodedBatch]], batches: Iterator[list[Document]], limit: int
) -> Iterator[EncodedBatch]:
    """The results in the order of `batches`, of which at most `limit` are read ahead."""
    waiting: deque[Future[EncodedBatch]] = deque()
    for batch in batches:
        waiting.append(submit(batch))
        if len(waiting) >= limit:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer_name: str, mask_in_text: MaskInText, batch: list[Document]) -> EncodedBatch:
    tokenizer = _tokenizer(tokenizer_name)
    texts = [document.text for document in batch]
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    opening, eos = opening_ids(tokenizer), tokenizer.eos_token_id
    ids = [np.empty(0, dtype=np.int32)]
    num_dropped = num_reencoded = text_bytes = 0
    for document, row in zip(batch, encoded.input_ids, strict=True):
        clean = without_mask([row], tokenizer, mask_in_text, document.where)
        if clean is None:
            num_dropped += 1
            continue
        num_reencoded += clean[0] != row
        text_bytes += len(document.text.encode())
        ids.append(np.asarray([*opening, *clean[0], eos], dtype=np.int32))
    return EncodedBatch(
        token_ids=np.concatenate(ids),
        lengths=np.asarray([len(row) for row in ids[1:]], dtype=np.int64),
        text_bytes=text_bytes,
        input_bytes=sum(document.input_bytes for document in batch),
        num_dropped=num_dropped,
        num_reencoded=num_reencoded,
    )


_tokenizer: Callable[[str], Any] = lru_cache(maxsize=1)(load_tokenizer)


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
