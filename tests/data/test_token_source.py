import numpy as np
import pytest

from mdmscale.config.data import DataSection
from mdmscale.data.held_out import held_out_indices
from mdmscale.data.indexed import IndexedWriter
from mdmscale.data.opening import open_source
from mdmscale.data.sft_shard import write_samples
from mdmscale.data.source import SampleSource
from mdmscale.data.token_source import cut_length
from mdmscale.system.errors import UserError

LENGTH = 8


@pytest.fixture
def documents() -> list[list[int]]:
    """50 documents of 0 to 12 tokens. Every token of the corpus has its own id."""
    lengths = np.random.default_rng(0).integers(0, 13, 50)
    return [piece.tolist() for piece in np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])]


@pytest.fixture
def folder(documents, write_shard) -> str:
    write_shard("a", documents[:20])
    write_shard("b", documents[20:21])
    return str(write_shard("c", documents[21:]).parent)


def open_tokens(folder: str, seed: int = 0, **options: object) -> SampleSource:
    values = {
        "kind": "tokens",
        "path": folder,
        "sequence_length": LENGTH,
        "held_out": 0.1,
        "random_length_fraction": 0.0,
    }
    return open_source(DataSection(**{**values, **options}), seed, vocab_size=1000, eos_token_id=0)


def split(documents: list[list[int]], share: float) -> tuple[list[int], list[int]]:
    """Training and held-out tokens, selected with plain lists."""
    places = set(held_out_indices(len(documents), share, "documents").tolist())
    train = [token for place, text in enumerate(documents) if place not in places for token in text]
    return train, [token for place in sorted(places) for token in documents[place]]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5])
def test_an_epoch_is_the_windows_of_the_training_documents(documents, folder, share):
    train, held_out = split(documents, share)
    source = open_tokens(folder, held_out=share)
    windows = {tuple(train[start : start + LENGTH]) for start in range(0, len(train) - LENGTH + 1, LENGTH)}
    assert source.num_train == len(windows)
    for epoch in range(2):
        samples = [source.train_sample(epoch * source.num_train + index) for index in range(source.num_train)]
        assert {tuple(sample.token_ids.tolist()) for sample in samples} == windows
        assert all(sample.eligible.all() and len(sample.eligible) == LENGTH for sample in samples)
    seen = [
        token for index in range(source.num_held_out) for token in source.held_out_sample(index).token_ids
    ]
    assert seen == held_out[: len(held_out) // LENGTH * LENGTH or LENGTH]


def test_too_few_held_out_tokens_make_one_short_sequence(write_shard):
    prefix = write_shard("d", [[1, 2, 3]] * 10)
    source = open_tokens(str(prefix), held_out=0.1)
    assert source.num_held_out == 1
    assert source.held_out_sample(0).token_ids.tolist() == [1, 2, 3]


def test_the_seed_changes_the_order_but_not_the_split(folder):
    first, second = open_tokens(folder, seed=0), open_tokens(folder, seed=1)
    assert [first.train_sample(i).token_ids[0] for i in range(9)] != [
        second.train_sample(i).token_ids[0] for i in range(9)
    ]
    assert first.held_out_sample(0).token_ids.tolist() == second.held_out_sample(0).token_ids.tolist()
    assert first.fingerprint == second.fingerprint


def test_some_samples_are_cut_to_a_random_length(folder):
    whole, cut = open_tokens(folder), open_tokens(folder, random_length_fraction=0.5)
    for index in range(50):
        sample = cut.train_sample(index)
        assert (
            sample.token_ids.tolist() == whole.train_sample(index).token_ids[: len(sample.token_ids)].tolist()
        )
    assert len({len(cut.train_sample(index).token_ids) for index in range(50)}) > 3
    assert all(len(cut.held_out_sample(index).token_ids) == LENGTH for index in range(cut.num_held_out))


def test_the_share_of_cut_samples_and_their_lengths():
    """Frequencies agree to 5 standard deviations of 4000 draws."""
    lengths = np.asarray([cut_length(3, index, 4, 0.25) for index in range(4000)])
    shares = np.bincount(lengths, minlength=5)[1:] / 4000
    expected = np.asarray([1, 1, 1, 13]) / 16
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000)).all()
    assert cut_length(3, 0, 4, 0.0) == 4


def test_too_few_tokens_for_a_sequence(write_shard):
    prefix = write_shard("d", [[1, 2, 3]])
    problem = (
        r"data\.sequence_length = 8: longer than all 3 training tokens of data\.path = .*; shorten it, or"
    )
    with pytest.raises(UserError, match=problem):
        open_tokens(str(prefix), held_out=0.0)


def test_held_out_documents_without_tokens_are_no_samples(tmp_path):
    """Other programs write empty documents. A run that evaluates refuses them (training/evaluation.py)."""
    (place,) = held_out_indices(4, 0.1, "documents")
    with IndexedWriter(tmp_path / "e", np.dtype("<u2")) as writer:
        for number in range(4):
            writer.add_document(np.arange(0 if number == place else 20))
    assert open_tokens(str(tmp_path / "e")).num_held_out == 0


@pytest.mark.parametrize("kind", ["tokens", "sft"])
def test_a_mask_token_in_the_data_is_refused(write_shard, kind):
    prefix = write_shard("d", [[1] * 20, [1, 2, 999, 4]])
    write_samples(prefix, np.asarray([2, 1]), 20)
    data = DataSection(kind=kind, path=str(prefix), sequence_length=20, held_out=0.0)
    open_source(data, 0, 1000, 0, mask_token_id=998)
    with pytest.raises(UserError, match=r"d\.bin: holds the model's mask token \(id 999\)"):
        open_source(data, 0, 1000, 0, mask_token_id=999)


def test_an_id_beyond_the_vocabulary_is_refused_on_opening(write_shard):
    prefix = write_shard("d", [[1] * 20, [1] * 20 + [1000]])
    with pytest.raises(UserError, match=r"d\.bin: token id 1000 is outside the model's vocabulary of 1000"):
        open_tokens(str(prefix))


def test_options_that_change_samples_change_the_fingerprint(folder):
    prints = {
        open_tokens(folder, **{name: value}).fingerprint
        for name, value in [
            ("held_out", 0.1),
            ("held_out", 0.2),
            ("sequence_length", 4),
            ("random_length_fraction", 0.3),
        ]
    }
    assert len(prints) == 4
