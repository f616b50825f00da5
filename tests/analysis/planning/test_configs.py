"""The shipped configs fit the hardware that they name, and their headers agree with the planner."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED

from mdmscale.analysis.planning.plan_command import main

PLANNED = re.compile(r"^# Plan: python tools/plan\.py (.*)\n((?:#   .*\n)+)", re.MULTILINE)
WITH_PLAN = [path for path in SHIPPED if "# Plan: " in path.read_text(encoding="utf-8")]


def test_what_needs_a_cluster_is_planned() -> None:
    assert {"1b_pretrain", "8b_mirror", "8b_mirror_64", "8b_from_qwen", "70b_tensor", "8b_long", "gsm8k"} <= {
        path.stem for path in WITH_PLAN
    }


@pytest.mark.parametrize("path", WITH_PLAN, ids=lambda path: path.stem)
def test_the_header_is_the_plan(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers in the header come from the command. If they differ, run it and copy its summary."""
    monkeypatch.chdir(ROOT)
    found = PLANNED.search(path.read_text(encoding="utf-8"))
    assert found, "a header has '# Plan: python tools/plan.py ...' and below it the summary"
    command, figures = shlex.split(found[1]), " ".join(found[2].replace("#", " ").split())
    assert path.relative_to(ROOT).as_posix() in command
    assert main(command) == 0, "it fits"
    assert figures in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("row", "overrides"),
    [
        *((f"| {stage} |", [f"parallel.zero_stage={stage}"]) for stage in range(4)),
        *(
            (f"| 3 with `{key}: {each}` |", [f"{key}={each}"])
            for key in ("model.activation_checkpointing",)
            for each in ("selective", "full")
        ),
    ],
)
def test_the_table_of_stages_is_the_planners(
    row: str, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of docs/scaling.md for LLaDA-8B on 64 H100 agrees with the planner."""
    config = str(ROOT / "configs" / "8b_mirror.yaml")
    main(["--config", config, "--gpus", "64", "--json", "model.activation_checkpointing=none", *overrides])
    plan = json.loads(capsys.readouterr().out)["plan"]
    figures = f"{row} {plan['memory']['needed'] / 2**30:.0f} | {plan['tokens_per_second']:,.0f} |"
    assert figures in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
