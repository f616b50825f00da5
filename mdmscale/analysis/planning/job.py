"""What the models of memory and time share: a config, a model's shape and a number of ranks, as numbers."""

from dataclasses import dataclass

from mdmscale.config.parallel import ParallelSection
from mdmscale.config.run import RunConfig
from mdmscale.models.shape import ModelShape, head_chunk, indivisible
from mdmscale.parallel.batch_layout import BatchLayout, make_layout
from mdmscale.system.errors import UserError

FP32 = 4  # bytes
# What ZeRO-3 keeps of gathered parameters and fetches ahead, in elements: DeepSpeed's defaults.
LIVE_PARAMETERS = 1_050_000_000


@dataclass(frozen=True)
class Job:
    """A run on `num_ranks` ranks."""

    config: RunConfig
    shape: ModelShape
    layout: BatchLayout
    num_ranks: int

    @property
    def parallel(self) -> ParallelSection:
        return self.config.parallel

    @property
    def width(self) -> int:
        """Bytes of a weight and of an activation."""
        return 2 if self.config.model.dtype == "bf16" else 4

    @property
    def length(self) -> int:
        return self.config.data.sequence_length

    @property
    def shards(self) -> int:
        """Ranks that ZeRO shards over: those of a sequence count like data ranks."""
        return self.num_ranks // self.parallel.tensor

    @property
    def tokens(self) -> float:
        """Of one forward on one rank, in all its rows."""
        return self.layout.rows_per_forward * self.length / self.parallel.sequence

    @property
    def forwards(self) -> int:
        """On one rank in a step."""
        return self.layout.gradient_accumulation_steps * self.layout.forwards

    @property
    def tokens_per_step(self) -> int:
        """Clean tokens over all ranks; both rows of a pair hold the same."""
        return self.layout.global_batch_size * self.length

    @property
    def num_parameters(self) -> float:
        """On one tensor rank; norms, which are whole on each, are too small to matter."""
        return (self.shape.num_parameters + self.num_adapters) / self.parallel.tensor

    @property
    def num_trained(self) -> float:
        """On one tensor rank."""
        if self.config.model.lora is not None:
            return self.num_adapters
        return self.shape.num_parameters / self.parallel.tensor

    @property
    def num_adapters(self) -> int:
        lora = self.config.model.lora
        return 0 if lora is None else self.shape.num_adapters(lora)

    @property
    def is_frozen(self) -> bool:
        """Whether adapters alone are trained."""
        return self.config.model.lora is not None

    @property
    def rows_may_be_padded(self) -> bool:
        """Whether a micro-batch can hold samples of different lengths: attention then gets a mask."""
        data = self.config.data
        return self.layout.micro_batch_size > 1 and (data.kind == "sft" or data.random_length_fraction > 0)

    @property
    def fuses_softmax(self) -> bool:
        """Whether the head's softmax is compiled: a job is planned for GPUs, see head.is_fused."""
        return self.config.model.head != "chunked"

    @property
    def head_chunk(self) -> int:
        """Masked positions that the head projects at a time."""
        return self.config.model.head_chunk_size or head_chunk(self.shape.vocab // self.parallel.tensor)

    @property
    def masked_share(self) -> float:
        """Expected share of masked positions, E r(t): t uniform in its range, every token eligible."""
        eps = self.config.diffusion.eps
        return eps + (1 - eps) * sum(self.config.diffusion.t_range) / 2


def make_job(config: RunConfig, shape: ModelShape, num_ranks: int) -> Job:
    """The job of `config` on so many ranks.

    Raises:
        UserError: where ranks, model or batch do not divide, with what would.
    """
    parallel = config.parallel
    sharing = parallel.tensor * parallel.sequence
    if num_ranks % sharing:
        raise UserError(
            f"{num_ranks} ranks are no multiple of parallel.tensor = {parallel.tensor} x parallel.sequence = "
            f"{parallel.sequence} = {sharing}; {-(-num_ranks // sharing) * sharing} are"
        )
    if problems := indivisible(shape, parallel.tensor, parallel.sequence):
        raise UserError(*problems)
    return Job(config, shape, make_layout(config, num_ranks), num_ranks)
