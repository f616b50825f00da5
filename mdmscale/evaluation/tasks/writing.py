"""Answer this rank's share of the questions, write results.json, and show the table."""

from pathlib import Path
from tempfile import TemporaryDirectory

from mdmscale.evaluation.results import Results
from mdmscale.evaluation.tasks.work import TaskWork
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.console import make_console, plain_table, work_progress
from mdmscale.system.partial_output import PartialOutput, Place

HEADINGS = ("task", "setting", "items", "accuracy", "95% interval", "no answer", "forwards", "tokens/fwd")


def write_results(work: TaskWork, group: WorkGroup) -> None:
    """Answer this rank's share of what the output still lacks; rank 0 writes it and shows the table.

    Raises:
        UserError: where a prompt does not fit the model, or the output exists or is another command's.
    """
    with TemporaryDirectory() as folder:
        output = Path(folder) / "results.json" if work.output is None else work.output
        partial = PartialOutput(output, group.on_first_rank(work.recipe), group.rank)
        group.on_first_rank(lambda: partial.begin(work.overwrite))
        try:
            _answer_share(work, group, partial)
        except KeyboardInterrupt:
            if group.is_first and work.output is not None:
                _note(f"{output}: the same command continues after {len(partial.finished())} answers")
            raise
        if group.is_first:
            finished = partial.finished()
            results = work.results([finished[place] for place in work.places()])
            partial.publish(lambda _: results.lines())
            show(results)
            if work.output is not None:
                print(f"{work.output}: {len(finished)} answers")


def show(results: Results) -> None:
    """The summary as a table, and the area of each curve."""
    console = make_console()
    has_points = any(entry["score"] != entry["accuracy"] for entry in results.summary)
    table = plain_table(results.model, [*HEADINGS, *(["score"] if has_points else [])])
    for entry in results.summary:
        table.add_row(
            entry["task"],
            entry["setting"] or "-",
            str(entry["num_items"]),
            f"{entry['accuracy']:.1%}",
            f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}%",
            f"{entry['no_answer']:.1%}",
            f"{entry['forwards_per_text']:.1f}",
            f"{entry['tokens_per_forward']:.2f}",
            *([f"{entry['score']:.1%}"] if has_points else []),
        )
    console.print(table)
    console.print(f"{sum(entry['seconds'] for entry in results.summary):.1f} s of sampling")
    areas = {entry["task"]: entry["aup"] for entry in results.summary if "aup" in entry}
    for task, area in areas.items():
        console.print(f"{task}: area under accuracy against tokens a forward (AUP) {area:.1f}")


def _answer_share(work: TaskWork, group: WorkGroup, partial: PartialOutput) -> None:
    """Answer this rank's share; each finished batch goes to disk at once. Returns when all ranks are done."""
    loaded = work.load()
    places, finished = work.places(), partial.finished()
    group.wait()  # all ranks must have read the files before one appends to them
    if finished and group.is_first:
        _note(f"{partial.output}: continuing after {len(finished)} of {len(places)} answers")
    todo = [place for place in places if place not in finished]

    def by_size(place: Place) -> tuple[int, int, Place]:  # keeps padding small and shares equal
        return place[0], len(work.jobs[place[0]].items[place[1]].plain_prompt), place

    share = sorted(todo, key=by_size)[group.rank :: group.world_size]
    with work_progress("answering", len(places), len(finished), shown=group.is_first) as bar:
        for records in work.answer(loaded, share):
            partial.append(records)
            bar.advance(bar.task_ids[0], len(records) * group.world_size)
    group.wait()


def _note(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True)
