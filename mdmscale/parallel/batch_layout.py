"""How a global batch is split over ranks, micro-batches and forwards. Needs no torch: errors come early."""

from dataclasses import dataclass

from mdmscale.config.run import RunConfig
from mdmscale.system.errors import UserError


@dataclass(frozen=True)
class BatchLayout:
    """global_batch_size = dp_size x micro_batch_size x gradient_accumulation_steps, all in samples."""

    dp_size: int  # data-parallel ranks; ranks that share a model or a sequence count as one
    micro_batch_size: int
    gradient_accumulation_steps: int
    rows_per_sample: int = 1  # 2 for a pair
    splits_rows: bool = False  # the rows of a sample are forwards of their own, one after the other
    packs: bool = False  # rows of different lengths lie end to end instead of padded

    @property
    def global_batch_size(self) -> int:
        return self.dp_size * self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def rows_per_forward(self) -> int:
        return self.micro_batch_size * (1 if self.splits_rows else self.rows_per_sample)

    @property
    def forwards_per_step(self) -> int:
        """Forwards of one rank, whose gradients are accumulated."""
        return self.gradient_accumulation_steps * (self.rows_per_sample if self.splits_rows else 1)

    def sample_indices(self, step: int, rank: int) -> list[list[int]]:
        """The global sample indices of each micro-batch of `step` on data rank `rank`.

        Shape: [gradient_accumulation_steps][micro_batch_size].
        """
        first = step * self.global_batch_size
        return [
            [
                first + (turn * self.dp_size + rank) * self.micro_batch_size + offset
                for offset in range(self.micro_batch_size)
            ]
            for turn in range(self.gradient_accumulation_steps)
        ]


def make_layout(config: RunConfig, world_size: int) -> BatchLayout:
    """The batch layout of a job of `world_size` ranks.

    Raises:
        UserError: where the ranks do not divide among the parallel axes, or the global batch among the ranks.
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
    dp_size = world_size // sharing
    per_turn = dp_size * train.micro_batch_size
    if train.global_batch_size % per_turn:
        raise UserError(
            f"train.global_batch_size = {train.global_batch_size} is not a multiple of {dp_size} ranks x "
            f"train.micro_batch_size = {train.micro_batch_size} = {per_turn}; "
            f"{train.global_batch_size // per_turn * per_turn or per_turn} would be"
        )
    packs = train.packing
    if packs is None:
        packs = config.data.kind == "sft" and config.model.attention == "sdpa"
    return BatchLayout(
        dp_size,
        train.micro_batch_size,
        train.global_batch_size // per_turn,
        config.diffusion.rows_per_sample,
        splits_rows=config.diffusion.pair_forward == "sequential",
        packs=packs,
    )
