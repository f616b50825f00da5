"""Where a training step's time goes: each part by itself, beside the least that this machine could take.

The floor of a part is its matrix products at the rate of one large product, or the bytes that it must move at
the rate of one large addition, both measured in the same rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from mdmscale.bench.measure import seconds_of
from mdmscale.bench.work import Sizes, make_batch, make_samples
from mdmscale.config import OptimizerSection
from mdmscale.data.batch import Batch
from mdmscale.models.backbone import DTYPES
from mdmscale.models.flops import count_flops
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.optim import make_optimizer

PRODUCT_SIZE = 2048  # of the square product that a machine's rate is measured by
ADDED = 1 << 26  # fp32 elements of the addition that its memory's rate is measured by
STEP_BYTES = 28  # an fp32 element of AdamW: weight, gradient and moments read, all but the gradient written


@dataclass(frozen=True)
class Part:
    """Seconds of one part of a step, and its floor (None where there is none to speak of)."""

    name: str
    seconds: float
    floor: float | None


@dataclass(frozen=True)
class Parts:
    """A step's parts, and the rates that their floors are counted by."""

    parts: list[Part]
    product_rate: float  # operations a second
    memory_rate: float  # bytes a second, read and written

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def floor(self) -> float:
        return sum(part.floor or 0.0 for part in self.parts)


def measure_parts(model: MaskedDiffusionModel, sizes: Sizes, rounds: int) -> Parts:
    """The parts of a step of `masked`, in turn, `rounds` times; medians, and the best of each rate."""
    batch = make_batch(sizes, make_samples(sizes, "bernoulli"))
    steps = {
        "batch": lambda: make_batch(sizes, make_samples(sizes, "bernoulli")),
        "layers": _layers_step(model, batch),
        "head": _head_step(model, batch),
        "optimizer": _optimizer_step(model),
        "product": _product(sizes),
        "addition": _addition(sizes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            taken = seconds_of(step, sizes.device)
            if number > 0:  # the first round warms up
                seconds[name].append(taken)
    product_rate = 2 * PRODUCT_SIZE**3 / min(seconds["product"])
    memory_rate = 2 * 4 * ADDED / min(seconds["addition"])
    flops = count_flops(sizes.shape)
    floors = {
        "batch": None,
        "layers": flops.of(batch.num_tokens, batch.num_pairs, 0) / product_rate,
        "head": flops.of(0, 0, len(batch.positions)) / product_rate,
        "optimizer": STEP_BYTES * sizes.shape.num_parameters / memory_rate,
    }
    parts = [Part(name, median(seconds[name]), floor) for name, floor in floors.items()]
    return Parts(parts, product_rate, memory_rate)


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
