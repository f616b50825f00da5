"""A run from its config to its exported model: set-up, the loop, and the closing summary."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mdmscale import checkpoint, export
from mdmscale.config import RunConfig
from mdmscale.config_loading import dump_config
from mdmscale.data.batch import Batch
from mdmscale.data.loader import TrainLoader
from mdmscale.data.opening import open_run_data
from mdmscale.data.source import SampleSource
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.objective import per_sample
from mdmscale.diffusion.p_pots import fit_density
from mdmscale.diffusion.t_samplers import TSampler, make_t_sampler
from mdmscale.distributed import Ranks, StopRequest, all_reduce_sum, initialise, on_first_rank
from mdmscale.engine import Engine, initialise_engine
from mdmscale.figures import p_pots_figure, save_figure, training_figure
from mdmscale.layout import BatchLayout, make_layout
from mdmscale.metrics import MetricsWriter, ProgressLine, format_duration, read_metrics
from mdmscale.models.backbone import Backbone, build_backbone
from mdmscale.models.mdm import MaskedDiffusionModel
from mdmscale.optim import learning_rate, set_learning_rate
from mdmscale.probes import evaluate, measure_p_pots


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
    # what moves
    step: int
    consumed_tokens: int
    t_sampler: TSampler

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(config: RunConfig) -> Path:
    """Train as `config` says, on this process's rank; every rank of the job calls it. Returns the run folder.

    Raises:
        UserError: for data, model or checkpoint that do not fit the config.
        FloatingPointError: when the loss is not finite.
    """
    ranks = initialise()
    run = set_up(config, ranks)
    started = time.monotonic()
    first_step = run.step
    writer = MetricsWriter(run.folder, first_step, config.logging.tensorboard) if ranks.is_first else None
    stopped = False
    with (
        StopRequest(run.folder) as stop,
        ProgressLine(config.train.steps, first_step, ranks.is_first) as line,
    ):
        while run.step < config.train.steps and not stopped:
            if needs_probe(config, run.step):
                refit_p_pots(run, writer, line)
            record, stopped = train_step(run, stop.seen())
            is_last = stopped or run.step == config.train.steps
            if is_due(config.eval.every, run.step) or (is_last and config.eval.every):
                record["eval_loss"] = run_evaluation(run)
                line.say(f"step {run.step}: eval loss {record['eval_loss']:.4f}")
            if writer is not None:
                writer.write(record)
                if is_due(config.logging.every, run.step) or is_last:
                    writer.flush()
                    line.show(record)
            if is_due(config.checkpoint.every, run.step) or is_last:
                save_checkpoint(run, writer)
    if writer is not None:
        writer.close()
    if not stopped:
        finish(run)
    if ranks.is_first:
        summarise(run, run.step - first_step, time.monotonic() - started, stopped)
    return run.folder


def set_up(config: RunConfig, ranks: Ranks) -> Run:
    """Open the data, build the model, hand it to DeepSpeed, and find where to go on. Writes nothing on bad input."""
    layout = make_layout(config, ranks.world_size)
    folder = Path(config.run.output_dir) / config.run.name
    backbone = build_backbone(config.model, config.diffusion.eps, config.run.seed)
    source = open_run_data(config, backbone, folder, ranks)
    resumed = find_start(config, source, folder, ranks)

    on_first_rank(ranks, lambda: _write_config(config, folder))
    num_parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    model = MaskedDiffusionModel(backbone.model, backbone.logit_shift, config.model.head_chunk_size)
    if config.model.activation_checkpointing:
        backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    engine = initialise_engine(model, config, layout)
    loader = TrainLoader(source, config, layout, ranks.rank, backbone.mask_token_id)
    run = Run(config, ranks, layout, folder, source, backbone, engine, loader, 0, 0, make_t_sampler(config))
    if resumed is not None:
        path, state = resumed
        checkpoint.load_engine(engine.deepspeed, path)
        run.step, run.consumed_tokens = state.step, state.consumed_tokens
        run.t_sampler = replace(run.t_sampler, density=DensityTable.from_state(state.density))
    if ranks.is_first:
        at = f"continuing from {resumed[0]}" if resumed else "starting anew"
        print(
            f"{folder}: {num_parameters:,} parameters, {source.num_train:,} training sequences, "
            f"{ranks.world_size} ranks, ZeRO-{config.parallel.zero_stage}, {config.model.dtype}; {at}",
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
    checkpoint.check_continues(
        state, path, seed=config.run.seed, fingerprint=source.fingerprint, description=source.description
    )
    checkpoint.check_shards(state, path, ranks.world_size, config.parallel.zero_stage)
    return path, state


def train_step(run: Run, wants_stop: bool) -> tuple[dict[str, Any], bool]:
    """One optimizer step. Returns its metrics, and whether any rank wants to stop."""
    started = time.perf_counter()
    batches = run.loader.micro_batches(run.step, run.t_sampler)
    scale = loss_scale(run, batches)
    loss_sum = torch.zeros((), dtype=torch.float64, device=run.ranks.device)
    for turn, batch in enumerate(batches):
        batch = batch.to(run.ranks.device)
        loss, losses, _ = run.engine.deepspeed(**batch.model_inputs)
        run.engine.accumulate(loss * (scale / batch.num_samples), is_last=turn == len(batches) - 1)
        loss_sum += (
            scale * per_sample((batch.weights * losses).double(), batch.sample_of, batch.num_samples).sum()
        )

    counts = [
        sum(batch.num_tokens for batch in batches),
        sum(len(batch.positions) for batch in batches),
        wants_stop,
    ]
    totals = torch.cat([loss_sum[None], torch.tensor(counts, dtype=torch.float64, device=run.ranks.device)])
    loss_total, num_tokens, num_masked, num_stops = all_reduce_sum(totals).tolist()
    loss_mean = loss_total / run.layout.global_batch_size
    if not math.isfinite(
        loss_mean
    ):  # before the weights are touched: ZeRO-0 in fp32 would write NaN into them
        raise FloatingPointError(
            f"the loss of step {run.step + 1} is {loss_mean}; the run can go on from its last checkpoint, "
            "with a smaller optimizer.lr, say"
        )

    rate = learning_rate(run.step, run.config.train.steps, run.config.optimizer)
    set_learning_rate(run.engine.deepspeed.optimizer, rate)
    grad_norm = float(run.engine.step())
    run.step += 1
    run.consumed_tokens += int(num_tokens)
    record = {
        "step": run.step,
        "loss": loss_mean,
        "grad_norm": grad_norm,
        "lr": rate,
        "consumed_samples": run.step * run.layout.global_batch_size,
        "tokens": run.consumed_tokens,
        "masked_tokens": int(num_masked),
        "tokens_per_second": num_tokens / (time.perf_counter() - started),
    }
    return record, num_stops > 0


def loss_scale(run: Run, batches: list[Batch]) -> float:
    """1, or for `normalization: token` 1 / (mean eligible tokens a sample over the global batch)."""
    if run.config.diffusion.normalization == "sample":
        return 1.0
    count = torch.tensor(
        sum(batch.num_eligible for batch in batches), dtype=torch.float64, device=run.ranks.device
    )
    return run.layout.global_batch_size / all_reduce_sum(count).item()


def needs_probe(config: RunConfig, step: int) -> bool:
    return config.diffusion.t_sampler == "p_pots" and step in config.diffusion.p_pots.probe_steps


def refit_p_pots(run: Run, writer: MetricsWriter | None, line: ProgressLine) -> None:
    """Measure the statistics on all ranks, fit p(t) on rank 0, and sample t from it from now on."""
    options = run.config.diffusion.p_pots
    line.say(f"step {run.step}: measuring p(t) ({options.num_x0} samples, {options.num_masks} masks)")
    first_index = run.step * run.layout.global_batch_size
    statistics = measure_p_pots(
        run.engine.deepspeed,
        run.source,
        run.config.diffusion,
        run.backbone.mask_token_id,
        first_index,
        run.config.run.seed,
        run.ranks,
    )
    state = on_first_rank(run.ranks, lambda: fit_density(statistics, options).to_state())
    run.t_sampler = replace(run.t_sampler, density=DensityTable.from_state(state))
    if writer is not None:
        figure = p_pots_figure(statistics, run.t_sampler.density, options.target)
        save_figure(figure, run.folder / "figures" / f"p_pots_step_{run.step:08d}.png")
        writer.figure("p_pots", figure, run.step)


def run_evaluation(run: Run) -> float:
    rows = run.config.train.micro_batch_size * run.config.rows_per_sample
    return evaluate(
        run.engine.deepspeed,
        run.source,
        run.config.eval,
        run.config.diffusion,
        run.backbone.mask_token_id,
        rows,
        run.ranks,
    )


def save_checkpoint(run: Run, writer: MetricsWriter | None) -> None:
    if writer is not None:
        writer.flush()
    state = checkpoint.TrainingState(
        step=run.step,
        consumed_samples=run.step * run.layout.global_batch_size,
        consumed_tokens=run.consumed_tokens,
        world_size=run.ranks.world_size,
        zero_stage=run.config.parallel.zero_stage,
        seed=run.config.run.seed,
        data_fingerprint=run.source.fingerprint,
        data_description=run.source.description,
        density=run.t_sampler.density.to_state(),
    )
    checkpoint.save(run.engine.deepspeed, state, run.checkpoints, run.config.checkpoint.keep, run.ranks)


def finish(run: Run) -> None:
    """Export the model and draw the loss."""
    export.export_model(run.engine.deepspeed, run.backbone, run.folder / export.FOLDER, run.ranks)
    if run.ranks.is_first:
        save_figure(training_figure(read_metrics(run.folder)), run.folder / "figures" / "loss.png")


def summarise(run: Run, steps_now: int, seconds: float, stopped: bool) -> None:
    """The closing words of a run."""
    records = read_metrics(run.folder)
    recent = records[-20:]
    evaluations = [record["eval_loss"] for record in records if "eval_loss" in record]
    verb = "stopped on request" if stopped else "finished" if steps_now else "already finished"
    lines = [
        f"{verb} at step {run.step} of {run.config.train.steps} ({steps_now} steps in {format_duration(seconds)})",
        f"tokens       {run.consumed_tokens:,} in {run.step * run.layout.global_batch_size:,} samples",
        f"loss         {sum(record['loss'] for record in recent) / len(recent):.4f} (mean of the last {len(recent)} steps)",
    ]
    if evaluations:
        lines.append(f"eval loss    {evaluations[-1]:.4f} nats a token")
    lines.append(f"run folder   {run.folder}")
    if stopped:
        lines.append("go on with   the same command")
    else:
        lines.append(f"model        {run.folder / export.FOLDER}")
    print("\n".join(lines), flush=True)


def is_due(every: int, step: int) -> bool:
    """Whether something done every `every` steps (0: never) is done at `step`."""
    return every > 0 and step % every == 0


def _write_config(config: RunConfig, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop").unlink(missing_ok=True)
    unfinished = folder / ".config.yaml"
    unfinished.write_text(dump_config(config))
    unfinished.rename(folder / "config.yaml")
