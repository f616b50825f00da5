"""Keeps what the harness prints to what its user needs: warnings as notices, bars only on a terminal."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from mdmscale.system.notices import say

# A warning for those who write a task's file: which of its values are defaults.
_FOR_AUTHORS = "is not. using default"


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Say each warning of the harness once; show its bars, and those of datasets, only on a terminal."""
    from datasets.utils.logging import disable_progress_bar
    from tqdm import tqdm
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    logger, begin = logging.getLogger("lm_eval"), tqdm.__init__
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate, logger.level = [_Notices()], False, logging.WARNING
    # None: where stderr is no terminal. The harness builds each rank's requests with a bar of its own.
    is_hidden = None if os.environ.get("RANK", "0") == "0" else True
    _set_init(tqdm, partialmethod(begin, disable=is_hidden))
    try:
        yield
    finally:
        logger.handlers, logger.propagate, logger.level = before
        _set_init(tqdm, begin)


def _set_init(kind: type, init: Any) -> None:
    setattr(kind, "__init__", init)  # noqa: B010  (mypy refuses the assignment)


class _Notices(logging.Handler):
    """Says each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self._said and _FOR_AUTHORS not in text:
            self._said.add(text)
            say(f"lm-eval: {text}")
