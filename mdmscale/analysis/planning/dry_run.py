"""What a config asks of a machine before anything runs: batch arithmetic, parameters, memory of a rank."""

from rich.console import Console
from rich.table import Table

from mdmscale.analysis.planning.job import Job, make_job
from mdmscale.analysis.planning.memory import memory_of
from mdmscale.analysis.planning.planned import planned_shape
from mdmscale.analysis.planning.report import memory_table
from mdmscale.config.loading import dump_config
from mdmscale.config.run import RunConfig


def print_dry_run(config: RunConfig, num_ranks: int) -> None:
    """Print the resolved config, the batch arithmetic, the parameter count and the memory of a rank.

    Raises:
        UserError: where ranks, model or batch do not divide, with what would.
    """
    shape, note = planned_shape(config.model)
    job = make_job(config, shape, num_ranks)
    print(dump_config(config))
    console = Console()
    console.print(_batch_table(job))
    total = shape.num_parameters + job.num_adapters
    trained = f", {job.num_adapters:,} of them trained" if job.is_frozen else ""
    console.print(f"\nmodel: {total:,} parameters{trained}{note}\n", highlight=False)
    console.print(memory_table(memory_of(job), "memory a rank, estimated, GiB"))


def _batch_table(job: Job) -> Table:
    layout = job.layout
    table = Table(title="batch, in samples", title_justify="left")
    columns = {
        "ranks": layout.dp_size,
        "micro": layout.micro_batch_size,
        "accumulation": layout.gradient_accumulation_steps,
        "global": layout.global_batch_size,
        "rows a forward": layout.rows_per_forward,
        "tokens a step": job.tokens_per_step,
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    table.add_row(*(f"{value:,}" for value in columns.values()))
    return table
