"""Where a training step's time goes: each part by itself, beside the least that this machine could take.

The floor of a part is its matrix products at the rate of one large product, or the bytes that it must move at
the rate of one large addition. Both are measured before and after each part, as a shared machine's rates are
others the next moment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from mdmscale.analysis.bench.measure import seconds_of
from mdmscale.analysis.bench.work import Sizes, make_batch, make_samples
from mdmscale.config.training import OptimizerSection
from mdmscale.data.batch import Batch
from mdmscale.engine.optim import make_optimizer
from mdmscale.models.backbone import DTYPES
from mdmscale.models.flops import count_flops
from mdmscale.models.mdm import MaskedDiffusionModel

PRODUCT_SIZE = 2048  # of the square product that a machine's rate is measured by
ADDED = 1 << 26  # fp32 elements of the addition that its memory's rate is measured by
PLAIN, COMPILED = "layers", "layers, compiled"
STEP_BYTES = 28  # an fp32 element of AdamW: weight, gradient and moments read, all but the gradient written


@dataclass(frozen=True)
class Part:
    """Seconds of one part of a step, and its floor then (None where there is none to speak of), by round."""

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
        """Of the time, what the floor takes: 1 is as fast as this machine can be."""
        if self.floors is None:
            return None
        return median(floor / seconds for floor, seconds in zip(self.floors, self.rounds, strict=True))


@dataclass(frozen=True)
class Parts:
    """A step's parts, and the rates that their floors are counted by, in the median."""

    parts: list[Part]
    product_rate: float  # operations a second
    memory_rate: float  # bytes a second, read and written

    @property
    def steps(self) -> list[Part]:
        """All parts together; once more with compiled layers, if these were measured."""
        steps = [self._without(COMPILED, "step")]
        if any(part.name == COMPILED for part in self.parts):
            steps.append(self._without(PLAIN, "step, compiled"))
        return steps

    def _without(self, other: str, name: str) -> Part:
        parts = [part for part in self.parts if part.name != other]
        floors = [part.floors for part in parts if part.floors is not None]
        return Part(name, _sums([part.rounds for part in parts]), _sums(floors))


def measure_parts(
    model: MaskedDiffusionModel, compiled: MaskedDiffusionModel | None, sizes: Sizes, rounds: int
) -> Parts:
    """The parts of a step of `masked`, in turn, `rounds` times; also the layers of a compiled model."""
    batch = make_batch(sizes, make_samples(sizes, "bernoulli"))
    flops = count_flops(sizes.shape)
    layers = flops.of(batch.num_tokens, batch.num_token_pairs, 0)
    head = flops.of(0, 0, len(batch.positions))
    moved = float(STEP_BYTES * sizes.shape.num_parameters)
    product = Rate(_product(sizes), 2 * PRODUCT_SIZE**3, sizes.device)
    addition = Rate(_addition(sizes), 2 * 4 * ADDED, sizes.device)
    steps: list[tuple[str, Callable[[], object], Rate | None, float]] = [
        ("batch", lambda: make_batch(sizes, make_samples(sizes, "bernoulli")), None, 0.0),
        (PLAIN, _layers_step(model, batch), product, layers),
        *([] if compiled is None else [(COMPILED, _layers_step(compiled, batch), product, layers)]),
        ("head", _head_step(model, batch), product, head),
        ("optimizer", _optimizer_step(model), addition, moved),
    ]
    parts = {name: Part(name, [], None if rate is None else []) for name, _, rate, _ in steps}
    for number in range(rounds + 1):
        for name, step, rate, work in steps:
            before = 0.0 if rate is None else rate.measure()
            taken = seconds_of(step, sizes.device)
            if number == 0:  # the first round warms up
                continue
            part = parts[name]
            part.rounds.append(taken)
            if rate is not None and part.floors is not None:
                part.floors.append(work / ((before + rate.measure()) / 2))
    return Parts(list(parts.values()), median(product.seen), median(addition.seen))


class Rate:
    """How much a second this machine does of one kind of work, each time it is asked."""

    def __init__(self, step: Callable[[], object], work: float, device: torch.device) -> None:
        self.step, self.work, self.device = step, work, device
        self.seen: list[float] = []

    def measure(self) -> float:
        self.seen.append(self.work / seconds_of(self.step, self.device))
        return self.seen[-1]


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
    """AdamW on copies of the weights, as fp32 masters are."""
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
    return lambda: values.add_(1)  # in place: a copy would also read what it overwrites
