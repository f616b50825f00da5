"""Makes the estimators of the report: each method with the noise and the t-sampler that a run with it has."""

import numpy as np

from mdmscale.analysis.variance.draws import Estimator
from mdmscale.analysis.variance.methods import Method
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.collate import Collator
from mdmscale.data.loader import t_sampler_of
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.corruption import Corruption
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.p_pots import ProbeStatistics
from mdmscale.parallel.ranks import Ranks
from mdmscale.training.p_pots import PPots, Probe
from mdmscale.training.p_pots_probe import measure_p_pots
from mdmscale.training.passes import ForwardModel

FIRST_PROBED = 1 << 40  # index of the first probed sample, far from those that are measured


class Probes:
    """P-POTS probes of the methods. Methods that are probed alike share a probe."""

    def __init__(
        self, model: ForwardModel, source: SampleSource, collate: Collator, seed: int, ranks: Ranks
    ) -> None:
        self.model, self.source, self.collate, self.seed, self.ranks = model, source, collate, seed, ranks
        self.known: dict[tuple[Corruption, bool, int], ProbeStatistics] = {}

    def of(self, options: DiffusionSection) -> Probe:
        """The probe of a run with these options."""

        def probe(edges: np.ndarray, first_index: int, loss_weight: LossWeight) -> ProbeStatistics:
            key = (options.corruption.probed, options.weighs_by_count, len(edges))
            if key not in self.known:
                self.known[key] = measure_p_pots(
                    self.model,
                    self.source,
                    Noise(options),
                    options.p_pots,
                    edges,
                    self.collate,
                    first_index,
                    loss_weight,
                    self.seed,
                    self.ranks,
                )
            return self.known[key]

        return probe


def make_estimators(
    methods: list[Method], base: DiffusionSection, seed: int, probes: Probes, ranks: Ranks
) -> list[Estimator]:
    """The estimators of `methods` under the numbers of `base`. P-POTS probes the model."""
    estimators = []
    for method in methods:
        options = method.section(base)
        p_pots = PPots(options, t_sampler_of(options, seed, method.together), probes.of(options))
        p_pots.renew(0, FIRST_PROBED, ranks)
        estimators.append(Estimator(method, Noise(options), p_pots.t_sampler))
    return estimators
