"""--dry-run: what a config needs of a machine, and whether its input is there and agrees, before it runs."""

import math

from rich.console import Console
from rich.table import Table

from mdmscale.analysis.planning.input_check import check_input
from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.planned_shape import planned_shape
from mdmscale.analysis.planning.report import memory_table
from mdmscale.analysis.planning.workload import make_workload
from mdmscale.config.loading import dump_config
from mdmscale.config.run import RunConfig
from mdmscale.parallel.batch_layout import BatchLayout, make_layout
from mdmscale.system.errors import UserError


def smallest_num_ranks(config: RunConfig) -> int:
    """The smallest number of ranks on which the config's parallel sizes can be arranged."""
    parallel = config.parallel
    # ZeRO shards over data x sequence ranks, which the second copies of the parameters must divide.
    data = parallel.hpz_partition_size // math.gcd(parallel.hpz_partition_size, parallel.sequence)
    return parallel.tensor * parallel.sequence * data


def print_dry_run(config: RunConfig, num_ranks: int | None) -> None:
    """Print the resolved config, the batch arithmetic, the parameter count and the memory of a rank.

    Then check the input, and print what is there. If the model cannot be opened and the config does not
    describe it, parameters and memory are left out.

    num_ranks: None assumes `smallest_num_ranks`, and says so.

    Raises:
        UserError: where ranks, model or batch do not divide, with a number that does; and with everything
            that is wrong with the input.
    """
    print(dump_config(config))
    _print_plan(config, num_ranks)
    checked = check_input(config)
    print("", *checked.lines(), sep="\n")
    if checked.problems:
        raise UserError(*checked.problems)


def _print_plan(config: RunConfig, num_ranks: int | None) -> None:
    console, assumed = Console(), num_ranks or smallest_num_ranks(config)
    if num_ranks is None:
        print(
            f"assumed: {assumed} rank{'s' if assumed > 1 else ''}, the smallest number that this config's "
            "parallel sizes allow; --ranks N plans for another\n"
        )
    try:
        shape, note = planned_shape(config.model)
    except UserError:  # which the check of the input reports
        console.print(_batch_table(config, make_layout(config, assumed)))
        print("\nmodel: of unknown size, so its parameters and memory are not estimated")
        return
    workload = make_workload(config, shape, assumed)
    console.print(_batch_table(config, workload.batch_layout))
    total = shape.num_parameters + workload.num_adapters
    trained = f", {workload.num_adapters:,} of them trained" if workload.is_frozen else ""
    console.print(f"\nmodel: {total:,} parameters{trained}{note}\n", highlight=False)
    console.print(memory_table(memory_of(workload), "memory a rank, estimated, GiB"))


def _batch_table(config: RunConfig, layout: BatchLayout) -> Table:
    table = Table(title="batch, in samples", title_justify="left")
    columns = {
        "ranks": layout.dp_size,
        "micro": layout.micro_batch_size,
        "accumulation": layout.gradient_accumulation_steps,
        "global": layout.global_batch_size,
        "rows a forward": layout.rows_per_forward,
        "tokens a step": layout.global_batch_size * config.data.sequence_length,
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:,}" for value in columns.values()))
    return table
