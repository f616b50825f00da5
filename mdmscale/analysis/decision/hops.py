"""The task of the fine-tuning study: follow two tables over several hops.

A table maps every number below `base`^2 to another one. A question gives a first number, and a table for each
hop; the answer is the number after each hop. Numbers are written as two digits of `base`. Each table's name
stands before the number that it gives, so that a hop always looks the same:

    3 1  A _ _  B _ _  B _ _  A _ _  A _ _  B _ _       (base 4, 6 hops: 8 given tokens, 12 of the answer)

A model learns one pair of tables until it is competent. Fine-tuning then gives it few questions about another
pair: it must keep how to follow tables and replace what they say. An answer is right only as a whole, so that
it shows what noise in training does: one wrong entry spoils every later hop.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from mdmscale.diffusion.sample import Sample
from mdmscale.diffusion.uniforms import Stream, generator


class QuestionSet(IntEnum):
    """The sets of questions. They differ in their draws, so that none has a question of another one but by
    chance (of the `base`^2 2^hops possible questions)."""

    PRETRAINING = 0
    COMPETENCE = 1  # about the tables of pretraining
    TRAINING = 2
    TUNING = 3
    HELD_OUT = 4


@dataclass(frozen=True)
class HopsTask:
    """seed: of tables and questions. is_new: about the second pair of tables, that of fine-tuning."""

    is_new: bool
    base: int = 4
    hops: int = 6
    seed: int = 0

    @property
    def vocab_size(self) -> int:
        """Digits, two names of tables, and the mask token."""
        return self.base + 3

    @property
    def is_answer(self) -> np.ndarray:
        """Which tokens are the answer, bool [length]."""
        places = np.arange(self.length)
        return (places >= 2) & (places % 3 != 2)

    @property
    def length(self) -> int:
        return 2 + 3 * self.hops

    def tables(self) -> np.ndarray:
        """The two tables, int64 [2, numbers]: permutations, so that no number is a dead end."""
        draws = generator(self.seed, Stream.QUESTION, 0, step=int(self.is_new))
        return np.stack([draws.permutation(self.base**2) for _ in range(2)])

    def questions(self, which: QuestionSet, first: int, num: int) -> np.ndarray:
        """Questions `first` and later of a set with their answers, int64 [num, length]."""
        tables = self.tables()
        rows = np.empty((num, self.length), dtype=np.int64)
        for row, index in zip(rows, range(first, first + num), strict=True):
            draws = generator(self.seed, Stream.QUESTION, 1 + which, step=index)
            number, names = int(draws.integers(self.base**2)), draws.integers(2, size=self.hops)
            row[:2] = divmod(number, self.base)
            for hop, table in enumerate(names):
                number = int(tables[table, number])
                row[2 + 3 * hop : 5 + 3 * hop] = [self.base + table, *divmod(number, self.base)]
        return rows

    def samples(self, which: QuestionSet, num: int) -> list[Sample]:
        """The first questions of a set as samples, whose answers may be masked."""
        return [Sample(row, self.is_answer) for row in self.questions(which, 0, num)]
