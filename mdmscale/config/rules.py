"""Checks across sections: each function takes the sections it compares and returns the problems it finds."""

from mdmscale.config.data import DataSection
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.model import ModelSection
from mdmscale.config.parallel import ParallelSection
from mdmscale.config.training import (
    HELD_OUT_LOSS,
    CheckpointSection,
    EvalSection,
    OptimizerSection,
    TrainSection,
)


def evaluation_problems(evaluation: EvalSection, data: DataSection) -> list[str]:
    """Evaluation needs held-out data."""
    if evaluation.every and not data.held_out:
        return ["eval.every is set but data.held_out = 0 leaves nothing to evaluate; give held_out a share"]
    return []


def best_problems(checkpoint: CheckpointSection, evaluation: EvalSection) -> list[str]:
    """The best checkpoint is chosen by an evaluation of its own step, so every checkpoint needs one."""
    best = checkpoint.keep_best
    if best is None:
        return []
    if best != HELD_OUT_LOSS and best not in evaluation.tasks:
        return [
            f"checkpoint.keep_best = {best} is neither {HELD_OUT_LOSS} nor one of eval.tasks = "
            f"{evaluation.tasks}; name one of them"
        ]
    if best == HELD_OUT_LOSS or evaluation.tasks_every is None:
        name, every = "eval.every", evaluation.every
    else:
        name, every = "eval.tasks_every", evaluation.tasks_every
    if not every:
        return [f"checkpoint.keep_best = {best}, but eval.every = 0 never evaluates; set eval.every"]
    if checkpoint.every % every:
        return [
            f"checkpoint.keep_best = {best} needs an evaluation at every checkpoint, but checkpoint.every = "
            f"{checkpoint.every} is not a multiple of {name} = {every}"
        ]
    return []


def task_problems(
    evaluation: EvalSection, parallel: ParallelSection, diffusion: DiffusionSection
) -> list[str]:
    """Sampling during training needs whole sequences on a rank, and no cache."""
    mend = "answer tasks with tools/evaluate.py tasks, which takes checkpoints, too"
    problems = []
    if evaluation.tasks and parallel.sequence > 1:
        problems.append(
            f"eval.tasks with parallel.sequence = {parallel.sequence}: texts are sampled as whole sequences; "
            f"set sequence to 1, or {mend}"
        )
    if evaluation.tasks and diffusion.objective == "ar":
        problems.append(
            "eval.tasks with diffusion.objective = ar: sampling from left to right needs a cache, which a "
            f"model in training does not keep; {mend}"
        )
    return problems


def schedule_problems(
    train: TrainSection, optimizer: OptimizerSection, diffusion: DiffusionSection
) -> list[str]:
    """Warm-up and the first P-POTS measurement must come before the last step."""
    problems = []
    if optimizer.warmup_steps > train.steps:
        problems.append(
            f"optimizer.warmup_steps = {optimizer.warmup_steps} exceeds train.steps = {train.steps}"
        )
    p_pots = diffusion.p_pots
    measured_at = [*p_pots.probe_steps, *([p_pots.refit_every] if p_pots.refit_every else [])]
    if diffusion.t_sampler == "p_pots" and all(step >= train.steps for step in measured_at):
        problems.append(
            f"diffusion.p_pots.probe_steps = {p_pots.probe_steps} and refit_every = {p_pots.refit_every} "
            f"name no step below train.steps = {train.steps}, so p(t) would never be measured"
        )
    return problems


def pattern_problems(diffusion: DiffusionSection, model: ModelSection) -> list[str]:
    """An attention pattern is a mask of pairs of positions, which flash_attention_2 does not take."""
    if diffusion.corruption.has_attention_pattern and model.attention == "flash_attention_2":
        return [
            f"diffusion.masking = {diffusion.masking} has an attention pattern, which model.attention = "
            "flash_attention_2 does not take; set attention to sdpa"
        ]
    return []


def objective_problems(diffusion: DiffusionSection, model: ModelSection) -> list[str]:
    """An autoregressive model predicts the next token, and never attends to later ones."""
    if diffusion.objective != "ar":
        return []
    problems = []
    if model.logit_shift is False:
        problems.append(
            "diffusion.objective = ar predicts each token from the position before, but model.logit_shift is "
            "false; leave it out"
        )
    if model.attention_annealing_steps:
        problems.append(
            "diffusion.objective = ar keeps attention causal, but model.attention_annealing_steps = "
            f"{model.attention_annealing_steps} opens it; leave it out"
        )
    return problems


def prompt_problems(diffusion: DiffusionSection, data: DataSection) -> list[str]:
    """SyRM masks prompts, which only SFT samples have."""
    if diffusion.syrm is not None and data.kind != "sft":
        return [f"diffusion.syrm is set but data.kind is {data.kind}; only sft samples have a prompt"]
    return []


def sequence_problems(data: DataSection, model: ModelSection, train: TrainSection) -> list[str]:
    """A sample fits the model's positions, and packing needs an attention that keeps samples apart."""
    problems = []
    if data.sequence_length > model.max_position_embeddings and model.path is None:
        problems.append(
            f"data.sequence_length = {data.sequence_length} exceeds "
            f"model.max_position_embeddings = {model.max_position_embeddings}"
        )
    if train.packing and model.attention != "sdpa":
        problems.append(
            "train.packing = true keeps samples apart in sdpa, but model.attention is "
            f"{model.attention}; set it to sdpa, or packing to false"
        )
    return problems


def length_problems(data: DataSection, longest: int) -> list[str]:
    """A sample fits the positions of the model that is opened."""
    if data.sequence_length <= longest:
        return []
    return [
        f"data.sequence_length = {data.sequence_length} exceeds the model's max_position_embeddings = "
        f"{longest}"
    ]


def parallel_problems(parallel: ParallelSection, model: ModelSection, train: TrainSection) -> list[str]:
    """What ranks that share a model or a sequence cannot do, and what cannot be offloaded to disk."""
    problems = []
    if parallel.swaps and train.ema_decay is not None:
        problems.append(
            f"train.ema_decay = {train.ema_decay} with parallel.offload_optimizer = nvme: the average of the "
            "weights is not kept on disk; set offload_optimizer to cpu, or leave ema_decay out"
        )
    if parallel.offload_parameters == "nvme":
        if model.dtype != "bf16":
            problems.append(
                "parallel.offload_parameters = nvme: DeepSpeed stores parameters on disk in 16 bits; set "
                f"model.dtype to bf16, not {model.dtype}"
            )
        if model.lora is not None:
            problems.append(
                "parallel.offload_parameters = nvme and model.lora: checkpoints would lack the frozen "
                "model; set offload_parameters to cpu"
            )
    if parallel.tensor > 1 and model.lora is not None:
        problems.append(
            f"parallel.tensor = {parallel.tensor} and model.lora: adapters are not split over ranks; set "
            "tensor to 1"
        )
    if parallel.sequence > 1 and model.attention != "sdpa":
        problems.append(
            f"parallel.sequence = {parallel.sequence} exchanges slices around sdpa, but "
            f"model.attention is {model.attention}; set it to sdpa"
        )
    return problems


def compile_problems(model: ModelSection, parallel: ParallelSection) -> list[str]:
    """A decoder layer compiles to one graph, which allows nothing that interrupts the layer."""
    if not model.compile:
        return []
    problems = []
    if parallel.zero_stage == 3:
        problems.append(
            "model.compile = true with parallel.zero_stage = 3: DeepSpeed gathers parameters by hooks "
            "inside a layer; set zero_stage to 2 or less, or compile to false"
        )
    problems += [
        f"model.compile = true with parallel.{name} = {getattr(parallel, name)}: ranks exchange tensors "
        f"inside a layer; set {name} to 1, or compile to false"
        for name in ("tensor", "sequence")
        if getattr(parallel, name) > 1
    ]
    if model.activation_checkpointing == "selective":
        problems.append(
            "model.compile = true with model.activation_checkpointing = selective: the compiler itself "
            "chooses what to recompute; set activation_checkpointing to none or full"
        )
    if model.attention == "flash_attention_2":
        problems.append(
            "model.compile = true with model.attention = flash_attention_2, which removes padding by sizes "
            "that a compiled graph cannot know; set attention to sdpa"
        )
    return problems
