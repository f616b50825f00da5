"""The error for mistakes of the user, and how commands report it."""

import os
import sys
import time
from collections.abc import Callable

from mdmscale.system.library_output import library_output

# Launchers end all ranks as soon as one has failed, so the other ranks give rank 0 time to report.
SECONDS_FOR_RANK_0 = 10.0
LONGEST_LINE = 5000  # characters of a problem that are shown: a file may name its tensors by megabytes


class UserError(ValueError):
    """A mistake in the user's input. The message names the option or file, its value, and how to correct it.

    Commands print it without a traceback, one line per problem, and exit with status 2.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # not joined, so that unpickling restores each problem
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank; else the name of its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main`. On a `UserError` report it on stderr and return status 2.

    Rank 0 reports for all ranks. The other ranks wait, because the launcher ends them once rank 0 has failed.
    A rank that is still running after the wait is the only one with the problem. It reports the problem
    itself, with its rank number.

    What libraries print does not reach the terminal, except before an error that is no one's mistake: then it
    may say why.
    """
    with library_output() as log:
        try:
            return main()
        except UserError as error:
            _report(error, int(os.environ.get("RANK", "0")))
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception:
            sys.stderr.write(log.kept())
            raise


def _report(error: UserError, rank: int) -> None:
    if rank > 0:
        time.sleep(SECONDS_FOR_RANK_0)
    for problem in error.problems:
        shown = problem if len(problem) <= LONGEST_LINE else f"{problem[:LONGEST_LINE]}..."
        print(f"error: {shown}" + (f" (on rank {rank})" if rank else ""), file=sys.stderr, flush=True)
