"""The numbers that the models of memory and time share: sizes of a config on a number of ranks."""

from dataclasses import dataclass

from mdmscale.config.parallel import ParallelSection
from mdmscale.config.run import RunConfig
from mdmscale.diffusion.schedule import mask_rate
from mdmscale.models.shape import ModelShape, head_chunk, indivisible
from mdmscale.parallel.batch_layout import BatchLayout, make_layout
from mdmscale.system.errors import UserError

FP32 = 4  # bytes
# Most elements of gathered parameters that ZeRO-3 holds, those fetched ahead included: DeepSpeed's defaults.
LIVE_PARAMETERS = 1_050_000_000


@dataclass(frozen=True)
class Workload:
    """A config with a model of known shape, on `num_ranks` ranks."""

    config: RunConfig
    shape: ModelShape
    batch_layout: BatchLayout
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
        """Ranks that ZeRO shards over: data-parallel and sequence-parallel ranks."""
        return self.num_ranks // self.parallel.tensor

    @property
    def tokens(self) -> float:
        """Tokens of one forward on one rank, in all its rows."""
        return self.batch_layout.rows_per_forward * self.length / self.parallel.sequence

    @property
    def rows_per_sample(self) -> int:
        return self.config.diffusion.rows_per_sample

    @property
    def rows_per_probe(self) -> int:
        """Rows of a forward of a P-POTS probe: all the masks of one sample at one t."""
        diffusion = self.config.diffusion
        return diffusion.p_pots.num_masks * diffusion.corruption.probed.num_rows

    @property
    def forwards(self) -> int:
        """Forwards of one rank in a step."""
        return self.batch_layout.forwards_per_step

    @property
    def tokens_per_step(self) -> int:
        """Clean tokens of a step over all ranks. The two rows of a pair share theirs."""
        return self.batch_layout.global_batch_size * self.length

    @property
    def num_parameters(self) -> float:
        """Parameters on one tensor rank. Norms are replicated, which is too little to count."""
        return (self.shape.num_parameters + self.num_adapters) / self.parallel.tensor

    @property
    def num_trained(self) -> float:
        """Trained parameters on one tensor rank."""
        if self.config.model.lora is not None:
            return self.num_adapters
        return self.shape.num_parameters / self.parallel.tensor

    @property
    def num_adapters(self) -> int:
        lora = self.config.model.lora
        return 0 if lora is None else self.shape.num_adapters(lora)

    @property
    def is_frozen(self) -> bool:
        """Whether only adapters are trained."""
        return self.config.model.lora is not None

    @property
    def is_causal(self) -> bool:
        """Whether a position attends only to itself and to earlier ones, so that no mask hides padding."""
        return self.config.diffusion.objective == "ar"

    @property
    def pairs_per_token(self) -> float:
        """How many positions of its row a token attends to, on average."""
        return (self.length + 1) / 2 if self.is_causal else self.length

    @property
    def rows_may_be_padded(self) -> bool:
        """Whether a micro-batch can hold samples of different lengths, so that attention gets a mask."""
        data = self.config.data
        return self.batch_layout.micro_batch_size > 1 and (
            data.kind == "sft" or data.random_length_fraction > 0
        )

    @property
    def fuses_softmax(self) -> bool:
        """Whether the head's softmax is compiled, which head.is_fused decides for GPUs in the same way."""
        return self.config.model.head != "chunked"

    @property
    def head_chunk(self) -> int:
        """Masked positions that the head projects at a time."""
        return self.config.model.head_chunk_size or head_chunk(self.shape.vocab // self.parallel.tensor)

    @property
    def masked_share(self) -> float:
        """Expected share of masked positions, E r(t), for t uniform in its range and every token eligible.

        An autoregressive model predicts them all.
        """
        if self.is_causal:
            return 1.0
        return mask_rate(sum(self.config.diffusion.t_range) / 2, self.config.diffusion.eps)


def make_workload(config: RunConfig, shape: ModelShape, num_ranks: int) -> Workload:
    """The workload of `config` on `num_ranks` ranks.

    Raises:
        UserError: where ranks, model or batch do not divide, with a number that does.
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
    return Workload(config, shape, make_layout(config, num_ranks), num_ranks)
