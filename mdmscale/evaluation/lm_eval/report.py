"""The harness's results for results.json: a summary row for each metric, an item for each question."""

from collections.abc import Iterator, Mapping
from typing import Any


def summary_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each metric of each task, then of each group of tasks."""
    for section in ("results", "groups"):
        for task, values in results.get(section, {}).items():
            if section == "groups" or task not in results.get("groups", {}):
                yield from _rows_of(results, section == "groups", task, values)


def items(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An item for each question and filter of each task: its metrics, the expected and the given answers."""
    for task, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda sample: (sample["filter"], sample["doc_id"])):
            yield {
                "id": f"{task}/{sample['doc_id']}",
                "task": task,
                "filter": sample["filter"],
                **{name: plain(sample[name]) for name in sample["metrics"]},
                "target": plain(sample["target"]),
                "answers": plain(sample["filtered_resps"]),
                "question": plain(sample["doc"]),
                "prompt_hash": sample["prompt_hash"],
            }


def plain(value: Any) -> Any:
    """A value of Python, numpy or a data set as one of JSON: what JSON lacks becomes text."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set():
            return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # a number or an array of numpy
        return plain(value.tolist())
    return str(value)


def _rows_of(
    results: Mapping[str, Any], is_group: bool, task: str, values: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    better = results.get("higher_is_better", {}).get(task, {})
    count = results.get("n-samples", {}).get(task, {}).get("effective")
    for name, value in values.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        yield {
            "task": task,
            "is_group": is_group,
            "metric": metric,
            "filter": kind,
            "value": plain(value),
            "standard_error": plain(error) if isinstance(error, float) else None,
            "higher_is_better": better.get(metric),
            "num_fewshot": results.get("n-shot", {}).get(task),
            "num_items": count,
            "version": results.get("versions", {}).get(task),
        }
