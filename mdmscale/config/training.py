"""The sections of the training loop: train, optimizer, checkpoint, logging and eval."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mdmscale.config.section import Section, key

HELD_OUT_LOSS = "loss"  # the value of checkpoint.keep_best that names no task


class TrainSection(Section):
    steps: int = key(..., "optimizer steps in total", ge=1, lt=10**8)  # names of checkpoints have 8 digits
    global_batch_size: int = key(
        ..., "samples in a step over all ranks, each with all its rows: a pair is one sample", ge=1
    )
    micro_batch_size: int = key(1, "samples in one forward on one rank", ge=1)
    packing: bool | None = key(
        None,
        "concatenate the samples of a forward instead of padding them; null: true for sft with sdpa",
    )
    ema_decay: float | None = key(
        None,
        "decay of a moving average of the weights, such as 0.999, which is exported and evaluated beside "
        "them; null: none (diffusion.ema_decay is of the loss instead)",
        gt=0,
        lt=1,
    )

    skip_spikes: float | None = key(
        None,
        "skip a step whose controlled loss or gradient norm lies more than this many robust standard "
        "deviations above the median of the last 100 steps, such as 8; null: only steps that are not finite",
        gt=0,
    )
    check_replicas_every: int = key(
        100,
        "ZeRO-0: steps between checks that all ranks hold the same weights; each checkpoint is checked, too; "
        "0: never",
        ge=0,
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
    weight_decay: float = key(
        0.1, "decoupled weight decay; not applied to norms, biases and embeddings", ge=0
    )
    gradient_clipping: float = key(1.0, "largest global gradient norm; 0: no clipping", ge=0)
    schedule: Literal["constant", "linear", "cosine", "wsd"] = key(
        "cosine", "learning rate after warm-up: constant, linear or cosine decay, or warmup-stable-decay"
    )
    warmup_steps: int = key(0, "steps of linear warm-up from 0", ge=0)
    decay_steps: int | None = key(None, "wsd: steps of the final decay; null: a tenth of train.steps", ge=1)
    min_lr_ratio: float = key(0.0, "final learning rate as a share of the peak", ge=0, le=1)

    @model_validator(mode="after")
    def _decay_steps_are_used(self) -> Self:
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(f"decay_steps is set but schedule is {self.schedule}; only wsd reads it")
        return self


class CheckpointSection(Section):
    every: int = key(0, "steps between checkpoints; 0: save only at the end", ge=0)
    keep: int = key(2, "how many of the newest checkpoints to keep; 0: all", ge=0)
    keep_every: int = key(0, "also keep the checkpoints of all steps divisible by this; 0: none", ge=0)
    keep_best: str | None = key(
        None,
        "also keep the best checkpoint: loss for the lowest held-out loss, or a task of eval.tasks for the "
        "most right answers; null: none",
    )
    resume: str = key(
        "auto",
        "auto: continue from the run's newest complete checkpoint, if there is one; none: start from step 0; "
        "or a checkpoint folder to continue from",
    )


class LoggingSection(Section):
    every: int = key(10, "steps between progress lines; metrics.jsonl has a line for every step", ge=1)
    tensorboard: bool = key(True, "also write TensorBoard event files")


class EvalSection(Section):
    every: int = key(0, "steps between evaluations on held-out data; 0: never evaluate", ge=0)
    samples: int = key(64, "number of held-out samples evaluated, or all if there are fewer", ge=1)
    num_t: int = key(8, "number of values of t (midpoints of equal cells) for each sample", ge=1)
    tasks: list[str] = key(
        [],
        "tasks whose questions the model answers during training, such as gsm8k or reasoning-gym:chain_sum; "
        "`tools/evaluate.py tasks --list` lists them",
    )
    task_data: dict[str, str] = key({}, "local file with the questions of a task, by the task's name")
    task_items: int = key(16, "number of questions of each task, the same at every step", ge=1)
    tasks_every: int | None = key(None, "steps between answers to tasks; null: as eval.every", ge=1)

    @model_validator(mode="after")
    def _tasks_are_asked(self) -> Self:
        if self.tasks and not (self.tasks_every or self.every):
            raise ValueError("tasks is set, but every is 0; set tasks_every to ask every N steps")
        if self.tasks_every is not None and not self.tasks:
            raise ValueError("tasks_every is set, but tasks names none")
        if strangers := [name for name in self.task_data if name not in self.tasks]:
            raise ValueError(f"task_data has {', '.join(strangers)}, which tasks does not name")
        return self
