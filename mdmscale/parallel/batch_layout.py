"""How a global batch is split over ranks, micro-batches and forwards. Torch-free: errors come early."""

from dataclasses import dataclass

from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class BatchLayout:
    """global = ranks x micro x accumulation, all counted in samples."""

    num_ranks: int  # data-parallel ones; those that share a model or a sequence count as one
    micro_batch_size: int
    accumulation: int
    copies: int = 1  # rows a sample takes: 2 for a pair
    forwards: int = 1  # a micro-batch takes: 2 where the rows of a pair take turns
    packs: bool = False  # rows of different lengths lie end to end instead of padded

    @property
    def global_batch_size(self) -> int:
        return self.num_ranks * self.micro_batch_size * self.accumulation

    @property
    def rows_per_forward(self) -> int:
        return self.micro_batch_size * self.copies // self.forwards

    def sample_indices(self, step: int, rank: int) -> list[list[int]]:
        """Global sample indices of each micro-batch of `step` on `rank`: [accumulation][micro_batch_size]."""
        first = step * self.global_batch_size
        return [
            [
                first + (turn * self.num_ranks + rank) * self.micro_batch_size + place
                for place in range(self.micro_batch_size)
            ]
            for turn in range(self.accumulation)
        ]


def make_layout(config: RunConfig, world_size: int) -> BatchLayout:
    """The layout of a job of `world_size` ranks.

    Raises:
        UserError: when the global batch does not divide.
    """
    parallel, train = config.parallel, config.train
    sharing = parallel.tensor * parallel.sequence
    if world_size % sharing:
        raise UserError(
            f"parallel.tensor = {parallel.tensor} x parallel.sequence = {parallel.sequence} = {sharing} does "
            f"not divide {world_size} ranks"
        )
    if (world_size // parallel.tensor) % parallel.hpz_partition_size:
        raise UserError(
            f"parallel.hpz_partition_size = {parallel.hpz_partition_size} does not divide the "
            f"{world_size // parallel.tensor} ranks that ZeRO shards over"
        )
    num_ranks = world_size // sharing
    per_turn = num_ranks * train.micro_batch_size
    if train.global_batch_size % per_turn:
        raise UserError(
            f"train.global_batch_size = {train.global_batch_size} is not a multiple of {num_ranks} ranks x "
            f"train.micro_batch_size = {train.micro_batch_size} = {per_turn}; "
            f"{train.global_batch_size // per_turn * per_turn or per_turn} would be"
        )
    copies, packs = config.diffusion.copies, train.packing
    if packs is None:
        packs = config.data.kind == "sft" and config.model.attention == "sdpa"
    return BatchLayout(
        num_ranks,
        train.micro_batch_size,
        train.global_batch_size // per_turn,
        copies,
        copies if config.diffusion.pair_forward == "sequential" else 1,
        packs,
    )
