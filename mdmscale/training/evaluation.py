"""The held-out loss, on a fixed grid of t and with fixed masks."""

import numpy as np

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.run import EvalSection, RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import Noise, NoisedSample, noise_sample
from mdmscale.diffusion.objective import model_kind
from mdmscale.diffusion.uniforms import Stream, mask_uniforms
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.errors import UserError
from mdmscale.training.passes import ForwardModel, forward_sums, share_out

# The same for every run, so that evaluation losses of different runs can be compared.
EVAL_SEED = 0


def check_held_out(config: RunConfig, source: SampleSource) -> None:
    """Refuse an evaluation without a token: its mean would be NaN.

    Raises:
        UserError: naming the options.
    """
    if config.eval.every and not source.num_held_out:
        raise UserError(
            f"data.held_out = {config.data.held_out}: the documents of {source.description} that it holds "
            f"out have no tokens, so eval.every = {config.eval.every} has nothing to evaluate; raise "
            "data.held_out, or prepare the data without empty documents"
        )


def evaluate(
    engine: ForwardModel,
    source: SampleSource,
    options: EvalSection,
    diffusion: DiffusionSection,
    collate: Collator,
    rows_per_forward: int,
    ranks: Ranks,
) -> float:
    """The loss on held-out data in nats per token: the mean over samples and, for an MDM, a fixed grid of t.

    `diffusion` tells the objective and eps. Masks, t and order are the same for every run and step, so only
    the model can change the loss. Masks are plain Bernoulli masks, whatever training uses. The source needs a
    held-out sample, see `check_held_out`.
    """
    num_samples = min(options.samples, source.num_held_out)
    assert num_samples > 0, f"{source.description} has no held-out sample"
    if model_kind(diffusion.objective) == "ar":
        plain, grid = Noise(DiffusionSection(objective="ar")), np.array([0.5])  # any single value
    else:
        plain, grid = Noise(DiffusionSection(eps=diffusion.eps, weights="rate")), eval_t(options)
    num_draws = num_samples * len(grid)

    def draw(index: int) -> NoisedSample:
        sample_place, t_place = divmod(index, len(grid))
        sample = source.held_out_sample(sample_place * source.num_held_out // num_samples)  # evenly spread
        uniforms = mask_uniforms(EVAL_SEED, index, len(sample.token_ids), Stream.EVAL)
        return noise_sample(sample, Levels.at(grid[t_place]), uniforms, plain)

    def measure(item: int) -> np.ndarray:
        indices = range(item * rows_per_forward, min((item + 1) * rows_per_forward, num_draws))
        batch = collate([draw(index) for index in indices])
        return np.array([forward_sums(engine, batch, ranks.device)[0].sum()])

    sums = share_out(measure, -(-num_draws // rows_per_forward), (1,), ranks)
    return float(sums.sum() / num_draws)


def eval_t(options: EvalSection) -> np.ndarray:
    """The t at which every held-out sample is evaluated, float64 [num_t]: midpoints of equal cells."""
    return (np.arange(options.num_t) + 0.5) / options.num_t
