"""The time of each part of a training step, compared with the shortest time possible on this machine.

The floor of a part is the time of its matrix products at the rate of one large product, or of the bytes that
it must move at the rate of one large addition. Both rates are measured before and after each part, because
the rates of a shared machine fluctuate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from mdmscale.analysis.bench.path_bench import seconds_of
from mdmscale.analysis.bench.work import Sizes, make_batch, make_samples
from mdmscale.config.training import OptimizerSection
from mdmscale.data.batch import Batch
from mdmscale.engine.optim import make_optimizer
from mdmscale.models.backbone import DTYPES
from mdmscale.models.flops import count_flops
from mdmscale.models.mdm import MaskedDiffusionModel

PRODUCT_SIZE = 2048  # rows of the square matrices whose product measures the compute rate
ADDED = 1 << 26  # fp32 elements whose addition measures the memory rate
PLAIN, COMPILED = "layers", "layers, compiled"
# For an fp32 element of AdamW: weight, gradient and moments are read, all but the gradient are written.
STEP_BYTES = 28


@dataclass(frozen=True)
class PartTimes:
    """Seconds of one part of a step and its floor, by round. `floors` is None for a part without a floor."""

    name: str
    rounds: list[float]
    floors: list[float] | None = None

    @property
    def seconds(self) -> float:
        return median(self.rounds)

    @property
    def floor(self) -> float | None:
        return None if self.floors is None else median(self.floors)

    @property
    def share(self) -> float | None:
        """The floor as a share of the time: 1 is as fast as this machine can be."""
        if self.floors is None:
            return None
        return median(floor / seconds for floor, seconds in zip(self.floors, self.rounds, strict=True))


@dataclass(frozen=True)
class StepTimes:
    """The parts of a step, and the median rates that their floors are computed with."""

    parts: list[PartTimes]
    product_rate: float  # operations a second
    memory_rate: float  # bytes a second, read and written

    @property
    def steps(self) -> list[PartTimes]:
        """The sum of all parts, and also with compiled layers if these were measured."""
        steps = [self._without(COMPILED, "step")]
        if any(part.name == COMPILED for part in self.parts):
            steps.append(self._without(PLAIN, "step, compiled"))
        return steps

    def _without(self, other: str, name: str) -> PartTimes:
        parts = [part for part in self.parts if part.name != other]
        floors = [part.floors for part in parts if part.floors is not None]
        return PartTimes(name, _sums([part.rounds for part in parts]), _sums(floors))


def measure_parts(
    model: MaskedDiffusionModel, compiled: MaskedDiffusionModel | None, sizes: Sizes, rounds: int
) -> StepTimes:
    """Time the parts of a step of `masked` in turn for `rounds` rounds, and the layers of `compiled` too."""
    batch = make_batch(sizes, make_samples(sizes, "bernoulli"))
    flops = count_flops(sizes.shape)
    layers = flops.of(batch.num_tokens, batch.num_token_pairs, 0)
    head = flops.of(0, 0, len(batch.positions))
    moved = float(STEP_BYTES * sizes.shape.num_parameters)
    product = WorkRate(_product(sizes), 2 * PRODUCT_SIZE**3, sizes.device)
    addition = WorkRate(_addition(sizes), 2 * 4 * ADDED, sizes.device)
    steps: list[tuple[str, Callable[[], object], WorkRate | None, float]] = [
        ("batch", lambda: make_batch(sizes, make_samples(sizes, "bernoulli")), None, 0.0),
        (PLAIN, _layers_step(model, batch), product, layers),
        *([] if compiled is None else [(COMPILED, _layers_step(compiled, batch), product, layers)]),
        ("head", _head_step(model, batch), product, head),
        ("optimizer", _optimizer_step(model), addition, moved),
    ]
    parts = {name: PartTimes(name, [], None if rate is None else []) for name, _, rate, _ in steps}
    for number in range(rounds + 1):
        for name, step, rate, work in steps:
            before = 0.0 if rate is None else rate.sample()
            taken = seconds_of(step, sizes.device)
            if number == 0:  # the first round warms up
                continue
            part = parts[name]
            part.rounds.append(taken)
            if rate is not None and part.floors is not None:
                part.floors.append(work / ((before + rate.sample()) / 2))
    return StepTimes(list(parts.values()), median(product.samples), median(addition.samples))


class WorkRate:
    """Measures how much of one kind of work this machine does in a second."""

    def __init__(self, step: Callable[[], object], work: float, device: torch.device) -> None:
        self.step, self.work, self.device = step, work, device
        self.samples: list[float] = []

    def sample(self) -> float:
        self.samples.append(self.work / seconds_of(self.step, self.device))
        return self.samples[-1]


def _sums(columns: list[list[float]]) -> list[float]:
    return [sum(row) for row in zip(*columns, strict=True)]


def _layers_step(model: MaskedDiffusionModel, batch: Batch) -> Callable[[], object]:
    decoder = model.backbone.model
    shape = (*batch.input_ids.shape, model.backbone.config.hidden_size)
    gradient = torch.randn(shape, device=batch.input_ids.device, dtype=model.backbone.dtype)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state.backward(gradient)

    return step


def _head_step(model: MaskedDiffusionModel, batch: Batch) -> Callable[[], object]:
    head = model.backbone.lm_head
    hidden = torch.randn(
        len(batch.positions), head.in_features, device=head.weight.device, dtype=head.weight.dtype
    )

    def step() -> None:
        model.zero_grad(set_to_none=True)
        leaf = hidden.clone().requires_grad_()
        head(leaf, batch.targets, batch.weights).loss.backward()

    return step


def _optimizer_step(model: MaskedDiffusionModel) -> Callable[[], object]:
    """AdamW on fp32 copies of the weights, like master weights."""
    copies = torch.nn.ParameterList(
        torch.nn.Parameter(each.detach().float().clone()) for each in model.parameters()
    )
    for each in copies:
        each.grad = torch.full_like(each, 1e-3)
    return make_optimizer(copies, OptimizerSection(lr=1e-6)).step


def _product(sizes: Sizes) -> Callable[[], object]:
    matrix = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=sizes.device, dtype=DTYPES[sizes.dtype])
    out = torch.empty_like(matrix)
    return lambda: torch.mm(matrix, matrix, out=out)


def _addition(sizes: Sizes) -> Callable[[], object]:
    values = torch.zeros(ADDED, device=sizes.device)
    return lambda: values.add_(1)  # in place, because another output would be read before it is overwritten
