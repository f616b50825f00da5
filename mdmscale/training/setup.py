"""Sets up a run: checks its input and builds its parts.

Cheap checks come first, so errors appear early. Nothing is written if the input is bad.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging as hf_logging

from mdmscale.config.loading import dump_config
from mdmscale.config.rules import length_problems
from mdmscale.config.run import RunConfig
from mdmscale.data.collate import Collator
from mdmscale.data.loader import TrainLoader, make_t_sampler
from mdmscale.data.noise_tokens import make_noise
from mdmscale.data.prefetch import Prefetcher
from mdmscale.data.slicing import Slicer
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.baseline import EmaBaseline
from mdmscale.diffusion.loss_weight import LossWeight
from mdmscale.diffusion.noise import Noise
from mdmscale.diffusion.objective import model_kind
from mdmscale.diffusion.p_pots import ProbeStatistics
from mdmscale.engine.engine import Engine, initialise_engine
from mdmscale.engine.hardware import check_hardware
from mdmscale.engine.optim import named_groups, set_options
from mdmscale.engine.state import EngineLayout
from mdmscale.models.backbone import Backbone, build_backbone
from mdmscale.models.compiling import compile_layers
from mdmscale.models.flops import FlopCount, count_flops
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.models.packed_attention import attend_in_rows
from mdmscale.models.recomputation import recompute_activations
from mdmscale.models.shape import shape_of_config
from mdmscale.parallel.batch_layout import BatchLayout, make_layout
from mdmscale.parallel.collectives import on_every_rank, on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.parallel.sequence import split_sequences
from mdmscale.parallel.tensor import check_divides, split_model
from mdmscale.system.errors import UserError
from mdmscale.system.files import write_file
from mdmscale.system.run_folder import RunFolder
from mdmscale.system.stateful import Stateful
from mdmscale.training import checkpoint
from mdmscale.training.evaluation import check_held_out
from mdmscale.training.facts import gather_facts
from mdmscale.training.gradient_norms import GradientNorms
from mdmscale.training.identity import changes_since, check_model, model_identity
from mdmscale.training.nonfinite import read_ends
from mdmscale.training.p_pots import PPots
from mdmscale.training.p_pots_probe import measure_p_pots
from mdmscale.training.run_data import open_run_data, undone_on_refusal
from mdmscale.training.skipped_steps import SkippedSteps
from mdmscale.training.state import TrainingState
from mdmscale.training.task_questions import Questions, prepare_questions


@dataclass(frozen=True)
class Start:
    """A checkpoint to resume from."""

    path: Path
    state: TrainingState


@dataclass
class Run:
    """The parts of a run, followed by the values that change from step to step."""

    config: RunConfig
    ranks: Ranks
    layout: BatchLayout
    folder: RunFolder
    source: SampleSource
    backbone: Backbone
    noise: Noise
    engine: Engine
    loader: Prefetcher  # wraps a TrainLoader and may prepare its batches in advance
    collate: Collator
    flops: FlopCount
    questions: list[Questions]  # of eval.tasks
    model_identity: dict[str, Any]  # what a checkpoint says about the model, see identity.py

    p_pots: PPots
    baseline: EmaBaseline
    skipped: SkippedSteps
    step: int = 0  # optimizer steps taken or skipped
    consumed_tokens: int = 0
    gradient_norms: GradientNorms = field(default_factory=GradientNorms)

    @property
    def consumed_samples(self) -> int:
        """The number of samples consumed so far.

        It is the whole state of the data: sample n, its place in the order and its noise follow from n.
        """
        return self.step * self.layout.global_batch_size

    @property
    def components(self) -> dict[str, Stateful]:
        """The parts that have a state of their own, by their names in checkpoints."""
        return {"p_pots": self.p_pots, "baseline": self.baseline, "skipped_steps": self.skipped}

    def engine_layout(self) -> EngineLayout:
        """How DeepSpeed's files of this job are laid out."""
        return EngineLayout(
            world_size=self.ranks.world_size,
            zero_stage=self.config.parallel.zero_stage,
            tensor=self.ranks.tp_size,
            dtype=self.config.model.dtype,
            parameter_groups=named_groups(self.engine.module),
        )

    def state(self, scores: dict[str, float]) -> TrainingState:
        """What a checkpoint stores of this run now. `scores`: the metrics of an evaluation of it, if any."""
        return TrainingState(
            step=self.step,
            consumed_samples=self.consumed_samples,
            consumed_tokens=self.consumed_tokens,
            seed=self.config.run.seed,
            global_batch_size=self.layout.global_batch_size,
            lora=self.config.model.lora.model_dump() if self.config.model.lora else None,
            data_fingerprint=self.source.fingerprint,
            data_description=self.source.description,
            engine=self.engine_layout(),
            components={name: part.state_dict() for name, part in self.components.items()},
            model=self.model_identity,
            config=self.config.model_dump(mode="json"),
            scores=scores,
        )


def set_up(config: RunConfig, ranks: Ranks) -> Run:
    """Find the checkpoint to resume from, build the model, open the data and hand the model to DeepSpeed.

    Raises:
        UserError: for a model, data or checkpoint that do not fit the config.
    """
    hf_logging.disable_progress_bar()  # otherwise each rank shows one
    layout = make_layout(config, ranks.world_size)
    on_every_rank(ranks, lambda: check_hardware(config, ranks.device))
    folder = RunFolder(Path(config.run.output_dir) / config.run.name)
    resumed = find_start(config, folder, ranks)
    kind = model_kind(config.diffusion.objective)
    backbone = on_every_rank(
        ranks,
        lambda: build_backbone(config.model, config.diffusion.eps, config.run.seed, kind),
    )
    check_fit(config, backbone, ranks)
    questions = on_first_rank(ranks, lambda: prepare_questions(config, backbone))
    identity, beginning = on_first_rank(ranks, lambda: settle_identity(config, backbone, resumed))
    vocab_size = backbone.model.config.vocab_size
    with undone_on_refusal(folder.data, ranks):
        source = open_run_data(config, backbone, folder.path, ranks)
        check_held_out(config, source)
        if resumed is not None:
            checkpoint.check_data(resumed.state, resumed.path, source)
        noise = on_every_rank(ranks, lambda: make_noise(config.diffusion, backbone.tokenizer, vocab_size))

    # After this point no error is the user's mistake.
    announcement = announce(config, backbone, source, folder, beginning)
    on_first_rank(ranks, lambda: write_config(config, folder))
    flops = count_flops(shape_of_config(backbone.model.config), is_frozen=backbone.lora is not None)
    engine = initialise_engine(prepare_model(config, backbone, layout, ranks), config, layout, ranks)
    slicer = Slicer(ranks.sp_rank, ranks.sp_size)
    collate = Collator(backbone.mask_token_id, backbone.logit_shift, layout.packs, slicer)
    batches = TrainLoader(source, config, layout, ranks.dp_rank, noise, collate)
    loader = Prefetcher(batches, config.data.num_workers, ranks.device)

    def probe(edges: np.ndarray, first_index: int, loss_weight: LossWeight) -> ProbeStatistics:
        options, seed = config.diffusion.p_pots, config.run.seed
        return measure_p_pots(
            engine, source, noise, options, edges, collate, first_index, loss_weight, seed, ranks
        )

    p_pots = PPots(config.diffusion, make_t_sampler(config), probe)
    decay = 0.0 if backbone.objective == "ar" else config.diffusion.ema_decay  # ar: no t to explain losses
    baseline = EmaBaseline(p_pots.edges, decay)
    run = Run(
        config,
        ranks,
        layout,
        folder,
        source,
        backbone,
        noise,
        engine,
        loader,
        collate,
        flops,
        questions,
        identity,
        p_pots,
        baseline,
        SkippedSteps(config.train.skip_spikes),
    )
    if resumed is not None:
        restore(run, resumed)
    facts = gather_facts(config, layout, ranks)
    if ranks.is_first:
        print(*announcement, *facts, sep="\n  ", flush=True)
    return run


def prepare_model(
    config: RunConfig, backbone: Backbone, layout: BatchLayout, ranks: Ranks
) -> MaskedDiffusionModel:
    """The model for DeepSpeed: with the masked-only head, and only this rank's part of each split matrix."""
    model = MaskedDiffusionModel(backbone.model, config.model.head_chunk_size, config.model.head)
    if layout.packs or (backbone.objective == "ar" and config.model.attention == "sdpa"):
        # transformers would read the positions from the device to find out whether rows are packed
        attend_in_rows(backbone.model)
    split_model(backbone.model, ranks)
    split_sequences(backbone.model, ranks)
    recompute_activations(backbone.model, config.model.activation_checkpointing)
    if config.model.compile:  # last, because the graph contains adapters, attention and recomputation
        compile_layers(backbone.model)
    return model.train()


def announce(
    config: RunConfig, backbone: Backbone, source: SampleSource, folder: RunFolder, beginning: list[str]
) -> list[str]:
    """The first lines of a run's log: its sizes, where it begins, and what is not as the user may think."""
    num_parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    num_trained = sum(each.numel() for each in backbone.model.parameters() if each.requires_grad)
    trained = f" ({num_trained:,} trained)" if num_trained < num_parameters else ""
    dropout = [
        f"{config.model.path}/config.json has {name} = {rate:g}; training sets it to 0, so that losses "
        "follow from the seed alone"
        for name, rate in backbone.removed_dropout.items()
    ]
    sizes = (
        f"{folder.path}: {num_parameters:,} parameters{trained}, "
        f"{source.num_train:,} training samples an epoch, {source.num_held_out:,} held out; {beginning[0]}"
    )
    return [sizes, *beginning[1:], *dropout]


def find_start(config: RunConfig, folder: RunFolder, ranks: Ranks) -> Start | None:
    """The checkpoint to resume from, checked against this job; None to start from scratch."""
    ends = on_first_rank(ranks, lambda: read_ends(folder))
    path, warnings = checkpoint.find_resume(config.checkpoint.resume, folder.checkpoints, ranks, ends)
    if ranks.is_first:
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
    if path is None:
        return None
    state = on_every_rank(ranks, lambda: TrainingState.read(path))
    checkpoint.check_continues(state, path, config)
    return Start(path, state)


def settle_identity(
    config: RunConfig, backbone: Backbone, resumed: Start | None
) -> tuple[dict[str, Any], list[str]]:
    """What the run's model is, checked against the checkpoint to resume from; and in words, how it begins.

    Raises:
        UserError: if the checkpoint is of another model.
    """
    identity = model_identity(backbone, config.model.path)
    if resumed is None:
        return identity, ["starting from scratch"]
    check_model(resumed.state, resumed.path, identity, backbone)
    changes = changes_since(resumed.state, resumed.path, config, identity)
    return identity, [f"continuing from {resumed.path}", *(f"changed since then: {each}" for each in changes)]


def restore(run: Run, start: Start) -> None:
    """Load a checkpoint's weights, optimizer state, position and components into a run that is set up."""
    if start.state.engine.matches(run.engine_layout()) and not run.config.parallel.swaps:
        run.engine.load(start.path)
    else:
        run.engine.load_other_layout(start.path, run.ranks)
    set_options(run.engine.optimizer, run.config.optimizer)  # loading has restored the old options
    if run.engine.settle_average() and run.ranks.is_first:
        print(
            f"warning: {start.path} has no average of the weights (train.ema_decay); it starts from the "
            "weights of this checkpoint",
            flush=True,
        )
    run.step, run.consumed_tokens = start.state.step, start.state.consumed_tokens
    missing = start.state.load_into(run.components, start.path)
    if missing and run.ranks.is_first:
        print(
            f"warning: {start.path} has no state of {', '.join(missing)}, which starts from scratch",
            flush=True,
        )


def check_fit(config: RunConfig, backbone: Backbone, ranks: Ranks) -> None:
    """Refuse sequences longer than the model's maximum, and ranks that do not divide the model.

    Raises:
        UserError: naming the option.
    """
    check_length(config, backbone)
    check_divides(backbone.model.config, ranks.tp_size, ranks.sp_size)


def check_length(config: RunConfig, backbone: Backbone) -> None:
    """Refuse sequences longer than the model's max_position_embeddings."""
    if problems := length_problems(config.data, backbone.model.config.max_position_embeddings):
        raise UserError(*problems)


def write_config(config: RunConfig, folder: RunFolder) -> None:
    """Write the resolved config."""
    write_file(folder.config, dump_config(config))
