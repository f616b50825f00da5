"""`convert`: inspect, import and export model folders."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import kind_if_any, no_such_folder

EXAMPLES = """\
examples:
  # what is in this folder?
  python tools/convert.py inspect runs/quickstart

  # start from LLaDA or from an autoregressive model; then train with model.path=models/llada
  python tools/convert.py import downloads/LLaDA-8B-Base models/llada
  python tools/convert.py import downloads/Qwen2.5-7B models/qwen --dtype bf16
  python tools/convert.py import downloads/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2

  # export: an ordinary Hugging Face folder, or one for LLaDA's own code
  python tools/convert.py export runs/quickstart exported/quickstart --to hf
  python tools/convert.py export runs/sft --checkpoint 1000 exported/sft --to llada
"""
FAMILIES = ("auto", "arm", "llada", "dream", "diffullama")
TARGETS = ("hf", "llada", "dream", "arm")


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="convert",
        description="Inspect, import and export model folders, one tensor at a time.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="summarise a folder or GGUF file")
    inspect.add_argument(
        "path", type=Path, metavar="PATH", help="model folder, GGUF file, run folder or checkpoint"
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object instead of a table")

    importing = commands.add_parser("import", help="make an mdmscale model folder from another model family")
    importing.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="folder with config.json and weights, or GGUF file; a LoRA adapter beside the weights is merged",
    )
    importing.add_argument("destination", type=Path, metavar="DST", help="folder to write")
    importing.add_argument(
        "--family",
        choices=FAMILIES,
        default="auto",
        help="model family of SRC (default: as its config.json says)",
    )
    importing.add_argument(
        "--logit-shift",
        choices=("auto", "on", "off"),
        default="auto",
        help="predict position i from hidden state i - 1 (default: on for all families except llada)",
    )
    importing.add_argument(
        "--mask-token",
        metavar="ID|TEXT",
        help="mask token (default: the declared one, else an unused reserved token, else a new one)",
    )
    _add_common(importing)

    exporting = commands.add_parser("export", help="make a folder that other code reads")
    exporting.add_argument(
        "source", type=Path, metavar="SRC", help="mdmscale's model folder, a run folder or a checkpoint"
    )
    exporting.add_argument("destination", type=Path, metavar="DST", help="folder to write")
    exporting.add_argument("--to", choices=TARGETS, required=True, help="format of DST")
    exporting.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="export this checkpoint of a run (default: the model in hf/, else the newest checkpoint)",
    )
    exporting.add_argument(
        "--averaged",
        action="store_true",
        help="export the average of the weights, of a run that trained with train.ema_decay",
    )
    exporting.add_argument(
        "--lora",
        choices=("merge", "keep"),
        default="merge",
        help="merge a LoRA adapter into the weights, or keep it apart in DST/adapter, of a finished run from "
        "the checkpoint of its hf/ (default: merge)",
    )
    _add_common(exporting)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=("keep", "fp32", "bf16"),
        default="keep",
        help="precision of the weights in DST (default: keep; for a GGUF file that is fp32)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it is a model folder")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Raises:
        UserError: naming the file or option at fault.
    """
    arguments = vars(build_parser().parse_args(argv))
    try:
        return _run(arguments.pop("command"), arguments)
    except OSError as error:  # such as a full disk, or a folder without read permission
        raise UserError(f"{error.filename or arguments.get('destination')}: {error.strerror}") from None


def _run(command: str, arguments: dict[str, Any]) -> int:
    _check_source(command, arguments["path" if command == "inspect" else "source"])
    if command == "inspect":
        from mdmscale.conversion.inspecting import inspect_folder

        summary = inspect_folder(arguments["path"])
        if arguments["json"]:
            print(json.dumps(summary, indent=2))
        else:
            _print_summary(str(arguments["path"]), summary)
        return 0
    source, destination = arguments.pop("source"), arguments.pop("destination")
    if command == "import":
        from mdmscale.conversion.importing import ImportOptions, import_folder

        summary = import_folder(source, destination, ImportOptions(**arguments))
    else:
        from mdmscale.conversion.exporting import ExportOptions, export_folder

        summary = export_folder(source, destination, ExportOptions(**arguments))
    _print_summary(str(destination), summary)
    return 0


def _check_source(command: str, source: Path) -> None:
    """Refuse a source that is not there, or needs no import, before anything slow is imported."""
    if not source.exists() and source.suffix != ".gguf":  # of a file, the reader says it better
        raise UserError(no_such_folder(source))
    kind = kind_if_any(source)
    if command == "import" and kind in ("run", "checkpoint"):
        raise UserError(f"{source}: is a {kind} of mdmscale; import is for models of others, so export it")


def _print_summary(title: str, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    notes = summary.pop("notes", [])
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in _flattened(summary):
        table.add_row(name, value)
    Console(file=sys.stdout).print(table, markup=False)
    for note in notes:
        print(f"note: {note}")


def _flattened(summary: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in summary.items():
        label = prefix + name.replace("_", " ")
        if isinstance(value, dict):
            rows += _flattened(value, f"{label}: ")
        elif isinstance(value, bool):
            rows.append((label, "yes" if value else "no"))
        elif isinstance(value, int):
            rows.append(
                (label, f"{value:,}" if name in ("parameters", "bytes", "consumed_tokens") else str(value))
            )
        elif value is not None:
            rows.append((label, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
