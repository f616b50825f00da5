"""Jobs on forks of a warm process: fresh processes whose ranks form a group and that end like a launch."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_ranks, run_script, start_ranks, start_script

Write = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path) -> Write:
    """Write a script and return its path."""

    def write(code: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(code)
        return path

    return write


def test_a_script_gets_what_python_gives_it(script: Write) -> None:
    code = "import sys\nprint(__name__, __file__, sys.argv)\nprint('note', file=sys.stderr)\nsys.exit(3)"
    path = script(code)
    done = run_script(str(path), "--one", "2")
    assert done.stdout == f"__main__ {path} {[str(path), '--one', '2']}\n"
    assert (done.returncode, done.stderr) == (3, "note\n")


def test_an_exception_is_status_1_with_its_traceback(script: Write) -> None:
    done = run_script(str(script("raise ValueError('odd')")))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("ValueError: odd\n")


def test_jobs_leave_nothing_to_each_other(script: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script(
        "import os, signal, sys, torch\n"
        "print(hasattr(torch, 'left'), os.getcwd(), 'LEFT' in os.environ, torch.initial_seed(),\n"
        "      signal.getsignal(signal.SIGTERM), torch.distributed.is_initialized())\n"
        "torch.left = os.environ['LEFT'] = 'here'\n"
        "os.chdir('/')\ntorch.manual_seed(5)\nsignal.signal(signal.SIGTERM, print)\n"
        "here = 'tcp://127.0.0.1:0'\n"
        "torch.distributed.init_process_group('gloo', init_method=here, rank=0, world_size=1)\n"
    )
    first, second = run_script(str(path)), run_script(str(path))
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("False ")
    monkeypatch.setenv("LEFT", "here")
    assert " True " in run_script(str(path)).stdout, "the test's own environment is the job's"


def test_ranks_form_a_group(script: Write) -> None:
    path = script(
        "import torch\nfrom torch import distributed\ndistributed.init_process_group('gloo')\n"
        "ranks = torch.tensor(float(distributed.get_rank() + 1))\n"
        "distributed.all_reduce(ranks)\nprint(f'sum {ranks:.0f}', flush=True)\n"
    )
    assert run_ranks(2, path).count("sum 3") == 2


def test_when_a_rank_fails_the_others_are_ended(script: Write) -> None:
    code = "import os, sys, time\nsys.exit(5) if os.environ['RANK'] == '1' else time.sleep(600)"
    job = start_ranks(2, script(code))
    try:
        assert job.wait(60) == 5
    finally:
        job.kill()


def test_a_job_that_runs_on_is_named_and_killed(script: Write, tmp_path: Path) -> None:
    path = script("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    job = start_script(str(path))
    while not job.stdout:
        time.sleep(0.01)
    assert job.poll() is None
    with pytest.raises(TimeoutError, match=r"script\.py runs after 0\.1 s"):
        job.wait(0.1)
    job.kill()
    assert job.wait(0.0) == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while is_running(int(job.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
