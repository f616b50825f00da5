"""What libraries print goes to a log, and a run's own lines to the terminal."""

import logging
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_script
from rich.console import Console
from rich.progress import Progress

from mdmscale.system.errors import UserError, run_command
from mdmscale.system.library_output import library_output


def function_of(module: str, body: str) -> Callable[[], None]:
    """A function that is defined in a module of that name."""
    made = types.ModuleType(module)
    exec(f"import sys, warnings\ndef act():\n    {body}\n", made.__dict__)
    return made.act


def warn_from(path: str) -> None:
    """A warning of the file at `path`."""
    exec(compile("import warnings; warnings.warn('of a file', stacklevel=1)", path, "exec"), {})


def test_prints_are_sorted_by_who_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with library_output() as log:
        print("ours")
        function_of("deepspeed.runtime.utils", "print('MA 0.46 GB', 'CA 0.46 GB')")()
        function_of("torch.distributed.c10d", "sys.stdout.write('[Gloo] connected\\n')")()
        function_of("mdmscale.deepspeed_like", "print('ours too')")()
        log.open(tmp_path / "logs" / "deepspeed-0.log")
        function_of("deepspeed", "print('later')")()
    print("after")
    assert capsys.readouterr().out == "ours\nours too\nafter\n"
    expected = "MA 0.46 GB CA 0.46 GB\n[Gloo] connected\nlater\n"
    assert (tmp_path / "logs" / "deepspeed-0.log").read_text() == expected


def test_a_log_without_lines_makes_no_file(tmp_path: Path) -> None:
    with library_output() as log:
        log.open(tmp_path / "logs" / "deepspeed-0.log")
    assert not list(tmp_path.iterdir())


def test_a_library_s_logger_reaches_the_terminal_with_errors_only(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    logger = logging.getLogger("DeepSpeed")
    handler = logging.StreamHandler(sys.stdout)  # as DeepSpeed has one of its own
    logger.addHandler(handler)
    try:
        with library_output() as log:
            log.open(tmp_path / "log")
            logger.warning("Setting accelerator to CPU")
            logger.error("cannot go on")
        logger.warning("after the block")
    finally:
        logger.removeHandler(handler)
    shown = capsys.readouterr().out
    assert "Setting accelerator" not in shown and "cannot go on" in shown and "after the block" in shown
    logged = (tmp_path / "log").read_text()
    assert "[WARNING]" in logged and "Setting accelerator to CPU" in logged and "cannot go on" in logged


def test_warnings_are_sorted_by_their_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: print(f"shown: {message}")  # type: ignore[assignment]
        with library_output() as log:
            log.open(tmp_path / "log")
            warn_from("/env/site-packages/torch/distributed/c10d.py")
            warn_from("/home/me/project.py")
    assert capsys.readouterr().out == "shown: of a file\n"
    assert (tmp_path / "log").read_text().count("of a file") == 1


def test_prints_under_a_progress_bar_are_sorted_too(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        with library_output() as log, Progress(console=Console(force_terminal=True)):
            log.open(tmp_path / "log")
            function_of("deepspeed.runtime.engine", "print('of deepspeed')")()
            print("of ours")
    shown = (tmp_path / "terminal").read_text()
    assert "of ours" in shown and "of deepspeed" not in shown
    assert "of deepspeed" in (tmp_path / "log").read_text()


def test_what_libraries_have_printed_comes_before_an_error_that_is_no_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(error: Exception) -> int:
        function_of("deepspeed", "print('a hint')")()
        raise error

    assert run_command(lambda: fail(UserError("a mistake"))) == 2
    assert capsys.readouterr() == ("", "error: a mistake\n")
    with pytest.raises(RuntimeError):
        run_command(lambda: fail(RuntimeError("a crash")))
    assert capsys.readouterr() == ("", "a hint\n")


def test_the_lines_of_deepspeed_itself_go_to_the_log(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""
from pathlib import Path
from deepspeed.runtime.utils import see_memory_usage
from deepspeed.utils import logger
from mdmscale.system.library_output import library_output
with library_output() as log:
    log.open(Path({str(tmp_path / "log")!r}))
    see_memory_usage("begin", force=True)
    logger.warning("a warning")
    print("ours")
"""
    )
    done = run_script(str(script))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ours\n", "")
    logged = (tmp_path / "log").read_text()
    assert "begin" in logged and "MA " in logged and "a warning" in logged
