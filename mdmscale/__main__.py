"""`python -m mdmscale`: the console script, where it is not on PATH."""

import sys

from mdmscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
