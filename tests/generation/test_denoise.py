"""The denoising loop on hand-made logits, where the right answer is known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mdmscale.generation import denoise as module
from mdmscale.generation.denoise import Remasking, commits_per_step, denoise, masked_predictor

MASK = 9
VOCAB = 10


class Oracle(nn.Module):
    """Gives `targets[i]` the logit `margins[i]` at position i, whatever it sees, and records what it saw."""

    def __init__(self, targets: list[int], margins: list[float]) -> None:
        super().__init__()
        self.logits = torch.zeros(len(targets), VOCAB)  # [length, vocab]
        self.logits[torch.arange(len(targets)), targets] = torch.tensor(margins)
        self.seen: list[torch.Tensor] = []

    def forward(
        self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, use_cache: bool
    ) -> SimpleNamespace:
        self.seen.append(input_ids.clone())
        return SimpleNamespace(logits=self.logits[logits_to_keep].repeat(len(input_ids), 1, 1))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks(rows: int, length: int, prompt: tuple[int, ...] = ()) -> torch.Tensor:
    return torch.tensor([*prompt, *[MASK] * length]).repeat(rows, 1)


def run(
    oracle: nn.Module, tokens: torch.Tensor, *, seed: int = 0, shift: bool = False, **options: Any
) -> torch.Tensor:
    predict = masked_predictor(oracle, shift)
    return denoise(predict, tokens, mask_token_id=MASK, generator=generator(seed), **options)


def test_commits_the_most_confident_first() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[2.0, 8.0, 4.0, 6.0])
    result = run(oracle, masks(1, 4), steps=4)
    assert result.tolist() == [[1, 2, 3, 4]]
    assert [seen.tolist()[0] for seen in oracle.seen] == [
        [MASK, MASK, MASK, MASK],
        [MASK, 2, MASK, MASK],
        [MASK, 2, MASK, 4],
        [MASK, 2, 3, 4],
    ]


def test_rows_commit_in_their_own_order() -> None:
    class OneSidedOracle(Oracle):
        """Row 0 is surest on the left, row 1 on the right."""

        def forward(
            self, input_ids: torch.Tensor, logits_to_keep: torch.Tensor, use_cache: bool
        ) -> SimpleNamespace:
            logits = super().forward(input_ids, logits_to_keep, use_cache).logits
            logits[1] = self.logits.flip(0)[logits_to_keep]
            return SimpleNamespace(logits=logits)

    oracle = OneSidedOracle(targets=[1, 2, 3], margins=[9.0, 5.0, 2.0])
    result = run(oracle, masks(2, 3), steps=3)
    assert result.tolist() == [[1, 2, 3], [3, 2, 1]]
    assert oracle.seen[1].tolist() == [[1, MASK, MASK], [MASK, MASK, 1]]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_makes_exactly_steps_forwards_and_leaves_no_mask(steps: int) -> None:
    oracle = Oracle(targets=[0] * 9, margins=[1.0] * 9)
    tokens = masks(3, 7, prompt=(5, 6))
    result = run(oracle, tokens, steps=steps, temperature=1.0)
    assert len(oracle.seen) == steps
    assert not (result == MASK).any()
    assert (result[:, :2] == torch.tensor([5, 6])).all()
    assert (tokens[:, 2:] == MASK).all(), "the input was changed"


def test_all_at_once_and_one_by_one_agree_where_the_model_ignores_its_input() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4, 5], margins=[3.0, 1.0, 2.0, 5.0, 4.0])
    assert torch.equal(run(oracle, masks(1, 5), steps=1), run(oracle, masks(1, 5), steps=5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_never_emits_the_mask_however_likely(temperature: float) -> None:
    oracle = Oracle(targets=[MASK] * 6, margins=[50.0] * 6)
    assert not (run(oracle, masks(4, 6), steps=3, temperature=temperature) == MASK).any()


def test_shift_reads_the_position_before_and_the_first_from_itself() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[5.0] * 4)
    assert run(oracle, masks(1, 4), steps=2, shift=False).tolist() == [[1, 2, 3, 4]]
    assert run(oracle, masks(1, 4), steps=2, shift=True).tolist() == [[1, 1, 2, 3]]
    assert run(oracle, masks(1, 2, prompt=(7, 7)), steps=2, shift=True).tolist() == [[7, 7, 2, 3]]


def test_temperature_zero_is_deterministic_and_one_follows_the_seed() -> None:
    oracle = Oracle(targets=[1] * 8, margins=[0.5] * 8)
    sampled = [run(oracle, masks(2, 8), steps=4, temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(sampled[0], sampled[1])
    assert not torch.equal(sampled[0], sampled[2])
    greedy = [run(oracle, masks(2, 8), steps=4, seed=seed) for seed in (3, 4)]
    assert torch.equal(greedy[0], greedy[1])


def test_global_random_state_is_neither_read_nor_changed() -> None:
    oracle = Oracle(targets=[1] * 8, margins=[0.5] * 8)
    results = []
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            results.append(run(oracle, masks(1, 8), steps=4, temperature=1.0, remasking="random"))
            assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*results)


def test_random_remasking_ignores_confidence() -> None:
    def first_commit(remasking: Remasking, seed: int) -> int:
        oracle = Oracle(targets=[1, 2, 3, 4], margins=[8.0, 6.0, 4.0, 2.0])
        run(oracle, masks(1, 4), steps=4, remasking=remasking, seed=seed)
        return int((oracle.seen[1][0] != MASK).nonzero())

    assert {first_commit("confidence", seed) for seed in range(20)} == {0}
    assert {first_commit("random", seed) for seed in range(20)} == {0, 1, 2, 3}


def test_temperature_one_samples_the_models_distribution() -> None:
    # Logit 2 for token 1 against 0 for the eight others that are not the mask: e^2 / (e^2 + 8) = 0.480.
    oracle = Oracle(targets=[1] * 100, margins=[2.0] * 100)
    result = run(oracle, masks(100, 100), steps=1, temperature=1.0)
    share = (result == 1).double().mean().item()
    assert share == pytest.approx(0.480, abs=0.02)  # four standard errors of 10,000 draws
    halved = run(oracle, masks(100, 100), steps=1, temperature=0.5)  # e^4 / (e^4 + 8) = 0.872
    assert (halved == 1).double().mean().item() == pytest.approx(0.872, abs=0.014)


def test_chunks_do_not_change_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(targets=[1] * 8, margins=[0.5] * 8)
    whole = run(oracle, masks(2, 8), steps=2)
    monkeypatch.setattr(module, "SAMPLING_CHUNK", 3)
    assert torch.equal(run(oracle, masks(2, 8), steps=2), whole)


@pytest.mark.parametrize(
    "num_masks, steps, expected", [(7, 3, [3, 2, 2]), (6, 3, [2, 2, 2]), (5, 1, [5]), (2, 2, [1, 1])]
)
def test_masks_are_split_evenly(num_masks: int, steps: int, expected: list[int]) -> None:
    assert commits_per_step(num_masks, steps) == expected


@pytest.mark.parametrize("steps", [0, 5])
def test_refuses_steps_that_do_not_suit(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps = {steps} must be from 1 to the number of masks, 4"):
        run(Oracle([1] * 4, [1.0] * 4), masks(1, 4), steps=steps)


def test_refuses_rows_with_different_numbers_of_masks() -> None:
    with pytest.raises(ValueError, match="same number of masks"):
        run(Oracle([1] * 3, [1.0] * 3), torch.tensor([[MASK, MASK, 1], [MASK, 1, 1]]), steps=1)
