"""The model's answers to the harness's requests, by what was asked: in memory, and on disk to continue from.

An interrupted evaluation begins again in the harness, but the model answers only what it had not answered.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from mdmscale.system.partial_output import PartialOutput


class Answers:
    """Answers by key. With a partial output: those on disk, of all ranks; new ones go there too."""

    def __init__(self, partial: PartialOutput | None = None) -> None:
        self._partial = partial
        finished = {} if partial is None else partial.finished()
        self._values: dict[int, Any] = {place[0]: values["answer"] for place, values in finished.items()}
        self.num_found = len(self._values)

    def __contains__(self, key: int) -> bool:
        return key in self._values

    def __getitem__(self, key: int) -> Any:
        return self._values[key]

    def add(self, new: Mapping[int, Any]) -> None:
        """Keep answers: JSON values."""
        self._values.update(new)
        if self._partial is not None:
            self._partial.append({(key,): {"answer": value} for key, value in new.items()})


def key_of(*asked: Any) -> int:
    """64 bits that stand for what is asked, JSON values that decide the answer."""
    return int.from_bytes(blake2b(json.dumps(asked).encode(), digest_size=8).digest())
