"""The error that is the user's to mend, and how every command reports it."""

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in what the user gave: names the option or file, its value and the mend.

    Commands print it without a traceback, one line a problem, and exit with status 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main`; report a `UserError` on stderr (rank 0 only) and return status 2."""
    try:
        return main()
    except UserError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
