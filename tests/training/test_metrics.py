"""The metrics that a run writes and shows."""

import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mdmscale.config.training import CheckpointSection
from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import RunFolder
from mdmscale.training import metrics
from mdmscale.training.metrics import (
    MetricsWriter,
    ProgressLine,
    closing_summary,
    describe_evaluation,
    format_duration,
    read_last_metrics,
    read_metrics,
    read_series,
)
from mdmscale.training.skipped_steps import SkippedSteps


def record(step: int, **more: float) -> dict[str, Any]:
    values = {"loss": 10.0 - step, "grad_norm": 0.5, "lr": 1e-3, "tokens_per_second": 1234.5}
    return {"step": step, **values, **more}


def write_steps(folder: Path, first_step: int, last_step: int, **options: bool) -> None:
    with MetricsWriter(folder, first_step, **{"tensorboard": False, "enabled": True, **options}) as writer:
        for step in range(first_step + 1, last_step + 1):
            writer.write(record(step))


def test_one_line_a_step(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 7)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(step) for step in range(1, 8)]
    assert read_metrics(tmp_path) == [record(step) for step in range(1, 8)]


def test_resume_drops_the_lines_after_the_resumed_step(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 7)
    write_steps(tmp_path, 4, 6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_resume_drops_a_line_cut_short(tmp_path: Path, cut: int) -> None:
    write_steps(tmp_path, 0, 5)
    text = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text[: -1 - cut])
    write_steps(tmp_path, 4, 6)
    assert read_metrics(tmp_path) == [record(step) for step in range(1, 7)]


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5)
    write_steps(tmp_path, 0, 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_flush_hands_every_line_to_the_disk(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0, tensorboard=False, enabled=True) as writer:
        writer.write(record(1))
        writer.flush()
        assert read_metrics(tmp_path) == [record(1)]


def test_a_value_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN and Infinity are no JSON, so jq, browsers and most parsers refuse them."""
    with MetricsWriter(tmp_path, 0, tensorboard=False, enabled=True) as writer:
        writer.write(record(1, grad_norm=math.inf, eval_loss=math.nan))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert read_metrics(tmp_path) == [{**record(1), "grad_norm": None, "eval_loss": None}]
    assert read_series(tmp_path, ("grad_norm",))["grad_norm"].values.tolist() == []


def test_what_is_no_record_is_passed_over_and_a_resume_goes_on(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"note": "no step"}\n' + bytes(100) + b"\nhello")
    write_steps(tmp_path, 5, 7)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["step"] for line in read_last_metrics(tmp_path, 3)] == [5, 6, 7]
    assert read_last_metrics(tmp_path, 100) == read_metrics(tmp_path)


def test_a_record_without_the_end_of_its_line_is_kept(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 5)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().removesuffix("\n"))
    assert len(read_metrics(tmp_path)) == 5
    write_steps(tmp_path, 5, 6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    """A resume reads its end, and the closing summary keeps numbers rather than records."""
    seconds = {f"seconds_{number}": 0.5 for number in range(20)}
    line = json.dumps({"step": 1, "loss": 1.0, "grad_norm": 1.0, "clipped": 0, **seconds})
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(line.replace('"step": 1', f'"step": {step}') + "\n" for step in range(1, 10_001))
    whole = peak_memory(lambda: read_metrics(tmp_path))
    assert peak_memory(lambda: write_steps(tmp_path, 10_000, 10_001)) < whole / 50
    assert len(read_metrics(tmp_path)) == 10_001
    assert peak_memory(lambda: read_last_metrics(tmp_path, 10)) < whole / 50
    assert peak_memory(lambda: closing_summary(finished_run(tmp_path), 1, 1.0, stopped=True)) < whole / 10


def peak_memory(action: Callable[[], Any]) -> int:
    """The bytes that Python's objects took at most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, name: str) -> None:
    told = pytest.raises(UserError, match=rf"/{name}: No space left on device \(the disk at /")
    with told, MetricsWriter(tmp_path, 0, tensorboard=True, enabled=True) as writer:
        writer.write(record(1))
        writer.sync()
        (file,) = tmp_path.rglob("metrics.jsonl" if name == "metrics.jsonl" else "events*")
        file.rename(tmp_path / "whole")
        file.symlink_to("/dev/full")
        if name == "metrics.jsonl":  # which stays open, while the file of events is opened for each write
            assert writer.file is not None
            os.dup2(os.open(file, os.O_WRONLY), writer.file.fileno())
        writer.write(record(2))
        writer.sync()


def test_only_the_enabled_rank_writes(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0, tensorboard=True, enabled=False) as writer:
        writer.write(record(1))
        writer.flush()
    assert not list(tmp_path.iterdir())


def test_tensorboard_holds_the_scalars_and_drops_the_steps_before_a_resume(tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_steps(tmp_path, 0, 5, tensorboard=True)
    with MetricsWriter(tmp_path, 3, tensorboard=True, enabled=True) as writer:
        writer.write(record(4, loss=0.25, eval_loss=0.75))
        writer.figure("p_pots", Figure(), 4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "grad_norm", "lr", "tokens_per_second", "eval_loss"}
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 0.25)], "step 5 was before the resume"
    assert [(event.step, event.value) for event in events.Scalars("eval_loss")] == [(4, 0.75)]
    assert events.Tags()["images"] == ["p_pots"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (9.4, "0:09"),
        (59.6, "1:00"),
        (185, "3:05"),
        (7385, "2:03:05"),
        (360_000, "100:00:00"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations_read_as_clocks(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(10, 2, enabled=True) as line:
        line.say("step 2: measuring p(t)")
        line.add(record(3))
        line.show()
    said, shown = capsys.readouterr().out.splitlines()
    assert said == "step 2: measuring p(t)"
    assert shown.startswith("step 3/10  loss 7.0000  grad 0.50  lr 1.00e-03  1,234 tokens/s  ")
    assert shown.endswith(" left")


def test_progress_shows_means_since_the_line_before(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(10, 0, enabled=True) as line:
        for step in range(1, 6):
            line.add(record(step))
            if step in (2, 5):
                line.show()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 2/10  loss 8.5000 ")
    assert second.startswith("step 5/10  loss 6.0000 ")


def test_time_left_follows_from_the_steps_since_the_line_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(metrics, "time", clock)
    with ProgressLine(1000, 900, enabled=True) as line:
        for seconds_a_step, last_step in ((50, 905), (2, 910)):
            for step in range(last_step - 4, last_step + 1):
                clock.now += seconds_a_step
                line.add(record(step))
            line.show()
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("  1:19:10 left"), "95 steps of 50 s"
    assert second.endswith("  3:00 left"), "90 steps of 2 s"


def test_progress_is_silent_on_other_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(10, 0, enabled=False) as line:
        line.say("said")
        line.add(record(1))
        line.show()
    assert capsys.readouterr().out == ""


def finished_run(folder: Path) -> Any:
    """The attributes of a Run that the summary uses."""
    config = SimpleNamespace(train=SimpleNamespace(steps=40), checkpoint=CheckpointSection())
    return SimpleNamespace(
        folder=RunFolder(folder),
        step=40,
        config=config,
        consumed_tokens=123_456,
        consumed_samples=320,
        skipped=SkippedSteps(None),
    )


def test_closing_summary(tmp_path: Path) -> None:
    lines = [record(step, loss=9.0 if step <= 20 else step / 10) for step in range(1, 41)]
    lines[9]["eval_loss"], lines[39]["eval_loss"] = 5.5, 3.25
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = finished_run(tmp_path)
    assert closing_summary(run, 40, 185.0, stopped=False).splitlines() == [
        "finished at step 40 of 40: 40 steps in 3:05",
        "  tokens      123,456 in 320 samples",
        "  loss        3.0500 nats a token, mean of the last 20 steps",
        "  eval loss   3.2500 nats a token, held out",
        f"  run folder  {tmp_path}",
        f"  model       {tmp_path}/hf (tools/generate.py samples from it)",
    ]
    assert closing_summary(run, 0, 1.0, stopped=False).startswith(
        "already finished at step 40 of 40: 0 steps"
    )
    stopped = closing_summary(run, 40, 185.0, stopped=True)
    assert stopped.startswith("stopped on request at step 40 of 40")
    assert "same command" in stopped and "hf" not in stopped


def test_closing_summary_tells_of_clipping_and_of_the_average(tmp_path: Path) -> None:
    lines = [record(step, clipped=int(step > 30), loss_controlled=0.5) for step in range(1, 41)]
    for line in lines[20:]:
        line["grad_norm"] = 3.0 if line["clipped"] else 1.0
    lines[39] |= {"eval_loss": 3.25, "eval_loss_ema": 3.125}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert closing_summary(finished_run(tmp_path), 40, 185.0, stopped=False).splitlines()[3:7] == [
        "  controlled  0.5000 nats a token, the same with the noise of t taken out",
        "  eval loss   3.2500 nats a token, held out",
        "  eval of EMA 3.1250, of the averaged weights",
        "  gradient    clipped in 50% of the last 20 steps; its norm varies by 50%",
    ]
    assert describe_evaluation(lines[39]) == "eval loss 3.2500, 3.1250 of the average"
    assert describe_evaluation({"eval_loss": 3.25}) == "eval loss 3.2500"


def test_closing_summary_of_a_run_that_had_nothing_left_to_do(tmp_path: Path) -> None:
    """For example a run that resumes another run's last checkpoint: its own folder has no metrics yet."""
    (tmp_path / "metrics.jsonl").touch()
    summary = closing_summary(finished_run(tmp_path), 0, 1.0, stopped=False)
    assert summary.startswith("already finished") and "  loss " not in summary
