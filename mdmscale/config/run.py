"""RunConfig: every option of a run, typed, described and checked before torch is imported.

Precedence: the defaults here < the YAML file < `section.key=value` on the command line.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.parallel import ParallelSection
from mdmscale.config.section import DType, HeadKind, Recomputation, Section, key


class RunSection(Section):
    name: str = key(..., "name of the run; its folder is <output_dir>/<name>", pattern=r"^\w[\w.-]*$")
    output_dir: str = key("runs", "where run folders are made")
    seed: int = key(0, "seeds the weights, the order of the data and all noise", ge=0, lt=2**63)
    stall_timeout: float = key(
        1800.0,
        "seconds that a rank may stand still or silent before the job ends, naming it; 0: for ever",
        ge=0,
    )


class LoraSection(Section):
    rank: int = key(16, "rank of each adapter", ge=1)
    alpha: int = key(32, "adapters are scaled by alpha / rank", ge=1)
    target_modules: list[str] | None = key(
        None,
        "names of the linear layers that get one, such as q_proj; null means all but the head",
        min_length=1,
    )


class ModelSection(Section):
    path: str | None = key(None, "HF model folder or hub id to start from; null trains from scratch")
    tokenizer: str | None = key(None, "tokenizer folder or hub id; null takes model.path's")
    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = key(
        "llama", "decoder family (from scratch)"
    )
    vocab_size: int | None = key(None, "embedding rows; null fits the tokenizer, padded to 64", ge=2)
    hidden_size: int | None = key(None, "width of the residual stream", ge=1)
    intermediate_size: int | None = key(None, "width of the MLP; null means 8/3 hidden_size, up to 64", ge=1)
    num_hidden_layers: int | None = key(None, "number of decoder layers", ge=1)
    num_attention_heads: int | None = key(None, "number of query heads", ge=1)
    num_key_value_heads: int | None = key(None, "number of key/value heads; null means as many", ge=1)
    head_dim: int | None = key(None, "width of a head; null means hidden_size / num_attention_heads", ge=1)
    max_position_embeddings: int = key(4096, "longest sequence the model is declared for", ge=1)
    rope_theta: float = key(10000.0, "base of the rotary embedding", gt=0)
    rms_norm_eps: float = key(1e-5, "epsilon of RMSNorm", gt=0)
    tie_word_embeddings: bool = key(False, "share input and output embeddings")
    initializer_range: float = key(
        0.02, "standard deviation of initial weights; small models like more", gt=0
    )
    dtype: DType = key("bf16", "fp32 or bf16 (bf16 keeps fp32 master weights in the optimizer)")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = key("sdpa", "attention implementation")
    logit_shift: bool | None = key(
        None, "predict position i from hidden state i-1 (Dream); null takes the folder's, else false"
    )
    mask_token_id: int | None = key(
        None, "id of the mask token; null takes the model's or tokenizer's, else adds one", ge=0
    )
    activation_checkpointing: Recomputation = key(
        "none",
        "what backward makes anew instead of keeping it: none, selective (all but matrix products and "
        "attention) or full (whole layers); true is full, false none",
    )
    compile: bool = key(False, "torch.compile the decoder layers: minutes at the start, then faster steps")
    head: HeadKind = key(
        "auto",
        "how a chunk of logits becomes its loss and gradient: chunked (operation by operation), fused (two "
        "kernels of torch.compile) or auto (fused on CUDA)",
    )
    head_chunk_size: int | None = key(
        None, "masked positions projected to the vocabulary at a time; null: as many as take half a GiB", ge=1
    )

    attention_annealing_steps: int = key(
        0, "steps over which a causal model's attention is opened to later positions; 0: open at once", ge=0
    )
    lora: LoraSection | None = key(None, "train low-rank adapters beside the frozen model of model.path")

    @model_validator(mode="after")
    def _options_fit_the_start(self) -> Self:
        if self.lora is not None and self.path is None:
            raise ValueError("lora is set but path is null; adapters need a trained model to start from")
        if self.attention_annealing_steps and self.attention == "flash_attention_2":
            raise ValueError(
                f"attention_annealing_steps = {self.attention_annealing_steps} needs a mask of pairs, which "
                "flash_attention_2 does not take; set attention to sdpa"
            )
        if self.activation_checkpointing == "selective" and self.attention == "flash_attention_2":
            raise ValueError(
                "activation_checkpointing = selective does not know the operation of flash_attention_2 and "
                "would do it again; set attention to sdpa, or activation_checkpointing to full"
            )
        return self

    @model_validator(mode="after")
    def _scratch_is_complete(self) -> Self:
        if self.path is None:
            needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "tokenizer")
            missing = [name for name in needed if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a model from scratch (model.path: null) also needs {', '.join(missing)}")
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads and groups and heads % groups:
            raise ValueError(
                f"num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"
            )
        if heads and self.hidden_size and self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = {heads}"
            )
        return self


class DataSection(Section):
    kind: Literal["tokens", "sft"] = key(..., "tokens: packed pretraining shards; sft: prompts and responses")
    path: str | list[str] = key(
        ...,
        "tokens: prefixes, folders or globs of .bin/.idx shards; sft: .jsonl files or prepared prefixes",
    )
    sequence_length: int = key(..., "tokens a sample may have (longer SFT samples are refused or cut)", ge=2)
    held_out: float = key(
        0.01, "share of documents (sft: samples) kept for evaluation, a million at most", ge=0, lt=1
    )
    random_length_fraction: float = key(
        0.01, "tokens: share of sequences cut to a random length, so that short inputs are seen", ge=0, le=1
    )
    fill_multiple: int = key(
        0, "sft: fill each response with trained EOS to a multiple of this length; 0 adds one EOS only", ge=0
    )
    too_long: Literal["error", "truncate", "drop"] = key(
        "error", "sft: what to do with samples longer than sequence_length"
    )
    num_workers: int | None = key(
        None,
        "processes a rank that make batches ahead; 0: made in training's own; null: 2 on a GPU, 0 on the CPU",
        ge=0,
    )

    @model_validator(mode="after")
    def _fill_is_used(self) -> Self:
        if self.fill_multiple and self.kind != "sft":
            raise ValueError("fill_multiple is set but kind is tokens; only sft samples are filled")
        return self


class TrainSection(Section):
    steps: int = key(..., "optimizer steps in all", ge=1)
    global_batch_size: int = key(..., "samples a step over all ranks (a MIRROR pair is one sample)", ge=1)
    micro_batch_size: int = key(1, "samples in one forward on one rank", ge=1)
    packing: bool | None = key(
        None, "lay the samples of a forward end to end instead of padding them; null: for sft, under sdpa"
    )

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.global_batch_size % self.micro_batch_size:
            raise ValueError(
                f"global_batch_size = {self.global_batch_size} is not a multiple of "
                f"micro_batch_size = {self.micro_batch_size}"
            )
        return self


class OptimizerSection(Section):
    lr: float = key(..., "peak learning rate", gt=0)
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = key(
        [0.9, 0.95], "AdamW's two decay rates", min_length=2, max_length=2
    )
    eps: float = key(1e-8, "AdamW's epsilon", gt=0)
    weight_decay: float = key(0.1, "decoupled weight decay; norms, biases and embeddings have none", ge=0)
    gradient_clipping: float = key(1.0, "largest global gradient norm; 0 does not clip", ge=0)
    schedule: Literal["constant", "linear", "cosine", "wsd"] = key(
        "cosine", "after warm-up: constant, linear or cosine decay, or warmup-stable-decay"
    )
    warmup_steps: int = key(0, "steps of linear warm-up from 0", ge=0)
    decay_steps: int | None = key(
        None, "wsd: length of the final decay; null means a tenth of the steps", ge=1
    )
    min_lr_ratio: float = key(0.0, "final learning rate as a share of the peak", ge=0, le=1)

    @model_validator(mode="after")
    def _decay_steps_are_used(self) -> Self:
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(f"decay_steps is set but schedule is {self.schedule}; only wsd reads it")
        return self


class CheckpointSection(Section):
    every: int = key(0, "steps between checkpoints; 0 saves at the end only", ge=0)
    keep: int = key(2, "newest checkpoints kept; 0 keeps all", ge=0)
    resume: str = key(
        "auto",
        "auto: the run's newest whole checkpoint if there is one; none: start anew; or a checkpoint folder",
    )


class LoggingSection(Section):
    every: int = key(10, "steps between progress lines (metrics.jsonl has a line for every step)", ge=1)
    tensorboard: bool = key(True, "also write TensorBoard event files")


class EvalSection(Section):
    every: int = key(0, "steps between evaluations on held-out data; 0 means never", ge=0)
    samples: int = key(64, "held-out samples evaluated (fewer where there are fewer)", ge=1)
    num_t: int = key(8, "midpoints of t at which each sample is evaluated", ge=1)


class RunConfig(Section):
    """The whole of a run's configuration. Section and key names are the YAML's."""

    run: RunSection
    model: ModelSection
    data: DataSection
    diffusion: DiffusionSection = DiffusionSection()
    train: TrainSection
    optimizer: OptimizerSection
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    eval: EvalSection = EvalSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = []
        if self.eval.every and not self.data.held_out:
            problems.append(
                "eval.every is set but data.held_out = 0 leaves nothing to evaluate; give held_out a share"
            )
        if self.optimizer.warmup_steps > self.train.steps:
            problems.append(
                f"optimizer.warmup_steps = {self.optimizer.warmup_steps} exceeds "
                f"train.steps = {self.train.steps}"
            )
        p_pots = self.diffusion.p_pots
        measured_at = [*p_pots.probe_steps, *([p_pots.refit_every] if p_pots.refit_every else [])]
        if self.diffusion.t_sampler == "p_pots" and all(step >= self.train.steps for step in measured_at):
            problems.append(
                f"diffusion.p_pots.probe_steps = {p_pots.probe_steps} and refit_every = {p_pots.refit_every} "
                f"name no step below train.steps = {self.train.steps}, so p(t) would never be measured"
            )
        if self.diffusion.syrm is not None and self.data.kind != "sft":
            problems.append(
                f"diffusion.syrm is set but data.kind is {self.data.kind}; only sft samples have a prompt"
            )
        problems += self._parallel_problems()
        problems += self._compile_problems()
        strata = self.diffusion.strata
        if strata and self.train.global_batch_size % strata:
            problems.append(
                f"train.global_batch_size = {self.train.global_batch_size} is not a multiple of "
                f"diffusion.strata = {strata}, so the strata would not be hit equally often"
            )
        if self.data.sequence_length > self.model.max_position_embeddings and self.model.path is None:
            problems.append(
                f"data.sequence_length = {self.data.sequence_length} exceeds "
                f"model.max_position_embeddings = {self.model.max_position_embeddings}"
            )
        if self.train.packing and self.model.attention != "sdpa":
            problems.append(
                f"train.packing = true keeps samples apart in sdpa, but model.attention is "
                f"{self.model.attention}; set it to sdpa, or packing to false"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _parallel_problems(self) -> list[str]:
        """What ranks that share a model or a sequence cannot do, and what disks cannot hold."""
        tensor, sequence, problems = self.parallel.tensor, self.parallel.sequence, []
        if self.parallel.offload_parameters == "nvme":
            if self.model.dtype != "bf16":
                problems.append(
                    f"parallel.offload_parameters = nvme: DeepSpeed keeps parameters on disk in 16 bits; set "
                    f"model.dtype to bf16, not {self.model.dtype}"
                )
            if self.model.lora is not None:
                problems.append(
                    "parallel.offload_parameters = nvme and model.lora: checkpoints would lack the frozen "
                    "model; set offload_parameters to cpu"
                )
        if tensor > 1 and self.model.lora is not None:
            problems.append(
                f"parallel.tensor = {tensor} and model.lora: adapters are not split; set tensor to 1"
            )
        if sequence > 1 and self.model.attention != "sdpa":
            problems.append(
                f"parallel.sequence = {sequence} exchanges slices around sdpa, but model.attention is "
                f"{self.model.attention}; set it to sdpa"
            )
        return problems

    def _compile_problems(self) -> list[str]:
        """What a decoder layer that is compiled as one graph cannot have in it."""
        if not self.model.compile:
            return []
        problems = []
        if self.parallel.zero_stage == 3:
            problems.append(
                "model.compile = true with parallel.zero_stage = 3: DeepSpeed gathers parameters by hooks "
                "in the middle of a layer; set zero_stage to 2 or less, or compile to false"
            )
        problems += [
            f"model.compile = true with parallel.{name} = {getattr(self.parallel, name)}: ranks exchange "
            f"tensors in the middle of a layer; set {name} to 1, or compile to false"
            for name in ("tensor", "sequence")
            if getattr(self.parallel, name) > 1
        ]
        if self.model.activation_checkpointing == "selective":
            problems.append(
                "model.compile = true with model.activation_checkpointing = selective: the compiler chooses "
                "by itself what to make anew; set activation_checkpointing to none or full"
            )
        if self.model.attention == "flash_attention_2":
            problems.append(
                "model.compile = true with model.attention = flash_attention_2, which takes padding out by "
                "sizes that a graph cannot know; set attention to sdpa"
            )
        return problems
