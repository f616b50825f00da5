"""The training loop: steps, probes, evaluations and checkpoints in the order in which they happen."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mdmscale.config.run import RunConfig
from mdmscale.data.batch import Batch
from mdmscale.engine import nvme
from mdmscale.engine.optim import learning_rate, set_learning_rate
from mdmscale.models.flops import peak_flops
from mdmscale.parallel.collectives import all_reduce_sum, on_first_rank
from mdmscale.parallel.ranks import Ranks, initialise
from mdmscale.system.allocator import KeptMemory, keep_freed_memory
from mdmscale.system.disk import disk_errors
from mdmscale.system.folders import finish_swap
from mdmscale.system.library_output import library_output
from mdmscale.system.run_folder import RunFolder
from mdmscale.system.run_lock import only_training
from mdmscale.system.stop import StopRequest
from mdmscale.system.timing import StepClock, peak_memory
from mdmscale.system.transfer import Arriving, to_device
from mdmscale.training import checkpoint, export
from mdmscale.training.evaluation import eval_t, evaluate
from mdmscale.training.figures import LOSSES, p_pots_figure, save_figure, training_figure
from mdmscale.training.gradient_norms import WINDOW
from mdmscale.training.metrics import (
    MetricsWriter,
    ProgressLine,
    closing_summary,
    describe_evaluation,
    read_last_metrics,
    read_series,
)
from mdmscale.training.nonfinite import RESUME_LOWER, counted_ends, forget_ends
from mdmscale.training.replicas import check_replicas
from mdmscale.training.setup import Run, set_up
from mdmscale.training.skipped_steps import NOT_FINITE
from mdmscale.training.step_sums import StepSums, StepTotals
from mdmscale.training.task_answers import TaskAnswers, answer
from mdmscale.training.task_questions import asks_every
from mdmscale.training.watchdog import Watchdog, limits_of


class Outcome(NamedTuple):
    """How a run ended: its folder, and whether it was asked to stop before its last step."""

    folder: Path
    stopped: bool


def train(config: RunConfig) -> Outcome:
    """Train as `config` says, on this process's rank. Every rank of the job calls this.

    Raises:
        UserError: for data, a model or a checkpoint that does not fit the config; if the disk of the run
            folder is full or fails.
        FloatingPointError: if the held-out loss or what would be saved is not finite, or the loss or gradient
            is not in many of the recent steps.
        ReplicasDiffer: if ranks that should hold the same weights do not.
    """
    folder = Path(config.run.output_dir) / config.run.name
    with library_output() as log, disk_errors(folder):
        ranks = initialise(config.parallel.tensor, config.parallel.sequence)
        with (
            own_run_folder(config, ranks),
            nvme.own_folder(config, ranks),
            Watchdog(folder, ranks, limits_of(config.run)) as watchdog,
        ):
            run = set_up(config, ranks)
            on_first_rank(ranks, watchdog.forget_earlier_run)
            log.open(run.folder.library_log(ranks.rank))  # not before the input has been checked
            if ranks.device.type == "cpu":
                keep_freed_memory()
            return run_to_end(run, watchdog)


@contextmanager
def own_run_folder(config: RunConfig, ranks: Ranks) -> Iterator[None]:
    """Within the block no other job trains in the run folder. Rank 0 holds the lock for all.

    A stop file of an earlier run is removed first of all, so one that is made during set-up counts. A model
    whose replacement was interrupted has its name again.
    """
    folder = RunFolder(Path(config.run.output_dir) / config.run.name)

    def own() -> None:
        held.enter_context(only_training(folder))
        folder.stop.unlink(missing_ok=True)
        for model in folder.exports:
            finish_swap(model)

    with ExitStack() as held:
        on_first_rank(ranks, own)
        yield


def run_to_end(run: Run, watchdog: Watchdog) -> Outcome:
    """Take the remaining steps, with probes, evaluations and checkpoints when they are due."""
    config, ranks, folder = run.config, run.ranks, run.folder.path
    asking = asks_every(config.eval)
    started, first_step, stopped = time.monotonic(), run.step, False
    memory = KeptMemory()
    with (
        StopRequest(folder) as stop,
        watchdog.within("step"),
        MetricsWriter(folder, first_step, config.logging.tensorboard, enabled=ranks.is_first) as writer,
        ProgressLine(config.train.steps, first_step, enabled=ranks.is_first) as line,
        run.loader,
        counted_ends(run.folder, lambda: run.step, enabled=ranks.is_first),
    ):
        if ranks.is_first:  # which alone writes metrics; those after `first_step` have been dropped
            # Few steps have no finite norm, so these records fill the window.
            records = read_last_metrics(folder, 2 * WINDOW)
            run.gradient_norms.recall(record.get("grad_norm") for record in records)
        # Every forward counts as progress, whether of training, a probe or an evaluation.
        run.engine.module.register_forward_pre_hook(lambda *_: watchdog.beat(run.step))
        while run.step < config.train.steps and not stopped:
            renewed = renew_t_sampler(run, writer, line)
            record, stopped = train_step(run, stop)
            record |= renewed
            if ranks.device.type == "cpu":
                memory.after_step()
            scores: dict[str, float] = {}  # of an evaluation after this step
            is_end = run.step == config.train.steps
            is_last = stopped or is_end
            # A step that is not finite may be the weights' fault, so the next one is to clear them first.
            is_in_doubt = record.get("skipped") == NOT_FINITE
            saves = is_last or (is_due(config.checkpoint.every, run.step) and not is_in_doubt)
            if saves or is_due(config.train.check_replicas_every, run.step):
                compare_replicas(run)
            if is_due(config.eval.every, run.step) or (is_end and config.eval.every):
                with watchdog.within("evaluation"):
                    scores |= run_evaluation(run)
                line.say(f"step {run.step}: {describe_evaluation(scores)}")
            if is_due(asking, run.step) or (is_end and asking):
                with watchdog.within("evaluation"):
                    answers = answer_tasks(run)
                scores |= answers.metrics()
                answers.show(writer, line, run.step)
            record |= scores
            writer.write(record)
            line.add(record)
            if "skipped" in record:
                line.say(f"step {run.step}: skipped, {record['skipped']}")
            if is_due(config.logging.every, run.step) or is_last:
                writer.flush()
                line.show()
            if saves:
                with watchdog.within("save"):
                    writer.sync()  # no later than the checkpoint, so a resumed run lacks no step of it
                    save_checkpoint(run, scores)
        if not stopped:
            with watchdog.within("export"):
                finish(run)
    if ranks.is_first:
        print(closing_summary(run, run.step - first_step, time.monotonic() - started, stopped), flush=True)
    return Outcome(run.folder.path, stopped)


def train_step(run: Run, stop: StopRequest) -> tuple[dict[str, Any], bool]:
    """One optimizer step. Returns its metrics, and whether any rank wants to stop."""
    clock = StepClock(run.ranks.device)
    batches = run.loader.micro_batches(run.step, run.p_pots.t_sampler)
    clock.mark("data")
    scale = loss_scale(run, batches)
    sums = StepSums(run.baseline, scale, run.ranks)
    for number, batch in enumerate(batches):
        batch = batch.to(run.ranks.device)
        clamp = run.noise.corruption.loss_clamp
        learnt = batch if clamp is None else without_large_losses(run, batch, clamp)
        loss, cross_entropies, squared_norms = run.engine(**learnt.model_inputs)
        clock.mark("forward")
        run.engine.accumulate(loss, scale, is_last=number == len(batches) - 1)
        clock.mark("backward")
        sums.add(batch, cross_entropies, squared_norms)
    sent = sums.reduce(stop.seen())  # one small message per step, read after the optimizer's step is launched
    rate = learning_rate(run.step, run.config.train.steps, run.config.optimizer)
    set_learning_rate(run.engine.optimizer, rate)
    clock.mark("reduce")
    # To find a spike, the host must wait for the sums before the optimizer's step is launched.
    grad_norm = run.engine.step(None if run.skipped.threshold is None else partial(is_skipped, run, sent))
    clock.mark("step")
    totals = StepTotals.of(sent)
    controlled = controlled_loss(run, totals)
    reason = run.skipped.reason(controlled, grad_norm)
    skipping = run.skipped.observe(run.step + 1, controlled, grad_norm, reason)
    if reason is None:
        observe(run, totals)
    num_tokens = totals.num_tokens // run.layout.rows_per_sample
    run.step += 1
    run.consumed_tokens += num_tokens
    record = {
        "step": run.step,
        "loss": totals.loss / run.layout.global_batch_size,
        **({"loss_controlled": controlled} if run.baseline.decay else {}),
        "grad_norm": grad_norm,
        **skipping,
        **run.gradient_norms.observe(grad_norm, 0.0 if reason else run.config.optimizer.gradient_clipping),
        "lr": rate,
        "consumed_samples": run.consumed_samples,
        "tokens": run.consumed_tokens,
        "masked_tokens": totals.num_masked,
        **speed(run, totals, num_tokens, clock),
    }
    return record, totals.num_stops > 0


def is_skipped(run: Run, sent: Arriving, grad_norm: float) -> bool:
    """Whether a step with this gradient norm is skipped. Every rank has the same sums, so all agree."""
    return run.skipped.reason(controlled_loss(run, StepTotals.of(sent)), grad_norm) is not None


def speed(run: Run, totals: StepTotals, num_tokens: int, clock: StepClock) -> dict[str, float]:
    """The metrics of a step's speed and memory. `mfu` is among them if the device's peak is known."""
    seconds = clock.seconds
    flops = run.flops.of(totals.num_row_tokens, totals.num_token_pairs, totals.num_masked)
    flops_per_device = flops / seconds / run.ranks.world_size
    peak = peak_flops(run.ranks.device)
    return {
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_second_per_device": num_tokens / seconds / run.ranks.world_size,
        "flops_per_second_per_device": flops_per_device,
        **({"mfu": flops_per_device / peak} if peak else {}),
        "peak_memory": peak_memory(run.ranks.device),
        **{f"seconds_{part}": part_seconds for part, part_seconds in clock.parts().items()},
    }


def controlled_loss(run: Run, totals: StepTotals) -> float:
    """The loss of a step with less noise, or the loss itself where there is no baseline."""
    batch = run.layout.global_batch_size
    if not run.baseline.decay:
        return totals.loss / batch
    return run.baseline.control_step(totals.loss / batch, totals.baseline / batch)


def observe(run: Run, totals: StepTotals) -> None:
    """Update P-POTS and the baseline with a step."""
    run.p_pots.observe(totals.cells)
    if run.baseline.decay:
        batch = run.layout.global_batch_size
        counts, losses, *_ = totals.cells
        run.baseline.observe(totals.loss / batch, totals.baseline / batch, counts, losses)


def loss_scale(run: Run, batches: list[Batch]) -> float | torch.Tensor:
    """The factor of a micro-batch's summed loss: 1 for `normalization: sample`.

    For `normalization: token` it is 1 / (mean number of eligible tokens per sample over the global batch), as
    a float64 tensor on the device, where the ranks' counts are summed.
    """
    if run.config.diffusion.normalization == "sample":
        return 1.0
    num_eligible = sum(batch.num_eligible for batch in batches) // run.layout.rows_per_sample
    mine = torch.tensor(num_eligible * run.ranks.speaks_for_samples, dtype=torch.float64)
    return run.layout.global_batch_size / all_reduce_sum(to_device(mine, run.ranks.device))


def without_large_losses(run: Run, batch: Batch, clamp: float) -> Batch:
    """The batch without the gradients of samples whose loss exceeds `clamp`, as torch.clamp drops them.

    It needs a forward of its own, because the gradient is computed together with the losses. The metrics
    show the losses of all samples.
    """
    with torch.no_grad():
        _, cross_entropies, _ = run.engine(**batch.model_inputs)
        losses = batch.sum_by_draw((batch.weights * cross_entropies).double())  # [draws]
        is_kept = run.ranks.sum_over_sequence(losses) <= clamp
    return replace(batch, weights=batch.weights * is_kept[batch.draw_of])


def renew_t_sampler(run: Run, writer: MetricsWriter, line: ProgressLine) -> dict[str, Any]:
    """Renew p(t) and a learned w(t) if that is due before the next step. Returns what its metrics gain."""
    factors = run.p_pots.learn_weight(run.step, run.baseline.averages)
    learnt = {}
    if factors is not None:
        run.baseline.rescale(factors)
        learnt = {"w_of_t": run.p_pots.t_sampler.loss_weight.to_state()}
    return learnt | renew_p_pots(run, writer, line)


def renew_p_pots(run: Run, writer: MetricsWriter, line: ProgressLine) -> dict[str, Any]:
    """Let P-POTS renew p(t) if that is due before the next step. Returns what the step's metrics gain."""
    if run.p_pots.probe_is_due(run.step):
        line.say(f"step {run.step}: measuring p(t)")
    renewal = run.p_pots.renew(run.step, run.consumed_samples, run.ranks)
    if renewal is None:
        return {}
    if run.ranks.is_first:
        target = run.config.diffusion.p_pots.target
        figure = p_pots_figure(run.p_pots.edges, renewal.moment, renewal.density, target)
        save_figure(figure, run.folder.figures / f"p_pots_step_{run.step:08d}.png")
        writer.figure("p_pots", figure, run.step)
    return {"p_of_t": renewal.density.to_state(), "p_pots_gain": renewal.gain}


def run_evaluation(run: Run) -> dict[str, float]:
    """The held-out loss, plain, controlled by the baseline, and of the average of the weights.

    Raises:
        FloatingPointError: if it is not finite. The step's checkpoint and export are not written then.
    """
    loss, diffusion = held_out_loss(run), run.config.diffusion
    found = {"eval_loss": loss}
    of_training = diffusion.objective, diffusion.loss_weight  # which the baseline is of
    if run.baseline.decay and of_training == ("full", "elbo"):
        mean_value = float(run.baseline.values(eval_t(run.config.eval)).mean())
        found["eval_loss_controlled"] = run.baseline.control(loss, mean_value)
    if run.engine.averages:
        with run.engine.averaged():
            found["eval_loss_ema"] = held_out_loss(run)
    return found


def held_out_loss(run: Run) -> float:
    """The held-out loss of the weights that the model has now. Forwards have as many rows as in training."""
    options = run.config.eval
    loss = evaluate(
        run.engine,
        run.source,
        options,
        run.config.diffusion,
        run.collate,
        run.layout.rows_per_forward,
        run.ranks,
    )
    if not math.isfinite(loss):
        raise FloatingPointError(f"the held-out loss after step {run.step} is {loss}; {RESUME_LOWER}")
    return loss


def answer_tasks(run: Run) -> TaskAnswers:
    """Let the model answer the questions of eval.tasks. It changes nothing of the run."""
    return answer(run.engine, run.backbone, run.questions, run.config.parallel.zero_stage, run.ranks)


def compare_replicas(run: Run) -> None:
    """At ZeRO-0, end the run if the weights of any rank have drifted apart from the others'."""
    if run.config.train.check_replicas_every and run.config.parallel.zero_stage == 0:
        check_replicas(run.engine.module.parameters(), run.step, run.ranks)


def save_checkpoint(run: Run, scores: dict[str, float]) -> None:
    """Publish a checkpoint of the run's current state, with the `scores` of an evaluation of it, if any."""
    checkpoint.save(
        run.engine,
        run.state(scores),
        partial(export.write_description, run.backbone),
        run.folder.checkpoints,
        run.config.checkpoint,
        run.ranks,
    )
    if run.ranks.is_first:
        forget_ends(run.folder, run.step)


def finish(run: Run) -> None:
    """Export the model, and the average of its weights; draw the loss."""
    folder = run.folder
    export.export_model(run.engine, run.backbone, folder.export, folder.adapter, run.ranks)
    if run.engine.averages:
        with run.engine.averaged():
            export.export_model(
                run.engine, run.backbone, folder.averaged_export, folder.averaged_adapter, run.ranks
            )
    if run.ranks.is_first:
        losses = read_series(folder.path, LOSSES)
        save_figure(training_figure(losses), folder.figures / "loss.png")


def is_due(every: int, step: int) -> bool:
    """Whether something that happens every `every` steps (0: never) happens at `step`."""
    return every > 0 and step % every == 0
