"""Jobs in processes of their own, and bases that are not competent."""

from dataclasses import replace
from pathlib import Path

import pytest

from mdmscale.analysis.decision.fine_tuning import FineTuning, base_path, pretrain
from mdmscale.analysis.decision.jobs import Job, run_jobs
from mdmscale.analysis.decision.sizes import sizes_of
from mdmscale.system.errors import UserError


def touching(path: Path) -> Job:
    return Job(path, path.name, 1.0, Path.touch, (path,))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_jobs_without_their_file_run_and_failures_are_told(
    tmp_path: Path, num_processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    done = tmp_path / "done"
    done.write_text("kept")
    jobs = [touching(tmp_path / name) for name in ("done", "first", "second")]
    run_jobs(jobs, num_processes, "part")
    assert done.read_text() == "kept"
    assert (tmp_path / "first").exists() and (tmp_path / "second").exists()
    assert "part: 2 of 2 is finished" in capsys.readouterr().out
    failing = Job(tmp_path / "third", "third", 1.0, Path.read_text, (tmp_path / "nowhere",))
    with pytest.raises(FileNotFoundError):
        run_jobs([failing, touching(tmp_path / "fourth")], num_processes, "part")


def test_a_base_that_is_not_competent_stops_the_study(tmp_path: Path) -> None:
    part = FineTuning(replace(sizes_of(True, None).fine_tuning, competence=0.5))
    with pytest.raises(UserError, match=r"less than 50%: not competent; it needs more than 20 steps"):
        pretrain(part, "full", tmp_path)
    assert not base_path(tmp_path, "full").exists()
