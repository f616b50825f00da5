"""The options of `bench`: sizes, paths and files."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from mdmscale.analysis.bench.growth import SWEPT
from mdmscale.analysis.bench.kernels import KERNELS, installed
from mdmscale.analysis.bench.path_bench import FreedMemory
from mdmscale.analysis.bench.paths import LOSS_PATHS, LossPath
from mdmscale.analysis.bench.work import Sizes
from mdmscale.models.compiling import can_compile
from mdmscale.system.errors import UserError

EPILOG = """examples:
  python tools/bench.py --vocab 32000
  python tools/bench.py --paths masked,pair --parts --json bench.json
  python tools/bench.py --vocab 126464 --hidden 2048 --layers 16 --heads 16 --length 4096 --dtype bf16
  python tools/bench.py --paths masked,indexed --sweep vocab=8000,32000,126464 --figure growth.png
  python tools/bench.py --paths masked --profile traces

The paths run in turn, round by round, on the same model and samples. Times are medians over rounds; ratios
are medians of the ratios of single rounds. Memory is the peak of a step above the model and its batch:
tensors on CUDA, the resident memory of the process on Linux. GFLOP/s counts only necessary operations: matrix
products of real tokens, attention over all pairs of a row, and the head at masked positions. MFU is their
share of the device's peak, where that is known.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.py",
        description="Measure time and memory of ways to compute the loss, and of the parts of a step.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = parser.add_argument_group("sizes")
    for name, default, meaning in (
        ("vocab", 126464, "rows of the head"),
        ("hidden", 256, "width of the model"),
        ("layers", 4, "decoder layers"),
        (
            "heads",
            None,
            "query heads (default: heads 64 wide, or the next width that divides the hidden size)",
        ),
        ("key-heads", None, "key and value heads (default: as many as query heads)"),
        ("length", 512, "tokens of a sample, or of the longest where lengths differ"),
        ("batch", 4, "samples of a step"),
    ):
        text = meaning if default is None else f"{meaning} (default: {default})"
        sizes.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)
    sizes.add_argument(
        "--prompt",
        type=float,
        default=0.25,
        metavar="X",
        help="share of a sample that is never masked (default: 0.25)",
    )
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="type of weights and activations (default: fp32)",
    )
    sizes.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default=default_device,
        help="where to run (default: cuda if available)",
    )
    parser.add_argument(
        "--paths",
        metavar="P,...",
        help=f"some of {', '.join(path.name for path in LOSS_PATHS)}, on CUDA also "
        f"{', '.join(path.name for path, _ in KERNELS)} (default: all that can be compiled here)",
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="rounds over all paths (default: 5)"
    )
    parser.add_argument(
        "--parts",
        action="store_true",
        help="also measure the parts of a step with their floors, with compiled layers as well",
    )
    parser.add_argument(
        "--sweep",
        metavar="NAME=N,N,...",
        help=f"measure at several values of one of {', '.join(SWEPT)}",
    )
    parser.add_argument(
        "--freed-memory",
        choices=get_args(FreedMemory),
        default="own",
        help="what happens to memory that a step frees on the CPU: all paths keep it for the next step "
        "(kept) or return it to the system (returned), or each does as the program that it is from: mdmscale "
        "keeps it, the others do what glibc does (own, the default)",
    )
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the sweep to this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="write a torch profiler trace of each path"
    )
    return parser


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """The sizes that the options give.

    Raises:
        UserError: for sizes that no model can have.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    if arguments.rounds < 1:
        raise UserError(f"--rounds {arguments.rounds}: give at least 1")
    names = ("vocab", "hidden", "layers", "heads", "key_heads", "length", "batch", "dtype", "prompt")
    values = {name: getattr(arguments, name) for name in names}
    sizes = Sizes(**values, device=torch.device(arguments.device))
    check_sizes(sizes)
    return sizes


def check_sizes(sizes: Sizes) -> None:
    """Refuse sizes that no model can have.

    Raises:
        UserError: naming the options.
    """
    for name in ("vocab", "hidden", "layers", "heads", "key_heads", "length", "batch"):
        if getattr(sizes, name) is not None and getattr(sizes, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(sizes, name)}: give at least 1")
    if sizes.num_heads % sizes.num_key_heads or sizes.hidden % (2 * sizes.num_heads):
        given = f"--hidden {sizes.hidden} --heads {sizes.num_heads} --key-heads {sizes.num_key_heads}"
        raise UserError(
            f"{given}: heads must be a multiple of key heads, and the hidden size an even multiple of heads"
        )
    if sizes.vocab < 2 or not 0 <= sizes.prompt < 1:
        raise UserError(
            f"--vocab {sizes.vocab} --prompt {sizes.prompt}: give 2 tokens or more, and a share below 1"
        )


def paths_of(arguments: argparse.Namespace) -> list[LossPath]:
    """The paths that the options name.

    Raises:
        UserError: for a path that does not exist, or cannot run on this device.
    """
    device = torch.device(arguments.device)
    here = {path.name: path for path in [*LOSS_PATHS, *installed(device)]}
    if arguments.paths is None:
        compiles = can_compile(device)
        names = [
            name for name, path in here.items() if compiles or not (path.compiles or path.head == "fused")
        ]
    else:
        names = [name for name in arguments.paths.split(",") if name]
    problems = []
    for name in names:
        if name in here:
            continue
        if name in (path.name for path, _ in KERNELS):
            problems.append(
                f"--paths: {name} needs a CUDA device, and its package: cut-cross-entropy or liger-kernel"
            )
        else:
            problems.append(f"--paths: there is no {name!r}; choose from {', '.join(here)}")
    if problems or not names:
        raise UserError(*problems or ["--paths: none is named"])
    return [here[name] for name in names]


def check_files(arguments: argparse.Namespace) -> None:
    """Refuse files that could not be written at the end, and options that would have no effect.

    Raises:
        UserError: naming the options.
    """
    for one, others in (("profile", ("parts", "sweep", "json")), ("sweep", ("parts",))):
        for other in others:
            if getattr(arguments, one) and getattr(arguments, other):
                raise UserError(f"--{one} does not go with --{other}: run the command once for each")
    if arguments.figure is not None and arguments.sweep is None:
        raise UserError(f"--figure {arguments.figure}: draws a sweep; also give --sweep")
    for name in ("json", "figure"):
        file = getattr(arguments, name)
        if file is not None and not file.parent.is_dir():
            raise UserError(f"--{name} {file}: there is no folder {file.parent}")
