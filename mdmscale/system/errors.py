"""The error for a user's mistake, and how every command reports it."""

import os
import sys
import time
from collections.abc import Callable

# Launchers end every rank as soon as one has failed, so the others give rank 0 time to report.
SECONDS_FOR_RANK_0 = 5.0


class UserError(ValueError):
    """A mistake in what the user gave. It names the option or file, its value, and how to correct it.

    Commands print it without a traceback, one line per problem, and exit with status 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # not joined, so that unpickling restores each problem
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main`; report a `UserError` on stderr and return status 2.

    Rank 0 reports for all ranks. The others wait for the launcher to end them, which it does once rank 0 has
    failed. A rank that still runs after the wait met the problem alone, so it reports it with its number.
    """
    try:
        return main()
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank > 0:
            time.sleep(SECONDS_FOR_RANK_0)
        for problem in error.problems:
            print(f"error: {problem}" + (f" (on rank {rank})" if rank else ""), file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
