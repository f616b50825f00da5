"""The error that is the user's to mend, and how every command reports it."""

import os
import sys
import time
from collections.abc import Callable

# Launchers end every rank as soon as one has failed.
SECONDS_FOR_RANK_0 = 5.0


class UserError(ValueError):
    """A mistake in what the user gave: names the option or file, its value and the mend.

    Commands print it without a traceback, one line a problem, and exit with status 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # as they are, so that it survives pickling
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main`; report a `UserError` on stderr and return status 2.

    Rank 0 speaks for all, and its launcher then ends the others, who wait for that; one that is still there
    afterwards met the problem alone and says so.
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
