"""Facts that a user should know but that stop nothing: one line each, on stderr."""

import os
import sys


def say(notice: str) -> None:
    """Print a line on stderr. In a job of several ranks only rank 0 prints, as all ranks find the same."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {notice}", file=sys.stderr, flush=True)
