"""A run's parts, opened and checked in the order that makes errors cheap: nothing is written on bad input."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers.utils import logging as hf_logging

from mdmscale import checkpoint
from mdmscale.config import RunConfig
from mdmscale.config_loading import dump_config
from mdmscale.data.loader import TrainLoader
from mdmscale.data.opening import open_run_data
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.t_samplers import TSampler, make_t_sampler
from mdmscale.distributed import Ranks, on_every_rank, on_first_rank
from mdmscale.engine import Engine, initialise_engine
from mdmscale.layout import BatchLayout, make_layout
from mdmscale.models.backbone import Backbone, build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel


@dataclass
class Run:
    """The parts of a run, and the three values that change from step to step."""

    config: RunConfig
    ranks: Ranks
    layout: BatchLayout
    folder: Path
    source: SampleSource
    backbone: Backbone
    engine: Engine
    loader: TrainLoader

    step: int  # optimizer steps taken
    consumed_tokens: int
    t_sampler: TSampler
    skipped_in_a_row: int = 0  # steps whose gradient was not finite

    @property
    def consumed_samples(self) -> int:
        """The whole state of the data: sample n, its place in the order and its noise follow from n."""
        return self.step * self.layout.global_batch_size

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def state(self) -> checkpoint.TrainingState:
        """What a checkpoint keeps of this run."""
        return checkpoint.TrainingState(
            step=self.step,
            consumed_samples=self.consumed_samples,
            consumed_tokens=self.consumed_tokens,
            world_size=self.ranks.world_size,
            zero_stage=self.config.parallel.zero_stage,
            seed=self.config.run.seed,
            global_batch_size=self.layout.global_batch_size,
            data_fingerprint=self.source.fingerprint,
            data_description=self.source.description,
            density=self.t_sampler.density.to_state(),
        )


def set_up(config: RunConfig, ranks: Ranks) -> Run:
    """Build the model, open the data, find where to go on, and hand the model to DeepSpeed.

    Raises:
        UserError: for a model, data or checkpoint that do not fit the config.
    """
    hf_logging.disable_progress_bar()  # each rank would show its own
    layout = make_layout(config, ranks.world_size)
    folder = Path(config.run.output_dir) / config.run.name
    backbone = on_every_rank(
        ranks, lambda: build_backbone(config.model, config.diffusion.eps, config.run.seed)
    )
    source = open_run_data(config, backbone, folder, ranks)
    resumed = find_start(config, source, folder, ranks)

    on_first_rank(ranks, lambda: _write_config(config, folder))
    num_parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    model = MaskedDiffusionModel(backbone.model, backbone.logit_shift, config.model.head_chunk_size)
    if config.model.activation_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = initialise_engine(model.train(), config, layout)
    loader = TrainLoader(source, config, layout, ranks.rank, backbone.mask_token_id)
    run = Run(config, ranks, layout, folder, source, backbone, engine, loader, 0, 0, make_t_sampler(config))
    if resumed is not None:
        path, state = resumed
        checkpoint.load_engine(engine.deepspeed, path)
        run.step, run.consumed_tokens = state.step, state.consumed_tokens
        run.t_sampler = replace(run.t_sampler, density=DensityTable.from_state(state.density))
    if ranks.is_first:
        print(
            f"{folder}: {num_parameters:,} parameters, {source.num_train:,} training samples an epoch, "
            f"{source.num_held_out:,} held out, {ranks.world_size} ranks, ZeRO-{config.parallel.zero_stage}, "
            f"{config.model.dtype}; " + (f"continuing from {resumed[0]}" if resumed else "starting anew"),
            flush=True,
        )
    return run


def find_start(
    config: RunConfig, source: SampleSource, folder: Path, ranks: Ranks
) -> tuple[Path, checkpoint.TrainingState] | None:
    """The checkpoint to continue from and its state, checked against this run; None to start anew."""
    path, warnings = checkpoint.find_resume(config.checkpoint.resume, folder / "checkpoints", ranks)
    if ranks.is_first:
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
    if path is None:
        return None
    state = checkpoint.TrainingState.read(path)
    checkpoint.check_continues(state, path, config, source)
    checkpoint.check_shards(state, path, ranks.world_size, config.parallel.zero_stage)
    return path, state


def _write_config(config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop").unlink(missing_ok=True)
    unfinished = folder / ".config.yaml"
    unfinished.write_text(dump_config(config))
    unfinished.rename(folder / "config.yaml")
