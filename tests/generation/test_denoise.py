"""The denoising loop on hand-made logits, for which the right order is known."""

import torch

from mdmscale.generation import GenerationOptions, Request
from mdmscale.generation.batch import noise_key, pad_requests
from mdmscale.generation.denoise import Frame, denoise

MASK, EOS, VOCAB = 9, 0, 10


class Oracle:
    """Gives `targets[i]` the logit `margins[i]` at token i of each text, for any input."""

    def __init__(self, targets: list[int], margins: list[float], rows: int = 1) -> None:
        self.logits = torch.zeros(rows, len(targets), VOCAB)
        self.logits[:, torch.arange(len(targets)), targets] = torch.tensor(margins)
        self.seen: list[list[list[int]]] = []
        self.blocks_started = 0

    def start_block(self) -> None:
        self.blocks_started += 1

    def __call__(self, tokens: torch.Tensor, is_wanted: torch.Tensor) -> torch.Tensor:
        self.seen.append(tokens.tolist())
        return self.logits[is_wanted]


def masks(length: int, prompt: tuple[int, ...] = (), sample: int = 0) -> Request:
    return Request([*prompt, *[MASK] * length], len(prompt), sample=sample)


def run(
    oracle: Oracle, requests: list[Request], eos_ids: tuple[int, ...] = (), **values: object
) -> list[Frame]:
    length = max(request.token_ids.count(MASK) for request in requests)
    options = GenerationOptions(**{"length": length, **values})  # type: ignore[arg-type]
    batch = pad_requests(requests, options, MASK, torch.device("cpu"))
    return list(denoise(oracle, batch, options, eos_ids=eos_ids))


def test_commits_the_most_confident_first() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[2.0, 8.0, 4.0, 6.0])
    frames = run(oracle, [masks(4)])
    assert frames[-1].row(0) == [1, 2, 3, 4]
    assert [seen[0] for seen in oracle.seen] == [
        [MASK, MASK, MASK, MASK],
        [MASK, 2, MASK, MASK],
        [MASK, 2, MASK, 4],
        [MASK, 2, 3, 4],
    ]
    assert [frame.new_in_row(0).index(True) for frame in frames] == [1, 3, 2, 0]


def test_each_row_commits_in_its_own_order() -> None:
    oracle = Oracle(targets=[1, 2], margins=[1.0, 2.0], rows=2)
    oracle.logits[1, 0, 1] = 3.0
    first, _ = run(oracle, [masks(2), masks(2, sample=1)])
    assert first.tokens.tolist() == [[MASK, 2], [1, MASK]]


def test_steps_share_the_masks_evenly() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4, 5], margins=[5.0, 4.0, 3.0, 2.0, 1.0])
    frames = run(oracle, [masks(5)], steps=2)
    assert [frame.row(0) for frame in frames] == [[1, 2, 3, MASK, MASK], [1, 2, 3, 4, 5]]
    assert frames[-1].num_forwards == [2]


def test_blocks_are_filled_from_left_to_right() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[1.0, 2.0, 3.0, 4.0])
    frames = run(oracle, [masks(4)], block_length=2)
    assert [frame.new_in_row(0).index(True) for frame in frames] == [1, 0, 3, 2]
    assert oracle.blocks_started == 2


def test_blocks_of_an_infilling_are_runs_of_its_masks() -> None:
    oracle = Oracle(targets=[1, 1, 2, 2, 3], margins=[1.0, 9.0, 2.0, 9.0, 3.0])
    text = Request([MASK, 7, MASK, 7, MASK], None)
    frames = run(oracle, [text], block_length=2)
    assert [frame.row(0) for frame in frames] == [
        [MASK, 7, 2, 7, MASK],
        [1, 7, 2, 7, MASK],
        [1, 7, 2, 7, 3],
    ]


def test_a_threshold_commits_all_that_are_sure_and_always_one() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[9.0, 0.5, 9.0, 0.4])
    frames = run(oracle, [masks(4)], threshold=0.9)
    assert [frame.row(0) for frame in frames] == [[1, MASK, 3, MASK], [1, 2, 3, MASK], [1, 2, 3, 4]]


def test_rows_that_finish_a_block_early_wait() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[9.0, 9.0, 0.2, 0.1], rows=2)
    oracle.logits[1] = torch.zeros(4, VOCAB)
    oracle.logits[1, torch.arange(4), [4, 3, 2, 1]] = torch.tensor([0.2, 0.1, 9.0, 9.0])
    frames = run(oracle, [masks(4), masks(4, sample=1)], threshold=0.9, block_length=2)
    assert frames[-1].tokens.tolist() == [[1, 2, 3, 4], [4, 3, 2, 1]]
    assert frames[-1].num_forwards == [3, 3]
    assert frames[1].row(0) == [1, 2, MASK, MASK]


def test_blocks_after_an_eos_are_filled_without_a_pass() -> None:
    oracle = Oracle(targets=[1, EOS, 3, 4, 5, 6], margins=[2.0] * 6)
    frames = run(oracle, [masks(6)], eos_ids=(EOS,), block_length=2)
    assert frames[-1].row(0) == [1, EOS, EOS, EOS, EOS, EOS]
    assert frames[-1].num_forwards == [2]
    assert frames[-1].new_in_row(0) == [False, True, True, True, True, True]


def test_eos_may_be_kept_as_any_other_token() -> None:
    oracle = Oracle(targets=[1, EOS, 3, 4], margins=[2.0] * 4)
    frames = run(oracle, [masks(4)], eos_ids=(EOS,), block_length=2, eos="keep")
    assert frames[-1].row(0) == [1, EOS, 3, 4]
    assert frames[-1].num_forwards == [4]


def test_a_factor_commits_more_the_surer_the_model_is() -> None:
    oracle = Oracle(targets=[1, 2, 3, 4], margins=[9.0, 0.5, 8.0, 0.4])
    frames = run(oracle, [masks(4)], factor=0.9)
    assert [frame.row(0) for frame in frames] == [[1, MASK, 3, MASK], [1, 2, 3, MASK], [1, 2, 3, 4]]


def test_a_dream_step_that_commits_nothing_takes_no_pass() -> None:
    oracle = Oracle(targets=[1, 2, 3], margins=[3.0, 2.0, 1.0])
    frames = run(oracle, [masks(3)], schedule="dream")
    assert [frame.row(0) for frame in frames] == [[1, MASK, MASK], [1, 2, 3]]
    assert frames[-1].num_forwards == [2]


def test_independent_masks_go_in_steps_that_the_text_draws() -> None:
    counts = set()
    for sample in range(30):
        request = masks(3, sample=sample)
        frames = run(
            Oracle([1, 2, 3], [1.0, 2.0, 3.0]), [request], schedule="independent", remasking="random"
        )
        assert frames[-1].row(0) == [1, 2, 3]
        counts.add(tuple(sum(frame.new_in_row(0)) for frame in frames))
    assert counts == {(1, 1, 1), (1, 2), (2, 1), (3,)}


def test_eos_before_given_text_ends_nothing() -> None:
    oracle = Oracle(targets=[EOS, 1, 2, 3], margins=[2.0] * 4)
    text = Request([MASK, 7, MASK, MASK], None)
    frames = run(oracle, [text], eos_ids=(EOS,), block_length=1)
    assert frames[-1].row(0) == [EOS, 7, 2, 3]


def test_a_text_without_masks_takes_no_pass() -> None:
    oracle = Oracle(targets=[1, 2], margins=[1.0, 1.0], rows=2)
    frames = run(oracle, [Request([5, 6], None), masks(2)])
    assert frames[-1].row(0) == [5, 6]
    assert frames[-1].num_forwards == [0, 2]


def test_draws_follow_from_the_text_and_its_number_alone() -> None:
    requests = [masks(4, (1,)), masks(4, (1,), sample=1), masks(4, (2,)), masks(3, (1,))]
    assert len({noise_key(request) for request in requests}) == 4
    assert noise_key(masks(4, (1,))) == noise_key(requests[0])


def test_random_remasking_draws_every_order() -> None:
    firsts = set()
    for sample in range(40):
        frames = run(Oracle([1, 2, 3], [1.0, 2.0, 3.0]), [masks(3, sample=sample)], remasking="random")
        firsts.add(frames[0].new_in_row(0).index(True))
    assert firsts == {0, 1, 2}


def test_padding_is_on_the_chosen_side_and_never_sampled() -> None:
    for side, shape in (("left", [False, True, True]), ("right", [True, True, False])):
        options = GenerationOptions(length=2, padding=side)  # type: ignore[arg-type]
        batch = pad_requests([masks(2), masks(2, (5,))], options, MASK, torch.device("cpu"))
        assert batch.is_real.tolist() == [shape, [True, True, True]]
        assert batch.position_ids[0, batch.is_real[0]].tolist() == [0, 1]
        assert batch.blocks[~batch.is_real].tolist() == [-1]
