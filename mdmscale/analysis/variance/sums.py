"""Inner products of draws in three measures, and sums of draws by group over the ranks.

Legend: width = params + 1, the length of a draw's vector; vectors = the means that are kept apart.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mdmscale.parallel.collectives import all_reduce_sum
from mdmscale.parallel.ranks import Ranks

MEASURES = ("loss", "gradient", "adam")
"""adam: the gradient divided by the root of its diagonal second moment, which Adam does."""
CHUNK = 1 << 18  # parameters whose sums are on every rank at a time
DAMPING = 0.01  # of the mean of D over a parameter's tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """inverse: float32 [width], 1 / D for the parameters, and 0 for the loss."""

    inverse: torch.Tensor

    def products(self, ones: torch.Tensor, others: torch.Tensor) -> np.ndarray:
        """Inner products of vectors [a, width] and [b, width] in each measure, float64 [a, b, 3]."""
        raw = ones[:, :-1] @ others[:, :-1].T
        adam = (ones * self.inverse) @ others.T
        loss = ones[:, -1:].double() @ others[:, -1:].double().T
        return torch.stack([loss, raw.double(), adam.double()], dim=-1).cpu().numpy()

    def square(self, vector: torch.Tensor) -> np.ndarray:
        """The squared norm of a vector [width] in each measure, float64 [3]."""
        return self.products(vector[None], vector[None])[0, 0]

    def part(self, start: int, stop: int) -> "Metric":
        """The metric of some of the parameters."""
        return Metric(torch.cat([self.inverse[start:stop], self.inverse[-1:]]))


def adam_metric(
    squares: torch.Tensor, mean: torch.Tensor, num_draws: int, batch_size: int, sizes: list[int]
) -> Metric:
    """The metric of Adam at a batch size: D is the second moment of each element of a batch's gradient.

    D = G^2 + (E Y^2 - G^2) / batch_size. D is damped, so that a parameter whose gradients the pilot hardly
    saw does not count without bound.

    Args:
        squares, mean: [width], the means of Y^2 and of Y over `num_draws` draws.
        sizes: the number of elements of each tensor.
    """
    variance = (squares - mean.square()).clamp(min=0) * num_draws / (num_draws - 1)
    signal = (mean.square() - variance / num_draws).clamp(min=0)
    moment = (signal + variance / batch_size)[:-1]
    levels = [part.mean().expand(len(part)) for part in moment.split(sizes)]
    damped = moment + DAMPING * torch.cat(levels)
    inverse = torch.where(damped > 0, 1 / damped, torch.zeros_like(damped))
    return Metric(torch.cat([inverse, inverse.new_zeros(1)]))


class GroupSums:
    """Sums of vectors by group. Group i is on rank i modulo world_size.

    The intervals come from leaving out one group at a time (delete-a-group jackknife).
    """

    def __init__(self, num_groups: int, num_vectors: int, width: int, ranks: Ranks) -> None:
        self.num_groups, self.ranks = num_groups, ranks
        num_mine = len(range(ranks.rank, num_groups, ranks.world_size))
        self.sums = torch.zeros(num_mine, num_vectors, width, device=ranks.device)

    def add(self, group: int, vectors: torch.Tensor) -> None:
        """Add vectors [vectors, width] to those of a group of this rank."""
        self.sums[group // self.ranks.world_size] += vectors

    def products(self, metric: Metric) -> np.ndarray:
        """Inner products between the groups' sums, float64 [vectors, groups, groups, 3], on every rank."""
        params = self.sums.shape[2] - 1
        mine = slice(self.ranks.rank, self.num_groups, self.ranks.world_size)
        total = np.zeros((self.sums.shape[1], self.num_groups, self.num_groups, 3))
        for start in range(0, params, CHUNK):
            stop, is_last = min(start + CHUNK, params), start + CHUNK >= params
            part = torch.zeros(self.num_groups, self.sums.shape[1], stop - start + 1, device=self.sums.device)
            part[mine, :, :-1] = self.sums[:, :, start:stop]
            part[mine, :, -1] = self.sums[:, :, -1] if is_last else 0  # the loss once
            part = all_reduce_sum(part)
            of_part = metric.part(start, stop)
            total += np.stack([of_part.products(vectors, vectors) for vectors in part.unbind(dim=1)])
        return total
