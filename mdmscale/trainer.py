"""The training loop: steps, probes, evaluations and checkpoints in the order they happen."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mdmscale import checkpoint, export
from mdmscale.config import EXPORT_FOLDER, RunConfig
from mdmscale.data.batch import Batch
from mdmscale.diffusion.density import DensityTable
from mdmscale.diffusion.p_pots import fit_density
from mdmscale.distributed import StopRequest, all_reduce_sum, initialise, on_first_rank
from mdmscale.figures import p_pots_figure, save_figure, training_figure
from mdmscale.metrics import MetricsWriter, ProgressLine, closing_summary, read_metrics
from mdmscale.optim import learning_rate, set_learning_rate
from mdmscale.probes import evaluate, measure_p_pots
from mdmscale.run import Run, set_up

MAX_SKIPPED_IN_A_ROW = 10


def train(config: RunConfig) -> Path:
    """Train as `config` says, on this process's rank; every rank of the job calls it. Returns the run folder.

    Raises:
        UserError: for data, model or checkpoint that do not fit the config.
        FloatingPointError: when the loss is not finite.
    """
    ranks = initialise()
    run = set_up(config, ranks)
    started, first_step, stopped = time.monotonic(), run.step, False
    with (
        StopRequest(run.folder) as stop,
        MetricsWriter(run.folder, first_step, config.logging.tensorboard, enabled=ranks.is_first) as writer,
        ProgressLine(config.train.steps, first_step, enabled=ranks.is_first) as line,
    ):
        while run.step < config.train.steps and not stopped:
            if needs_probe(run):
                line.say(f"step {run.step}: measuring p(t)")
                refit_p_pots(run, writer)
            record, stopped = train_step(run, stop)
            is_end = run.step == config.train.steps
            is_last = stopped or is_end
            if is_due(config.eval.every, run.step) or (is_end and config.eval.every):
                record["eval_loss"] = run_evaluation(run)
                line.say(f"step {run.step}: eval loss {record['eval_loss']:.4f}")
            writer.write(record)
            line.add(record)
            if is_due(config.logging.every, run.step) or is_last:
                writer.flush()
                line.show()
            if is_due(config.checkpoint.every, run.step) or is_last:
                writer.flush()
                checkpoint.save(
                    run.engine.deepspeed, run.state(), run.checkpoints, config.checkpoint.keep, ranks
                )
    if not stopped:
        finish(run)
    if ranks.is_first:
        print(closing_summary(run, run.step - first_step, time.monotonic() - started, stopped), flush=True)
    return run.folder


def train_step(run: Run, stop: StopRequest) -> tuple[dict[str, Any], bool]:
    """One optimizer step. Returns its metrics, and whether any rank wants to stop."""
    started = time.perf_counter()
    batches = run.loader.micro_batches(run.step, run.t_sampler)
    scale = loss_scale(run, batches)
    loss_sum = torch.zeros((), dtype=torch.float64, device=run.ranks.device)
    for turn, batch in enumerate(batches):
        batch = batch.to(run.ranks.device)
        loss, losses, _ = run.engine.deepspeed(**batch.model_inputs)
        run.engine.accumulate(loss * (scale / batch.num_samples), is_last=turn == len(batches) - 1)
        loss_sum += scale * (batch.weights * losses).double().sum()

    num_tokens = sum(batch.num_tokens for batch in batches)
    num_masked = sum(len(batch.positions) for batch in batches)
    # One small reduction a step. It waits for the device, as DeepSpeed's own overflow check does.
    counts = torch.tensor([num_tokens, num_masked, stop.seen()], dtype=torch.float64, device=run.ranks.device)
    totals = all_reduce_sum(torch.cat([loss_sum[None], counts]))
    loss_total, num_tokens, num_masked, num_stops = totals.tolist()
    loss_mean = loss_total / run.layout.global_batch_size
    if not math.isfinite(loss_mean):  # refused here, before the optimizer has seen it
        raise FloatingPointError(
            f"the loss of step {run.step + 1} is {loss_mean}; the run can go on from its last checkpoint, "
            "with a smaller optimizer.lr, say"
        )

    rate = learning_rate(run.step, run.config.train.steps, run.config.optimizer)
    set_learning_rate(run.engine.deepspeed.optimizer, rate)
    grad_norm = run.engine.step()
    check_skipped(run, grad_norm)
    run.step += 1
    run.consumed_tokens += int(num_tokens)
    record = {
        "step": run.step,
        "loss": loss_mean,
        "grad_norm": grad_norm,
        "lr": rate,
        "consumed_samples": run.consumed_samples,
        "tokens": run.consumed_tokens,
        "masked_tokens": int(num_masked),
        "tokens_per_second": num_tokens / (time.perf_counter() - started),
    }
    return record, num_stops > 0


def check_skipped(run: Run, grad_norm: float) -> None:
    """Count steps that changed nothing as their gradient was not finite.

    Raises:
        FloatingPointError: after MAX_SKIPPED_IN_A_ROW of them.
    """
    run.skipped_in_a_row = 0 if math.isfinite(grad_norm) else run.skipped_in_a_row + 1
    if run.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
        raise FloatingPointError(
            f"the gradient was not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, the last {run.step + 1}; "
            "the run can go on from its last checkpoint, with a smaller optimizer.lr, say"
        )


def loss_scale(run: Run, batches: list[Batch]) -> float:
    """1, or for `normalization: token` 1 / (mean eligible tokens a sample over the global batch)."""
    if run.config.diffusion.normalization == "sample":
        return 1.0
    num_eligible = sum(batch.num_eligible for batch in batches)
    total = all_reduce_sum(torch.tensor(num_eligible, dtype=torch.float64, device=run.ranks.device))
    return run.layout.global_batch_size / total.item()


def needs_probe(run: Run) -> bool:
    """Whether p(t) is measured anew before the next step."""
    diffusion = run.config.diffusion
    return diffusion.t_sampler == "p_pots" and (
        run.step in diffusion.p_pots.probe_steps or run.probe_is_overdue
    )


def refit_p_pots(run: Run, writer: MetricsWriter) -> None:
    """Measure the statistics on all ranks, fit p(t) on rank 0, and sample t from it from now on."""
    options = run.config.diffusion.p_pots
    statistics = measure_p_pots(
        run.engine.deepspeed,
        run.source,
        run.config.diffusion,
        run.backbone.mask_token_id,
        run.consumed_samples,
        run.config.run.seed,
        run.ranks,
    )
    state = on_first_rank(run.ranks, lambda: fit_density(statistics, options).to_state())
    run.t_sampler = replace(run.t_sampler, density=DensityTable.from_state(state))
    run.probe_is_overdue = False
    if run.ranks.is_first:
        figure = p_pots_figure(statistics, run.t_sampler.density, options.target)
        save_figure(figure, run.folder / "figures" / f"p_pots_step_{run.step:08d}.png")
        writer.figure("p_pots", figure, run.step)


def run_evaluation(run: Run) -> float:
    """The held-out loss, in forwards of as many rows as training's."""
    return evaluate(
        run.engine.deepspeed,
        run.source,
        run.config.eval,
        run.config.diffusion,
        run.backbone.mask_token_id,
        run.config.train.micro_batch_size * run.config.rows_per_sample,
        run.ranks,
    )


def finish(run: Run) -> None:
    """Export the model and draw the loss."""
    export.export_model(run.engine.deepspeed, run.backbone, run.folder / EXPORT_FOLDER, run.ranks)
    if run.ranks.is_first:
        save_figure(training_figure(read_metrics(run.folder)), run.folder / "figures" / "loss.png")


def is_due(every: int, step: int) -> bool:
    """Whether something done every `every` steps (0: never) is done at `step`."""
    return every > 0 and step % every == 0
