"""A plan as tables, as JSON and as a figure."""

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from mdmscale.analysis.planning.hardware import GB, GIB
from mdmscale.analysis.planning.memory import Memory
from mdmscale.analysis.planning.plan import Plan
from mdmscale.analysis.planning.suggest import layout_keys
from mdmscale.config.run import RunConfig
from mdmscale.system.console import plain_table
from mdmscale.training.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def memory_table(memory: Memory, title: str) -> Table:
    """Bytes on a device by use, in forward and backward, and the peak over all phases."""
    by_use = {**memory.by_use, "peak": memory.peak}
    return one_row(title, {name: f"{value / GIB:,.2f}" for name, value in by_use.items()})


def one_row(title: str, columns: dict[str, str]) -> Table:
    """Headings over values."""
    table = plain_table(title, list(columns))
    table.add_row(*columns.values())
    return table


def print_report(plan: Plan, console: Console) -> None:
    """Everything that a plan contains, in a few tables."""
    memory, gpu = plan.memory, plan.cluster.gpu
    console.print(memory_table(memory, "memory a GPU, GiB"))
    largest = max(memory.phases, key=lambda name: memory.phases[name])
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    console.print(
        f"{verdict}: {memory.needed() / GIB:,.1f} of {gpu.memory / GIB:,.1f} GiB, including 5% lost between "
        f"blocks and 2 GiB for CUDA and NCCL; the peak is in: {largest}",
        style="bold" if plan.fits else "bold red",
    )
    console.print(host_line(plan))
    console.print(time_table(plan))
    console.print(traffic_table(plan))
    console.print()
    if plan.num_probes:
        console.print(probe_line(plan))
    console.print(summary(plan), style="bold")


def summary(plan: Plan) -> str:
    """The run, its memory, speed and cost, in one line."""
    num_tokens = plan.num_steps * plan.workload.tokens_per_step
    gpu, memory = plan.cluster.gpu, plan.memory.needed()
    return (
        f"{plan.num_steps:,} steps, {num_tokens / 1e9:,.3g}B tokens on {plan.cluster.num_gpus:,} {gpu.name}: "
        f"{memory / GIB:,.1f} of {gpu.memory / GIB:,.1f} GiB, {plan.step_seconds:.2f} s a step, "
        f"{plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}, {plan.days:,.2f} days, "
        f"{plan.gpu_hours:,.0f} GPU-hours"
    )


def host_line(plan: Plan) -> str:
    ranks = plan.cluster.gpus_per_node
    line = f"host memory a node: {ranks * plan.memory.loading / GIB:,.0f} GiB while the model is loaded"
    if plan.memory.host:
        line += f", {ranks * plan.memory.host / GIB:,.0f} GiB for what is offloaded"
    if plan.memory.disk:
        line += f"; on its disk {ranks * plan.memory.disk / GIB:,.0f} GiB"
    return line


def probe_line(plan: Plan) -> str:
    return (
        f"P-POTS: {plan.num_probes} probe{'s' if plan.num_probes > 1 else ''} of {plan.probe_forwards:,} "
        f"forwards of {plan.workload.rows_per_probe} rows, {plan.probe_seconds:,.1f} s each, "
        f"{plan.probe_share:.2%} of the run"
    )


def time_table(plan: Plan) -> Table:
    """The seconds of a step by use, and its speed."""
    compute = plan.compute
    columns = {
        "forward": f"{compute.forward:.3f}",
        "backward": f"{compute.backward:.3f}",
        "head": f"{compute.head:.3f}",
        "optimizer": f"{compute.optimizer:.3f}",
        **({"disk": f"{compute.disk:.3f}"} if compute.disk else {}),
        "waiting": f"{plan.exposed:.3f}",
        "step": f"{plan.step_seconds:.3f}",
        "tokens/s": f"{plan.tokens_per_second:,.0f}",
        "a GPU": f"{plan.tokens_per_second / plan.cluster.num_gpus:,.0f}",
        "MFU": f"{plan.mfu:.1%}",
    }
    return one_row("\na step, seconds", columns)


def traffic_table(plan: Plan) -> Table:
    """What a GPU sends in a step, by purpose and link."""
    headings = ["what", "in its node", plan.cluster.network.name, "seconds", "hides behind"]
    table = plain_table("\nsent by a GPU in a step, GB", headings)
    table.columns[0].justify = "left"
    for each in plan.traffic:
        inside, between = f"{each.inside / GB:,.2f}", f"{each.between / GB:,.2f}"
        table.add_row(each.name, inside, between, f"{each.seconds:.3f}", each.hides_behind or "nothing")
    if not plan.traffic:
        table.add_row("nothing", "0", "0", "0", "")
    return table


def print_suggestion(suggested: Plan | None, config: RunConfig, console: Console) -> None:
    """The suggested layout as overrides of `config`, and its speed."""
    if suggested is None:
        console.print(
            "\nno layout of this batch fits these GPUs: use more GPUs, shorter samples, "
            "diffusion.pair_forward=sequential, parallel.offload_optimizer=cpu or model.lora",
            style="bold",
        )
        return
    if layout_keys(suggested.workload.config) == layout_keys(config):
        console.print("\nsuggested: the layout of this config")
        return
    console.print(f"\nsuggested: {as_arguments(suggested, config)}")
    console.print(
        f"    {suggested.step_seconds:.3f} s a step, {suggested.tokens_per_second:,.0f} tokens/s, MFU "
        f"{suggested.mfu:.1%}, {suggested.memory.needed() / GIB:,.1f} GiB"
    )


def as_arguments(plan: Plan, config: RunConfig) -> str:
    """The layout of a plan as command-line arguments that follow `config`."""
    suggested = plan.workload.config
    others = {
        f"parallel.{name}": value  # options that the suggested ZeRO stage does not have
        for name, value in suggested.parallel.model_dump().items()
        if value != getattr(config.parallel, name)
    }
    values = layout_keys(suggested) | others
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def scan_table(plans: dict[int, Plan], num_gpus: list[int]) -> Table:
    """The suggested layout for each number of GPUs, and the speed and cost of the run."""
    headings = ["GPUs", "micro", "ZeRO", "TP", "SP", "AC", "step, s", "tokens/s", "MFU", "days", "GPU-hours"]
    table = plain_table("\nthe suggested layout on other numbers of GPUs", headings)
    for number in num_gpus:
        plan = plans.get(number)
        if plan is None:
            table.add_row(f"{number:,}", *["-"] * (len(headings) - 1))
            continue
        micro, *sizes, _ = layout_keys(plan.workload.config).values()
        checkpointing = plan.workload.config.model.activation_checkpointing
        recomputed = {"none": "no", "selective": "some", "full": "all"}[checkpointing]  # short: 80 columns
        table.add_row(
            *(f"{number:,}", f"{micro}", *map(str, sizes), recomputed),
            *(f"{plan.step_seconds:.3f}", f"{plan.tokens_per_second:,.0f}", f"{plan.mfu:.1%}"),
            *(f"{plan.days:,.2f}", f"{plan.gpu_hours:,.0f}"),
        )
    return table


def to_json(plan: Plan) -> dict[str, Any]:
    """The numbers of a plan, in bytes and seconds."""
    return {
        "gpu": plan.cluster.gpu.name,
        "num_gpus": plan.cluster.num_gpus,
        "num_nodes": plan.cluster.num_nodes,
        "network": plan.cluster.network.name,
        "layout": layout_keys(plan.workload.config),
        "parameters": plan.workload.shape.num_parameters,
        "memory": {**plan.memory.by_use, "peak": plan.memory.peak, "needed": plan.memory.needed()},
        "phases": plan.memory.phases,
        "host_memory_a_rank": {"offloaded": plan.memory.host, "loading": plan.memory.loading},
        "disk_a_rank": plan.memory.disk,
        "device_memory": plan.cluster.gpu.memory,
        "fits": plan.fits,
        "step_seconds": plan.step_seconds,
        "compute_seconds": vars(plan.compute),
        "waiting_seconds": plan.exposed,
        "traffic": [vars(each) for each in plan.traffic],
        "tokens_per_step": plan.workload.tokens_per_step,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "probes": {
            "number": plan.num_probes,
            "seconds": plan.probe_seconds if plan.num_probes else 0.0,
            "share_of_run": plan.probe_share,
        },
        "steps": plan.num_steps,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
    }


def cost_figure(plans: dict[int, Plan]) -> "Figure":
    """Days and GPU-hours of the run over the number of GPUs."""
    figure = new_figure()
    days = figure.subplots()
    hours = days.twinx()
    numbers = list(plans)
    days.plot(numbers, [plan.days for plan in plans.values()], "o-", color="C0", markersize=3)
    hours.plot(numbers, [plan.gpu_hours for plan in plans.values()], "s--", color="C1", markersize=3)
    days.set(xlabel="GPUs", xscale="log", yscale="log")
    days.set_xticks(numbers, [f"{number:,}" for number in numbers], fontsize=7)
    days.set_xticks([], minor=True)
    days.set_ylabel("days", color="C0")
    hours.set_ylabel("GPU-hours", color="C1")
    hours.set_ylim(0, 1.15 * max(plan.gpu_hours for plan in plans.values()))
    return figure
