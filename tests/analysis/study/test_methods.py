"""Methods of a study: built in, of a file and of the command line."""

from pathlib import Path

import pytest
from conftest import ROOT

from mdmscale.analysis.study.methods import BUILT_IN, Method, choose_methods, parse_method, read_methods
from mdmscale.config.loading import load_config
from mdmscale.system.errors import UserError


def test_a_method_of_the_command_line() -> None:
    assert parse_method("slow: diffusion.masking=mirror optimizer.lr=1e-5") == Method(
        "slow", ("diffusion.masking=mirror", "optimizer.lr=1e-5")
    )
    assert parse_method("isad: 'diffusion.isad={tokens: [5, 6], delta: 0.2}'").overrides == (
        "diffusion.isad={tokens: [5, 6], delta: 0.2}",
    )
    assert parse_method("plain:") == Method("plain", ())
    for wrong in ("slow diffusion.masking=mirror", "slow: mirror", "slow: 'a=b"):
        with pytest.raises(UserError, match="--method"):
            parse_method(wrong)


def test_methods_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "methods.yaml"
    file.write_text('plain: {}\nnothing:\nlow:\n  optimizer.lr: 1e-5\n  diffusion.isad: {tokens: ["####"]}\n')
    assert read_methods(file) == [
        Method("plain", ()),
        Method("nothing", ()),
        Method("low", ("optimizer.lr=1e-05", 'diffusion.isad={"tokens": ["####"]}')),
    ]
    for text in ("[]", "a: 1", "a: {lr: 1}", "a: {x.y: 1"):
        file.write_text(text)
        with pytest.raises(UserError, match="--methods-file"):
            read_methods(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_methods(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("config", ["gsm8k", "openscience", "hitab"])
def test_the_shipped_methods_fit_the_papers_configs(config: str) -> None:
    methods = read_methods(ROOT / "configs" / "paper" / "methods.yaml")
    for method in methods:
        load_config(ROOT / "configs" / "paper" / f"{config}.yaml", list(method.overrides))
    assert {method.name for method in BUILT_IN} <= {method.name for method in methods}


def test_methods_are_chosen_by_name_in_order() -> None:
    assert choose_methods(BUILT_IN, None) == list(BUILT_IN)
    assert [each.name for each in choose_methods(BUILT_IN, ["mirror", "standard", "mirror"])] == [
        "mirror",
        "standard",
    ]


@pytest.mark.parametrize(
    ("methods", "names", "message"),
    [
        ([], ["miror"], "--methods miror: did you mean mirror. choose from standard, clipped"),
        ([Method("a b", ())], None, "'a b': choose a name of letters"),
        ([Method("control", ())], None, "'control': is the name of the control"),
        ([Method("p_pots-mirror", ())], None, "'p_pots.mirror' has runs of the same name"),
    ],
)
def test_senseless_names_are_refused(methods: list[Method], names: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_methods([*BUILT_IN, *methods], names)
