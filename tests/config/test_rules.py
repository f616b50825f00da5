"""Combinations of keys: which are refused and why, and which are accepted."""

from pathlib import Path

import pytest
from config.conftest import problems

from mdmscale.config.loading import load_config

P_POTS = "diffusion.t_sampler=p_pots"
SCRIPTS = [
    "diffusion.objective=paper_scripts",
    "diffusion.p_pots.target=paper",
    "diffusion.p_pots.fit=epr",
    P_POTS,
]


REFUSED = {
    "strata is set but t_sampler is uniform; strata need": ["diffusion.strata=2"],
    "strata is set but t_sampler is low_discrepancy": [
        "diffusion.strata=2",
        "diffusion.t_sampler=low_discrepancy",
    ],
    "window is set but loss_weight is elbo; only window uses it": ["diffusion.window=[0.1, 0.9]"],
    "window = [0.9, 0.1] is empty; give [low, high]": [
        "diffusion.window=[0.9, 0.1]",
        "diffusion.loss_weight=window",
    ],
    "pair_forward is sequential but masking is bernoulli": ["diffusion.pair_forward=sequential"],
    "masking is complement but window = [0.3, 0.8] is not symmetric": [
        "diffusion.masking=complement",
        "diffusion.loss_weight=window",
    ],
    "bell is set but loss_weight is elbo; only bell uses it": ["diffusion.bell.mean=0.4"],
    "loss_weight is learned from the average losses that ema_decay keeps": [
        "diffusion.loss_weight=learned",
        "diffusion.ema_decay=0",
    ],
    "rows is set but masking is bernoulli; choose masking exact": ["diffusion.rows=2"],
    "rows is set but masking is exact_pair; choose masking exact": [
        "diffusion.masking=exact_pair",
        "diffusion.rows=2",
    ],
    "pair_forward is sequential but masking is exact, which has one row": [
        "diffusion.masking=exact",
        "diffusion.pair_forward=sequential",
    ],
    "isad is set but masking is exact, which has no mask rate per position": [
        "diffusion.masking=exact",
        "diffusion.isad={tokens: [5]}",
    ],
    "weights is count but isad is set: with rates that differ": [
        "diffusion.weights=count",
        "diffusion.isad={tokens: [5]}",
    ],
    "weights is rate but masking is exact_pair, which has no rate": [
        "diffusion.weights=rate",
        "diffusion.masking=exact_pair",
    ],
    "diffusion.masking: 'exakt' is unknown; choose one of bernoulli, independent": [
        "diffusion.masking=exakt",
    ],
    "objective is paper_scripts but t_sampler = uniform; the scripts have p_pots": [*SCRIPTS[:-1]],
    "objective is paper_scripts but masking = exact; the scripts have bernoulli or mirror": [
        *SCRIPTS,
        "diffusion.masking=exact",
    ],
    "objective is paper_scripts but weights = count; the scripts have none or rate": [
        *SCRIPTS,
        "diffusion.weights=count",
    ],
    "objective is paper_scripts but normalization = token; the scripts have sample": [
        *SCRIPTS,
        "diffusion.normalization=token",
    ],
    "objective is paper_scripts but p_pots has target gradient and fit epr": [
        *SCRIPTS,
        "diffusion.p_pots.target=gradient",
    ],
    "refit_every is set but target is paper": [
        P_POTS,
        "diffusion.p_pots.target=paper",
        "diffusion.p_pots.refit_every=5",
    ],
    "so p(t) would never be measured": [P_POTS, "diffusion.p_pots.probe_steps=[]"],
    "train.ema_decay = 0.99 with parallel.offload_optimizer = nvme": [
        "train.ema_decay=0.99",
        "parallel={zero_stage: 3, offload_optimizer: nvme, nvme_path: /disk}",
    ],
    "diffusion.syrm is set but data.kind is tokens": ["diffusion.syrm.extra=0.5"],
    "train_on is set but kind is tokens; only sft": ["data.train_on=all"],
    "special_tokens is set but kind is tokens; only sft": ["data.special_tokens=read"],
    "fill_multiple is set but kind is tokens; only sft": ["data.fill_multiple=4"],
    "no prompt tokens to mask": ["diffusion.syrm={}", "data.kind=sft"],
    "not a regular expression": ["diffusion.syrm.pattern='['", "data.kind=sft"],
    "diffusion.isad.tokens: required": ["diffusion.isad.delta=0.5"],
    "model.compile = true with parallel.zero_stage = 3: DeepSpeed gathers parameters by hooks": [
        "model.compile=true",
        "parallel.zero_stage=3",
    ],
    "model.compile = true with parallel.tensor = 2": ["model.compile=true", "parallel.tensor=2"],
    "model.compile = true with parallel.sequence = 4": ["model.compile=true", "parallel.sequence=4"],
    "model.compile = true with model.activation_checkpointing = selective": [
        "model.compile=true",
        "model.activation_checkpointing=selective",
    ],
    "model.compile = true with model.attention = flash_attention_2": [
        "model.compile=true",
        "model.attention=flash_attention_2",
    ],
    "eval: tasks is set, but every is 0; set tasks_every": ["eval.tasks=[gsm8k]"],
    "eval: tasks_every is set, but tasks names none": ["eval.tasks_every=5"],
    "eval: task_data has gsm8, which tasks does not name": [
        "eval.tasks=[gsm8k]",
        "eval.tasks_every=5",
        "eval.task_data.gsm8=x.jsonl",
    ],
    "eval.tasks with diffusion.objective = ar: sampling from left to right needs a cache": [
        "eval.tasks=[gsm8k]",
        "eval.tasks_every=5",
        "diffusion.objective=ar",
        "diffusion.ema_decay=0",
    ],
    "eval.tasks with parallel.sequence = 2: texts are sampled as whole sequences": [
        "eval.tasks=[gsm8k]",
        "eval.tasks_every=5",
        "parallel.sequence=2",
    ],
    "diffusion.isad.delta = 1.5": ["diffusion.isad={tokens: [1], delta: 1.5}"],
}


@pytest.mark.parametrize("expected", REFUSED)
def test_senseless_combinations_are_refused_with_the_reason(config_file: Path, expected: str) -> None:
    (problem,) = problems(config_file, *REFUSED[expected])
    assert expected in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ["diffusion.masking=complement", "diffusion.loss_weight=window", "diffusion.window=[0.1, 0.9]"],
        ["diffusion.masking=complement", P_POTS, "diffusion.strata=1"],
        ["diffusion.masking=exact", "diffusion.rows=3", "diffusion.pair_forward=sequential", P_POTS],
        ["diffusion.masking=independent", "diffusion.rows=1", "diffusion.loss_weight=bell"],
        ["diffusion.masking=complement", "diffusion.weights=count", "diffusion.loss_weight=uniform"],
        [*SCRIPTS, "diffusion.masking=mirror", "diffusion.weights=rate"],
        ["diffusion.isad={tokens: ['####', 5]}", "diffusion.masking=mirror"],
        [P_POTS, "diffusion.p_pots.probe_steps=[]", "diffusion.p_pots.refit_every=5"],
        ["model.compile=true", "parallel.zero_stage=2", "train.packing=true"],
        ["data.kind=sft", "diffusion.syrm={pattern: '[{}]', extra: 0.1}", "diffusion.masking=mirror", P_POTS],
    ],
)
def test_sensible_combinations_are_taken(config_file: Path, overrides: list[str]) -> None:
    load_config(config_file, overrides)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["model.hidden_size=null"], "model: a model from scratch (model.path: null) also needs hidden_size"),
        (["model.tokenizer=null"], "model: a model from scratch (model.path: null) also needs tokenizer"),
        (
            ["model.num_key_value_heads=3"],
            "model: num_attention_heads = 4 is not a multiple of num_key_value_heads = 3",
        ),
        (["model.hidden_size=66"], "model: hidden_size = 66 is not a multiple of num_attention_heads = 4"),
        (["diffusion.strata=4"], "diffusion: strata is set but t_sampler is uniform"),
        (
            ["train.micro_batch_size=3"],
            "train: global_batch_size = 8 is not a multiple of micro_batch_size = 3",
        ),
        (["eval.every=5", "data.held_out=0"], "eval.every is set but data.held_out = 0"),
        (["checkpoint.keep_best=loss"], "checkpoint.keep_best = loss, but eval.every = 0 never evaluates"),
        (
            ["checkpoint.keep_best=gsm8k"],
            "checkpoint.keep_best = gsm8k is neither loss nor one of eval.tasks = []; name one of them",
        ),
        (
            ["checkpoint.keep_best=loss", "checkpoint.every=8", "eval.every=5"],
            "checkpoint.keep_best = loss needs an evaluation at every checkpoint, but checkpoint.every = 8 "
            "is not a multiple of eval.every = 5",
        ),
        (
            ["checkpoint.keep_best=gsm8k", "checkpoint.every=8", "eval={tasks: [gsm8k], tasks_every: 3}"],
            "checkpoint.keep_best = gsm8k needs an evaluation at every checkpoint, but checkpoint.every = 8 "
            "is not a multiple of eval.tasks_every = 3",
        ),
        (["optimizer.warmup_steps=11"], "optimizer.warmup_steps = 11 exceeds train.steps = 10"),
        (
            ["data.sequence_length=5000"],
            "data.sequence_length = 5000 exceeds model.max_position_embeddings = 4096",
        ),
    ],
)
def test_combinations_that_cannot_be(config_file: Path, overrides: list[str], expected: str) -> None:
    (problem,) = problems(config_file, *overrides)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.path=m", "model.hidden_size=null", "model.tokenizer=null"],
        ["model.hidden_size=66", "model.head_dim=32"],
        ["model.num_key_value_heads=2"],
        ["diffusion.strata=4", "diffusion.t_sampler=p_pots"],
        ["optimizer.warmup_steps=10"],
        ["checkpoint.keep_best=loss", "checkpoint.every=10", "eval.every=5"],
        ["checkpoint.keep_best=loss", "checkpoint.every=0", "eval.every=5"],
        ["checkpoint.keep_best=gsm8k", "checkpoint.every=9", "eval={tasks: [gsm8k], tasks_every: 3}"],
        ["data.held_out=0"],
        ["data.sequence_length=5000", "model.path=m"],
    ],
)
def test_combinations_next_to_these_are_fine(config_file: Path, overrides: list[str]) -> None:
    load_config(config_file, overrides)


def test_section_problems_are_reported_together(config_file: Path) -> None:
    assert len(problems(config_file, "optimizer.warmup_steps=11", "eval.every=5", "data.held_out=0")) == 2
