"""Likelihoods of a tiny model against the definition, written out with plain forwards."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from models.tiny_folder import write_model_folder
from transformers import LlamaForCausalLM

from mdmscale.evaluation.likelihood.scoring import (
    LikelihoodOptions,
    LogLikelihood,
    Scored,
    log_likelihoods,
    num_forwards,
    windows,
)
from mdmscale.models.opening import LoadedModel, load_model
from mdmscale.system.errors import UserError

ITEM = Scored([5, 9, 14], [20, 7, 33, 41, 8])
OTHERS = [Scored([], [30, 31]), ITEM, Scored([3, 4], [50, 6, 70, 8, 90, 100])]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """The tiny model, with weights large enough that every token and mask matters."""
    loaded = load_model(write_model_folder(tmp_path_factory.mktemp("model")), "fp32")
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return loaded


@pytest.fixture(params=[False, True], ids=["plain", "shifted"])
def loaded(plain: LoadedModel, request: pytest.FixtureRequest) -> LoadedModel:
    return replace(plain, description=replace(plain.description, logit_shift=request.param))


def score(loaded: LoadedModel, *items: Scored, batch_size: int = 4, **options: object) -> list[LogLikelihood]:
    return list(log_likelihoods(loaded, items, LikelihoodOptions(**options), batch_size))  # type: ignore[arg-type]


@torch.no_grad()
def losses(loaded: LoadedModel, item: Scored, hidden: set[int]) -> np.ndarray:
    """The cross-entropy of each target, float64 [n], where the targets of `hidden` are masked."""
    mask = loaded.description.mask_token_id
    target = [mask if place in hidden else token for place, token in enumerate(item.target_ids)]
    logits = loaded.model(torch.tensor([[*item.prompt_ids, *target]])).logits[0].double()  # [length, vocab]
    places = np.arange(len(item.prompt_ids), len(item.prompt_ids) + len(target))
    if loaded.description.logit_shift:
        places = np.maximum(places - 1, 0)
    return -logits[places].log_softmax(-1).numpy()[np.arange(len(target)), item.target_ids]


def bound(loaded: LoadedModel, item: Scored, block: range, after: set[int]) -> float:
    """The bound of a block's tokens where those of `after` are masked as well."""
    total = 0.0
    for count in range(1, len(block) + 1):
        for chosen in combinations(block, count):
            found = losses(loaded, item, set(chosen) | after)[list(chosen)]
            total += found.mean() / comb(len(block), count)
    return total


def test_all_masks_are_taken_where_they_are_few(loaded: LoadedModel) -> None:
    (found,) = score(loaded, ITEM, rows=32)
    assert found.nats == pytest.approx(-bound(loaded, ITEM, range(5), set()), rel=1e-5)
    assert (found.standard_error, found.num_tokens, found.num_forwards) == (0, 5, 31)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_blocks_are_bounded_given_those_before_and_masks_after(loaded: LoadedModel, length: int) -> None:
    (found,) = score(loaded, ITEM, rows=32, method="block", block_length=length)
    expected = 0.0
    for first in range(0, 5, length):
        stop = min(first + length, 5)
        expected += bound(loaded, ITEM, range(first, stop), set(range(stop, 5)))
    assert found.nats == pytest.approx(-expected, rel=1e-5) and found.standard_error == 0


def test_left_to_right_is_blocks_of_one_token(loaded: LoadedModel) -> None:
    chain = score(loaded, *OTHERS, method="left-to-right")
    assert chain == score(loaded, *OTHERS, method="block", block_length=1)
    assert [each.num_forwards for each in chain] == [2, 5, 6]
    expected = sum(losses(loaded, ITEM, set(range(place, 5)))[place] for place in range(5))
    assert chain[1].nats == pytest.approx(-expected, rel=1e-5)


@pytest.mark.parametrize("estimator", ["stratified", "pairs", "independent"])
def test_estimates_scatter_around_the_bound_as_their_errors_say(plain: LoadedModel, estimator: str) -> None:
    exact = score(plain, ITEM, rows=32)[0].nats
    found = [
        score(plain, ITEM, rows=16, estimator=estimator, seed=seed, batch_size=16)[0] for seed in range(150)
    ]
    nats = np.array([each.nats for each in found])
    assert {each.num_forwards for each in found} == {16}
    assert abs(nats.mean() - exact) < 4 * nats.std() / np.sqrt(len(nats))
    variance = np.mean([each.standard_error**2 for each in found])
    assert variance == pytest.approx(nats.var(), rel=0.5)


def test_an_item_scores_the_same_alone_and_among_others(loaded: LoadedModel) -> None:
    options = {"rows": 8, "seed": 3}
    together = score(loaded, *OTHERS, **options, batch_size=3)
    alone = [score(loaded, item, **options, batch_size=8)[0] for item in OTHERS]
    assert [each.nats for each in together] == pytest.approx([each.nats for each in alone], rel=1e-5)
    assert [each.num_forwards for each in together] == [
        num_forwards(loaded, item, LikelihoodOptions(**options))
        for item in OTHERS  # type: ignore[arg-type]
    ]


def test_left_to_right_tells_whether_the_target_is_greedy(loaded: LoadedModel) -> None:
    mask, target = loaded.description.mask_token_id, []
    for place in range(4):
        tokens = torch.tensor([[*ITEM.prompt_ids, *target, *[mask] * (4 - place)]])
        logits = loaded.model(tokens).logits[0]
        target.append(int(logits[3 + place - loaded.description.logit_shift].argmax()))
    greedy = Scored(ITEM.prompt_ids, target)
    if mask not in target:
        assert score(loaded, greedy, method="left-to-right")[0].is_greedy is True
    other = Scored(ITEM.prompt_ids, [*target[:2], (target[2] + 1) % 300, target[3]])
    if mask not in other.target_ids:
        assert score(loaded, other, method="left-to-right")[0].is_greedy is False
    assert score(loaded, ITEM)[0].is_greedy is None


def test_seeds_give_other_masks_and_the_same_seed_the_same(plain: LoadedModel) -> None:
    first, again, other = (score(plain, ITEM, rows=8, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_windows_cover_a_long_target_once() -> None:
    found = windows([1], range(10, 35), 10)
    assert [len(each.target_ids) for each in found] == [9, 9, 7]
    assert [token for each in found for token in each.target_ids] == list(range(10, 35))
    assert all(each.prompt_ids == [1] for each in found)
    overlapping = windows([1], range(10, 35), 10, context=4)
    assert [each.prompt_ids for each in overlapping] == [
        [1],
        [15, 16, 17, 18],
        [21, 22, 23, 24],
        [27, 28, 29, 30],
    ]
    assert [token for each in overlapping for token in each.target_ids] == list(range(10, 35))
    with pytest.raises(UserError, match="leave no room"):
        windows([1, 2], [3], 2)


@pytest.mark.parametrize(
    "item, message",
    [
        (Scored([2], []), "item 0: has no token to score"),
        (
            Scored([3] * 40, [2] * 9),
            r"40 and 9 tokens to score exceed the model's max_position_embeddings = 48",
        ),
        (Scored([2], [320]), "token id 320 is not below the model's vocabulary of 320"),
    ],
)
def test_items_that_the_model_cannot_score_are_refused(
    plain: LoadedModel, item: Scored, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score(plain, item)


def test_the_mask_token_in_a_text_is_refused(plain: LoadedModel) -> None:
    with pytest.raises(UserError, match="holds the mask token"):
        score(plain, Scored([], [plain.description.mask_token_id]))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "random"}, "method = 'random': choose one of any-order"),
        ({"estimator": "exact"}, "estimator = 'exact': choose one of stratified"),
        ({"rows": 6}, "rows = 6: must be a positive multiple of 4"),
        ({"method": "block"}, "block_length = None: method block needs one"),
        ({"block_length": 4}, "block_length = 4: goes with method = block"),
        ({"seed": -1}, "seed = -1: must be in"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LikelihoodOptions(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def causal(plain: LoadedModel) -> LoadedModel:
    """The tiny model with causal attention, as an autoregressive one."""
    config = deepcopy(plain.model.config)
    config.is_causal = True
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(plain.model.state_dict())
    return replace(plain, description=replace(plain.description, objective="ar"), model=model)


@torch.no_grad()
def test_an_autoregressive_model_is_scored_exactly_in_one_row(causal: LoadedModel) -> None:
    found = score(causal, *OTHERS)
    eos = causal.tokenizer.eos_token_id
    for item, each in zip(OTHERS, found, strict=True):
        tokens = [*(item.prompt_ids or [eos]), *item.target_ids]
        logits = causal.model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        size = len(item.target_ids)
        expected = logits[-size - 1 : -1].gather(1, torch.tensor(item.target_ids)[:, None]).sum()
        assert each.nats == pytest.approx(float(expected), rel=1e-5)
        assert (each.standard_error, each.num_forwards, each.num_tokens) == (0, 1, size)
        greedy = logits[-size - 1 : -1].argmax(1).tolist() == item.target_ids
        assert each.is_greedy is greedy
    assert [num_forwards(causal, item, LikelihoodOptions()) for item in OTHERS] == [1, 1, 1]
