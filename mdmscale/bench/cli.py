"""`bench`: what a step costs, by how its loss is computed and where its time goes."""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from mdmscale.bench import report
from mdmscale.bench.measure import Bench, Result
from mdmscale.bench.parts import Parts, measure_parts, shape_of
from mdmscale.bench.paths import PATHS
from mdmscale.bench.paths import Path as LossPath
from mdmscale.bench.profile import write_profile
from mdmscale.bench.work import Sizes, make_model
from mdmscale.errors import UserError
from mdmscale.models.flops import count_flops, peak_flops
from mdmscale.tables import make_console

EPILOG = """examples:
  python tools/bench.py --vocab 32000
  python tools/bench.py --paths masked,pair --parts --json bench.json
  python tools/bench.py --vocab 126464 --hidden 2048 --layers 16 --heads 16 --length 4096 --dtype bf16
  python tools/bench.py --paths masked --profile traces

Paths take turns, round by round, on the same model and samples; times are medians, and ratios those of single
rounds. Memory is what a step takes above the model and its batch: tensors on CUDA, the process's resident
memory on Linux. GFLOP/s counts what must be done: matrix products of real tokens, all pairs of a row, and the
head where tokens are masked; MFU is that of the device's peak, where it is known.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Time and memory of ways to compute the loss, and of a step's parts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = parser.add_argument_group("sizes")
    for name, default, meaning in (
        ("vocab", 126464, "rows of the head"),
        ("hidden", 256, "width of the model"),
        ("layers", 4, "decoder layers"),
        ("heads", 8, "query heads"),
        ("key-heads", None, "key and value heads (default: as many)"),
        ("length", 512, "tokens of a sample; of the longest, where they differ"),
        ("batch", 4, "samples of a step"),
    ):
        said = meaning if default is None else f"{meaning} (default: {default})"
        sizes.add_argument(f"--{name}", type=int, default=default, metavar="N", help=said)
    sizes.add_argument(
        "--prompt", type=float, default=0.25, metavar="X", help="share never masked (default: 0.25)"
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="(default: fp32)")
    sizes.add_argument(
        "--device", choices=("cpu", "cuda"), default=default_device, help="(default: cuda if any)"
    )
    parser.add_argument(
        "--paths",
        default=",".join(PATHS),
        metavar="P,...",
        help=f"which of {', '.join(PATHS)} (default: all)",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all paths (default: 5)")
    parser.add_argument("--parts", action="store_true", help="also a step's parts with their floors")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="write a torch profiler trace a path")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write. Returns the exit status."""
    arguments = build_parser().parse_args(argv)
    sizes = sizes_of(arguments)
    paths = [find_path(name) for name in arguments.paths.split(",") if name]
    console = make_console()
    console.print(machine(sizes))
    model = make_model(sizes)
    console.print(
        f"{sum(each.numel() for each in model.parameters()):,} parameters, {sizes.dtype}, {sizes.batch} x "
        f"{sizes.length} tokens, vocabulary {sizes.vocab:,}\n"
    )
    if arguments.profile is not None:
        for path in paths:
            console.print(write_profile(Bench(model, path, sizes), arguments.profile))
        return 0
    results = measure([Bench(model, path, sizes) for path in paths], arguments.rounds, console)
    flops = count_flops(shape_of(sizes))
    report.print_paths(results, flops, peak_flops(sizes.device), console)
    parts: Parts | None = None
    if arguments.parts:
        parts = measure_parts(model, sizes, arguments.rounds)
        report.print_parts(parts, console)
    if arguments.json is not None:
        described = {"machine": machine(sizes), "sizes": {**vars(sizes), "device": str(sizes.device)}}
        values = {**described, **report.to_json(results, flops, parts)}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")
    return 0


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes asked for.

    Raises:
        UserError: for sizes that no model has.
    """
    for name in ("vocab", "hidden", "layers", "heads", "length", "batch", "rounds"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} {getattr(arguments, name)}: give at least 1")
    key_heads = arguments.key_heads or arguments.heads
    if arguments.heads % key_heads or arguments.hidden % (2 * arguments.heads):
        raise UserError(
            f"--hidden {arguments.hidden} --heads {arguments.heads} --key-heads {key_heads}: heads must be a "
            "multiple of the key heads, and the width an even multiple of the heads"
        )
    if arguments.vocab < 2 or not 0 <= arguments.prompt < 1:
        raise UserError(
            f"--vocab {arguments.vocab} --prompt {arguments.prompt}: give 2 tokens or more, a share below 1"
        )
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    names = ("vocab", "hidden", "layers", "heads", "length", "batch", "dtype", "prompt")
    values = {name: getattr(arguments, name) for name in names}
    return Sizes(**values, key_heads=key_heads, device=torch.device(arguments.device))


def find_path(name: str) -> LossPath:
    """The path of that name.

    Raises:
        UserError: where there is none.
    """
    if name not in PATHS:
        raise UserError(f"--paths: there is no {name!r}; choose from {', '.join(PATHS)}")
    return PATHS[name]


def measure(benches: list[Bench], rounds: int, console: Console) -> list[Result]:
    """Warm each path up, then time them in turn."""
    for bench in track(benches, "first steps", console=console, transient=True):
        bench.warm_up()
    for _ in track(range(rounds), "rounds", console=console, transient=True):
        for bench in benches:
            bench.time()
    return [bench.result for bench in benches]


def machine(sizes: Sizes) -> str:
    """One line on what this was measured on."""
    if sizes.device.type == "cuda":
        device = torch.cuda.get_device_name(sizes.device)
    else:
        device = f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
