from pathlib import Path

import numpy as np
import pytest

from mdmscale.config.data import DataSection
from mdmscale.data.opening import open_source
from mdmscale.data.sft_shard import SFTWriter, samples_path, write_samples
from mdmscale.data.shards import trained_path
from mdmscale.data.source import SampleSource
from mdmscale.system.errors import UserError

EOS = 1


@pytest.fixture
def prefix(write_shard) -> Path:
    """40 samples. Sample i has 2 prompt tokens and i % 5 + 1 response tokens, with ids that no other has."""
    documents = [[100 + 10 * i + j for j in range(i % 5 + 3)] for i in range(40)]
    prefix = write_shard("sft", documents)
    np.save(f"{prefix}.prompts.npy", np.full(40, 2, dtype=np.int32))
    return prefix


def open_sft(prefix: Path, seed: int = 0, eos: int | None = EOS, **options: object) -> SampleSource:
    values = {"kind": "sft", "path": str(prefix), "sequence_length": 8, "held_out": 0.1}
    return open_source(DataSection(**{**values, **options}), seed, vocab_size=1000, eos_token_id=eos)


def numbers(source: SampleSource, epoch: int = 0) -> list[int]:
    start = epoch * source.num_train
    return [int(source.train_sample(start + i).token_ids[0] - 100) // 10 for i in range(source.num_train)]


def test_an_epoch_is_every_sample_that_is_not_held_out(prefix):
    source = open_sft(prefix)
    held_out = [int(source.held_out_sample(i).token_ids[0] - 100) // 10 for i in range(source.num_held_out)]
    assert (source.num_train, len(held_out)) == (36, 4)
    for epoch in range(2):
        assert sorted(numbers(source, epoch) + held_out) == list(range(40))
    assert numbers(source, 0) != numbers(source, 1)


def test_only_the_response_is_eligible(prefix):
    source = open_sft(prefix)
    for index in range(source.num_train):
        sample = source.train_sample(index)
        number = int(sample.token_ids[0] - 100) // 10
        assert sample.token_ids.tolist() == [100 + 10 * number + j for j in range(number % 5 + 3)]
        assert sample.eligible.tolist() == [False] * 2 + [True] * (number % 5 + 1)


@pytest.mark.parametrize(
    ("multiple", "expected"), [(4, {4, 7}), (5, {5, 7}), (1, {3, 4, 5, 6, 7}), (0, {3, 4, 5, 6, 7})]
)
def test_the_response_is_filled_with_eligible_eos(prefix, multiple, expected):
    filled, plain = open_sft(prefix, fill_multiple=multiple, sequence_length=7), open_sft(prefix)
    assert {len(filled.train_sample(index).token_ids) for index in range(filled.num_train)} == expected
    for index in range(filled.num_train):
        sample, bare = filled.train_sample(index), plain.train_sample(index).token_ids
        assert sample.token_ids.tolist() == bare.tolist() + [EOS] * (len(sample.token_ids) - len(bare))
        assert sample.eligible[2:].all() and not sample.eligible[:2].any()


def test_long_samples_are_refused_cut_or_left_out(prefix):
    with pytest.raises(UserError, match=r"sample 4 has 7 tokens, more than data\.sequence_length = 6"):
        open_sft(prefix, sequence_length=6)
    cut, dropped = (
        open_sft(prefix, sequence_length=6, held_out=0.0, too_long=rule) for rule in ("truncate", "drop")
    )
    assert (cut.num_train, dropped.num_train) == (40, 32)
    assert max(len(cut.train_sample(index).token_ids) for index in range(40)) == 6
    assert sorted(numbers(dropped)) == [number for number in range(40) if number % 5 != 4]
    with pytest.raises(UserError, match="no sample is left; the prompt of every sample fills"):
        open_sft(prefix, sequence_length=2, held_out=0.0, too_long="truncate")


def test_options_that_change_samples_change_the_fingerprint(prefix):
    variants = [{}, {"fill_multiple": 4}, {"held_out": 0.2}, {"sequence_length": 9}, {"too_long": "drop"}]
    assert len({open_sft(prefix, **options).fingerprint for options in variants}) == len(variants)
    before = open_sft(prefix).fingerprint
    assert open_sft(prefix, seed=7).fingerprint == before
    np.save(f"{prefix}.prompts.npy", np.full(40, 1, dtype=np.int32))
    assert open_sft(prefix).fingerprint != before


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Samples whose trained tokens are not the last ones alone: of 7 tokens, number 2 is not trained."""
    marks = np.array([0, 1, 0, 1, 1, 1, 1], dtype=bool)
    with SFTWriter(tmp_path / "m", np.dtype("<u2"), "all") as writer:
        for number in range(20):
            writer.add(np.arange(7) + 10 * number, marks if number % 2 else marks | (np.arange(7) == 2))
    return tmp_path / "m"


def test_marked_tokens_are_eligible(marked):
    source = open_sft(marked, train_on="all", fill_multiple=4)
    for index in range(source.num_train):
        sample = source.train_sample(index)
        is_marked = bool(sample.token_ids[0] // 10 % 2)
        assert sample.eligible.astype(int).tolist() == [0, 1, 0 if is_marked else 1, 1, 1, 1, 1, 1]
        assert sample.token_ids[-1] == EOS


def test_marks_are_part_of_the_fingerprint(marked):
    before = open_sft(marked, train_on="all").fingerprint
    path = trained_path(marked)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert open_sft(marked, train_on="all").fingerprint != before


def test_marks_that_are_lost_or_cut_short_are_named(marked):
    path = trained_path(marked)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"m\.trained: 139 bytes, but the shard has 140 tokens"):
        numbers(open_sft(marked, train_on="all"))
    path.unlink()
    with pytest.raises(UserError, match=r"m\.trained: no such file, but it says which tokens of sample"):
        numbers(open_sft(marked, train_on="all"))


def test_shards_prepared_for_other_turns_are_refused(marked, prefix):
    with pytest.raises(UserError, match=r"data\.train_on = last, but .*m was prepared with --train-on all"):
        open_sft(marked)
    with pytest.raises(UserError, match=r"data\.train_on = completion, but"):
        open_sft(marked, train_on="completion")
    assert open_sft(prefix, train_on="all").num_train  # an older shard does not say


def test_fill_needs_eos(prefix):
    with pytest.raises(UserError, match=r"data\.fill_multiple = 4 fills with EOS"):
        open_sft(prefix, eos=None, fill_multiple=4)


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        (np.full(39, 2), "expected 40 integers, found int64 of shape"),
        (np.full(40, 2.0), "expected 40 integers, found float64"),
        (np.full(40, 3), "sample 0 has no response"),
    ],
)
def test_prompt_lengths_must_fit_the_shard(prefix, prompts, problem):
    np.save(f"{prefix}.prompts.npy", prompts)
    with pytest.raises(UserError, match=problem):
        open_sft(prefix)


def test_a_token_shard_is_no_sft_shard(write_shard):
    with pytest.raises(UserError, match=r"t\.prompts\.npy: no such file; .* is no SFT shard"):
        open_sft(write_shard("t", [[1, 2]] * 3))


def test_damaged_prompt_lengths_are_named(prefix):
    Path(f"{prefix}.prompts.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"sft\.prompts\.npy: cannot be read"):
        open_sft(prefix)


@pytest.mark.parametrize(
    "options",
    [{}, {"sequence_length": 6, "too_long": "drop"}, {"sequence_length": 5, "too_long": "truncate"}],
)
def test_a_shard_that_says_how_long_its_samples_get_is_read_alike(prefix, options):
    read = [open_sft(prefix, **options)]
    write_samples(prefix, np.full(40, 2), longest=7)
    read.append(open_sft(prefix, **options))
    assert read[0].num_train == read[1].num_train and read[0].fingerprint == read[1].fingerprint
    for index in range(read[0].num_train):
        one, other = (source.train_sample(index) for source in read)
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.eligible.tolist() == other.eligible.tolist()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read"),
        ('{"num_samples": 39, "longest": 7}', "describes 39 samples"),
        (
            '{"num_samples": 40, "longest": 4}',
            "describes samples of at most 4 tokens, but the shard's 40 have 200",
        ),
    ],
)
def test_what_is_said_of_the_samples_must_fit_the_shard(prefix, text, problem):
    samples_path(prefix).write_text(text)
    with pytest.raises(UserError, match=rf"sft\.samples\.json: {problem}"):
        open_sft(prefix)


def test_a_sample_without_a_response_is_refused_when_it_is_read(prefix):
    write_samples(prefix, np.full(40, 7), longest=7)
    source = open_sft(prefix)
    with pytest.raises(UserError, match=r"sample .* has no response"):
        source.train_sample(0)


@pytest.mark.parametrize(
    ("too_long", "prompt_length", "problem"),
    [
        ("error", 2, r"sft: sample \d+ has [67] tokens, .*sequence_length = 5, though .*sft\.samples\.json"),
        ("drop", 2, r"sft: sample \d+ has [67] tokens, .*sequence_length = 5, though .*sft\.samples\.json"),
        ("truncate", 5, r"sft: sample \d+ has no response in its first 5 tokens, .*sft\.samples\.json"),
    ],
)
def test_a_sample_longer_than_its_shard_says_is_refused_when_it_is_read(
    prefix, too_long, prompt_length, problem
):
    prompts = np.where(np.arange(40) % 5 + 3 > 5, prompt_length, 2)
    write_samples(prefix, prompts, longest=5)  # two of five have more
    source = open_sft(prefix, sequence_length=5, too_long=too_long)
    with pytest.raises(UserError, match=problem + ".*delete that file"):
        numbers(source)
    samples_path(prefix).unlink()
    if too_long != "error":
        mended = open_sft(prefix, sequence_length=5, too_long=too_long, held_out=0.0)
        assert len(numbers(mended)) == 24
