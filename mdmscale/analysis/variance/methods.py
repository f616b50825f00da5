"""The methods that the report compares, each as the keys of the config's `diffusion` section that choose it.

A new masking needs one line in `compared_methods`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.diffusion.maskings import CORRUPTIONS
from mdmscale.system.errors import UserError

STANDARD = "standard"
WAVE = 8  # samples that are measured together; strata are measured over no more
P_POTS = {"t_sampler": "p_pots"}
GRADIENT = {**P_POTS, "p_pots": {"target": "gradient"}}


@dataclass(frozen=True)
class Method:
    """A way to estimate the gradient.

    keys: those of the `diffusion` section that differ from their defaults. together: the samples of a batch
    over which t is spread (strata); 1 if samples are independent. is_unbiased: whether it has the
    expectation of standard's gradient.
    """

    name: str
    keys: dict[str, Any]
    together: int = 1
    is_unbiased: bool = True

    def section(self, base: DiffusionSection) -> DiffusionSection:
        """The `diffusion` section of a run with this method: the numbers of `base`, the method's keys."""
        fit = base.p_pots.model_dump() | {"probe_steps": [0], "refit_every": 0} | self.keys.get("p_pots", {})
        kept: dict[str, Any] = {"eps": base.eps, "normalization": base.normalization}
        if self.keys.get("loss_weight") == "window":
            kept["window"] = base.window
        return DiffusionSection(**{**kept, **self.keys, "p_pots": fit})


def compared_methods(batch_rows: int) -> list[Method]:
    """All methods, for batches of `batch_rows` forward rows. Standard is the first."""
    rates = {"weights": "rate"}
    singles = [
        Method(STANDARD, rates),
        Method("count", {}),
        *(
            Method(f"p_pots_{target}{suffix}", {**P_POTS, "p_pots": {"target": target}, **weights})
            for target in ("paper", "loss", "gradient")
            for suffix, weights in (("", {}), ("+rate", rates))
        ),
        Method("exact", {"masking": "exact"}),
        Method("exact+p_pots", {"masking": "exact", **GRADIENT}),
    ]
    several = [
        Method("independent+rate", {"masking": "independent", **rates}),
        Method("independent", {"masking": "independent"}),
        Method("independent+p_pots", {"masking": "independent", **GRADIENT}),
        Method("mirror", {"masking": "mirror"}),
        Method("mirror+p_pots", {"masking": "mirror", **GRADIENT}),
        Method("complement", {"masking": "complement"}),
        Method("complement+p_pots", {"masking": "complement", **GRADIENT}),
        Method("exact_pair", {"masking": "exact_pair"}),
        Method("exact_pair+p_pots", {"masking": "exact_pair", **GRADIENT}),
        *(
            Method(f"exact_{rows}{suffix}", {"masking": "exact", "rows": rows, **keys})
            for rows in (4, 8)
            for suffix, keys in (("", {}), ("+p_pots", GRADIENT))
        ),
    ]
    spread = [
        _spread("stratified", {"t_sampler": "stratified"}, batch_rows),
        _spread("low_discrepancy", {"t_sampler": "low_discrepancy"}, batch_rows),
        _spread("p_pots_gradient+stratified", GRADIENT, batch_rows),
        _spread("exact+stratified", {"masking": "exact", "t_sampler": "stratified"}, batch_rows),
        _spread("exact+p_pots+stratified", {"masking": "exact", **GRADIENT}, batch_rows),
        _spread("exact_pair+p_pots+stratified", {"masking": "exact_pair", **GRADIENT}, batch_rows),
    ]
    return [*singles, *several, *spread, Method("window", {"loss_weight": "window"}, is_unbiased=False)]


def chosen_methods(names: Sequence[str] | None, batch_rows: int) -> list[Method]:
    """Standard and the methods of these names, in the report's order; None means all.

    Raises:
        UserError: for an unknown name.
    """
    known = compared_methods(batch_rows)
    if names is None:
        return known
    unknown = set(names) - {method.name for method in known}
    if unknown:
        choices = ", ".join(method.name for method in known)
        raise UserError(f"--methods {','.join(sorted(unknown))}: unknown; choose among {choices}")
    return [method for method in known if method.name in {STANDARD, *names}]


def _spread(name: str, keys: dict[str, Any], batch_rows: int) -> Method:
    """A method that spreads t over the batch, or over as many of its samples as are measured together."""
    rows = CORRUPTIONS[keys.get("masking", "bernoulli")].num_rows
    samples = max(1, batch_rows // rows)
    together = 1 << (min(WAVE, samples).bit_length() - 1)  # a power of 2, so it divides WAVE
    takes_strata = keys["t_sampler"] != "low_discrepancy"
    return Method(name, {**keys, "strata": together} if takes_strata else keys, together)
