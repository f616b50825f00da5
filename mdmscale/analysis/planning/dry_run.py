"""What a config needs of a machine, before anything runs: batch arithmetic, parameters, memory of a rank."""

import math

from rich.console import Console
from rich.table import Table

from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.report import memory_table
from mdmscale.analysis.planning.workload import Workload, make_workload
from mdmscale.config.loading import dump_config
from mdmscale.config.run import RunConfig


def smallest_num_ranks(config: RunConfig) -> int:
    """The smallest number of ranks on which the config's parallel sizes can be arranged."""
    parallel = config.parallel
    # ZeRO shards over data x sequence ranks, which the second copies of the parameters must divide.
    data = parallel.hpz_partition_size // math.gcd(parallel.hpz_partition_size, parallel.sequence)
    return parallel.tensor * parallel.sequence * data


def print_dry_run(config: RunConfig, num_ranks: int | None) -> None:
    """Print the resolved config, the batch arithmetic, the parameter count and the memory of a rank.

    num_ranks: None assumes `smallest_num_ranks`, and says so.

    Raises:
        UserError: where ranks, model or batch do not divide, with a number that does.
    """
    shape, note = planned_shape(config.model)
    workload = make_workload(config, shape, num_ranks or smallest_num_ranks(config))
    print(dump_config(config))
    console = Console()
    if num_ranks is None:
        assumed = f"{workload.num_ranks} rank{'s' if workload.num_ranks > 1 else ''}"
        print(
            f"assumed: {assumed}, the smallest number that this config's parallel sizes allow; "
            "--ranks N plans for another\n"
        )
    console.print(_batch_table(workload))
    total = shape.num_parameters + workload.num_adapters
    trained = f", {workload.num_adapters:,} of them trained" if workload.is_frozen else ""
    console.print(f"\nmodel: {total:,} parameters{trained}{note}\n", highlight=False)
    console.print(memory_table(memory_of(workload), "memory a rank, estimated, GiB"))


def _batch_table(workload: Workload) -> Table:
    layout = workload.batch_layout
    table = Table(title="batch, in samples", title_justify="left")
    columns = {
        "ranks": layout.dp_size,
        "micro": layout.micro_batch_size,
        "accumulation": layout.gradient_accumulation_steps,
        "global": layout.global_batch_size,
        "rows a forward": layout.rows_per_forward,
        "tokens a step": workload.tokens_per_step,
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:,}" for value in columns.values()))
    return table
