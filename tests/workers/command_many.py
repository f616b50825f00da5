"""Run the training command once for each argument list of a JSON list, in one process: argv[1] names it.

Prints a JSON list with each run's status, stdout, stderr, and whether torch had been imported by its end.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

from mdmscale.system.errors import run_command
from mdmscale.train_command import main as train_main


def run(arguments: list[str]) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    status: object
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run_command(lambda: train_main(arguments))
        except SystemExit as leaving:  # how argparse ends
            status = leaving.code
    values = {"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}
    return {**values, "imported_torch": "torch" in sys.modules}


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.loads(Path(sys.argv[1]).read_text())]))
