"""The methods that the report knows, as keys of the config."""

import pytest

from mdmscale.analysis.variance.methods import STANDARD, Method, chosen_methods, compared_methods
from mdmscale.config.diffusion import DiffusionSection, PPotsSection
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.system.errors import UserError

METHODS = compared_methods(8)


def test_every_masking_is_compared_and_standard_comes_first() -> None:
    assert METHODS[0].name == STANDARD
    sections = [method.section(DiffusionSection()) for method in METHODS]
    assert {section.masking for section in sections} == set(CORRUPTIONS)
    assert len({method.name for method in METHODS}) == len(METHODS)
    rows = {section.rows_per_sample for section in sections if section.masking.startswith("exact")}
    assert rows == {1, 2, 4, 8}
    standard = sections[0]
    assert (standard.masking, standard.t_sampler, standard.weighs_by_count) == ("bernoulli", "uniform", False)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_is_a_valid_section_with_the_numbers_of_the_config(method: Method) -> None:
    base = DiffusionSection(
        eps=0.01, loss_weight="window", window=[0.2, 0.8], p_pots=PPotsSection(num_x0=3, probe_steps=[500])
    )
    section = method.section(base)
    assert (section.eps, section.p_pots.num_x0, section.p_pots.probe_steps) == (0.01, 3, [0])
    assert method.is_unbiased == (section.loss_weight == "elbo")
    assert section.t_range == ((0.0, 1.0) if method.is_unbiased else (0.2, 0.8))


@pytest.mark.parametrize(("batch_rows", "single", "pair"), [(1, 1, 1), (6, 4, 2), (8, 8, 4), (1024, 8, 8)])
def test_strata_are_those_of_the_batch_as_far_as_they_are_measured(
    batch_rows: int, single: int, pair: int
) -> None:
    together = {method.name: method.together for method in compared_methods(batch_rows)}
    assert together["stratified"] == together["low_discrepancy"] == single
    assert together["exact_pair+p_pots+stratified"] == pair
    assert together["mirror"] == 1
    strata = {method.name: method.keys.get("strata") for method in compared_methods(batch_rows)}
    assert strata["stratified"] == single and strata["low_discrepancy"] is None


def test_methods_are_chosen_by_name() -> None:
    assert [method.name for method in chosen_methods(["mirror", "exact"], 8)] == [STANDARD, "exact", "mirror"]
    with pytest.raises(
        UserError, match="--methods mirrored: unknown; choose among standard, count, p_pots_paper"
    ):
        chosen_methods(["mirrored"], 8)
