"""`plan`: estimate memory, step time, communication and cost of a config before booking a cluster."""

import argparse
import json
import re
from pathlib import Path

from mdmscale.analysis.planning import report
from mdmscale.analysis.planning.hardware import GPUS, GPUS_PER_NODE, NETWORKS, Cluster, make_cluster
from mdmscale.analysis.planning.plan import Plan, make_plan
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.suggest import scan, suggest
from mdmscale.config.loading import load_config
from mdmscale.config.run import RunConfig
from mdmscale.system.console import make_console
from mdmscale.system.errors import UserError

SCANNED = tuple(2**power for power in range(13))  # 1 to 4,096 GPUs
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

EPILOG = """examples:
  python tools/plan.py --config configs/8b_mirror.yaml --gpus 8 --gpu h100-80g
  python tools/plan.py --config configs/1b_pretrain.yaml --gpus 64 --gpu a100-80g --tokens 300B
  python tools/plan.py --config configs/8b_mirror.yaml --gpus 8 --scan --figure cost.png parallel.zero_stage=2

Exit status 1: the config does not fit. Planning needs no GPU, weights or data. The formulas, and what they
were compared with, are in docs/planning.md.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plan.py",
        description="Estimate memory, time, communication and cost of a config on a cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="values that override those of the file"
    )
    parser.add_argument("--gpus", required=True, type=int, metavar="N", help="number of GPUs")
    parser.add_argument(
        "--gpu", default="h100-80g", metavar="G", help=f"one of {', '.join(GPUS)} (default: h100-80g)"
    )
    parser.add_argument(
        "--nodes", type=int, metavar="N", help=f"number of nodes (default: {GPUS_PER_NODE} GPUs in a node)"
    )
    parser.add_argument(
        "--network",
        default="ndr400",
        metavar="NET",
        help=f"network between nodes: {', '.join(NETWORKS)} (default: ndr400)",
    )
    parser.add_argument(
        "--tokens", metavar="N", help="tokens to train on, such as 300B (default: those of train.steps)"
    )
    parser.add_argument(
        "--scan", action="store_true", help="also print the suggested layout on 1 to 4,096 GPUs"
    )
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw days and GPU-hours of the scan")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the plan. Returns 0, or 1 if the config does not fit.

    Raises:
        UserError: for invalid options or an impossible config, with a remedy.
    """
    arguments = build_parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    cluster = make_cluster(arguments.gpu, arguments.network, arguments.gpus, arguments.nodes)
    token_budget = parse_tokens(arguments.tokens)
    shape, note = planned_shape(config.model)
    suggested = suggest(config, shape, cluster, token_budget)
    try:
        plan = make_plan(config, shape, cluster, token_budget)
    except UserError as error:
        raise UserError(*error.problems, *as_hint(suggested, config)) from None
    plans: dict[int, Plan] = {}
    if arguments.scan or arguments.figure:
        clusters = {number: resized(cluster, number) for number in SCANNED}
        plans = scan(config, shape, clusters, token_budget)
    if arguments.json:
        print(json.dumps(as_json(plan, suggested, plans), indent=1))
    else:
        console = make_console()
        console.print(f"model: {shape.num_parameters:,} parameters{note}\n")
        report.print_report(plan, console)
        report.print_suggestion(suggested, config, console)
        if arguments.scan:
            console.print(report.scan_table(plans, list(SCANNED)))
            console.print(f"-: no layout of {config.train.global_batch_size} samples fits or divides")
    if arguments.figure:
        write_cost_figure(plans, arguments.figure)
    return 0 if plan.fits else 1


def as_json(plan: Plan, suggested: Plan | None, plans: dict[int, Plan]) -> dict[str, object]:
    return {
        "plan": report.to_json(plan),
        "suggested": None if suggested is None else report.to_json(suggested),
        "scan": [report.to_json(each) for each in plans.values()],
    }


def as_hint(suggested: Plan | None, config: RunConfig) -> list[str]:
    """A layout that would run on these GPUs, as one line."""
    if suggested is None:
        return []
    return [f"on {suggested.cluster.num_gpus} GPUs this would do: {report.as_arguments(suggested, config)}"]


def parse_tokens(text: str | None) -> float | None:
    """A number of tokens in a common notation: 300B, 2.3T, 5e9.

    Raises:
        UserError: for anything else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)([KMBT]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UserError(f"--tokens {text}: write a number of tokens, such as 300B, 2.3T or 5e9")
    return float(match[1]) * UNITS[match[2]]


def resized(cluster: Cluster, num_gpus: int) -> Cluster:
    """The same kind of machines with another number of GPUs."""
    per_node = min(num_gpus, cluster.gpus_per_node if cluster.num_nodes > 1 else GPUS_PER_NODE)
    return Cluster(cluster.gpu, cluster.network, num_gpus, -(-num_gpus // per_node))


def write_cost_figure(plans: dict[int, Plan], path: Path) -> None:
    """Write the figure of the scan.

    Raises:
        UserError: if nothing fits, or the file cannot be written.
    """
    from mdmscale.training.figures import save_figure

    if not plans:
        raise UserError(f"--figure {path}: no number of GPUs from 1 to 4,096 has a layout that fits")
    try:
        save_figure(report.cost_figure(plans), path)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path}: cannot be written: {error}") from None
