"""The console script: it lists its commands, finds the module of each, and imports no other."""

import sys
from importlib import import_module

import pytest

from mdmscale import __version__, cli
from mdmscale.cli import COMMANDS


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mdmscale", *arguments])
    return cli.main()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_main_that_knows_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        import_module(COMMANDS[name][0]).main(["--help"])
    assert leaving.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_a_command_gets_its_arguments_and_gives_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "--config", "no_such.yaml") == 2
    assert capsys.readouterr().err == "error: --config no_such.yaml: no such file\n"


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 0), (["--help"], 0), (["--version"], 0), (["sing"], 2)]
)
def test_without_a_command_it_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int
) -> None:
    assert run(monkeypatch, *arguments) == status
    printed = capsys.readouterr()
    if arguments == ["--version"]:
        assert printed.out == f"mdmscale {__version__}\n"
        return
    text = printed.err if status else printed.out
    assert all(f"  {name}" in text for name in COMMANDS)
    assert status == 0 or "no command 'sing'" in text
