"""The tokens that ISAD and SyRM look for, and the positions that SyRM makes eligible."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from mdmscale.config.diffusion import DiffusionSection
from mdmscale.data.noise_tokens import make_noise
from mdmscale.diffusion.levels import Levels
from mdmscale.diffusion.noise import noise_sample
from mdmscale.diffusion.sample import Sample
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system import bounded
from mdmscale.system.errors import UserError

VOCAB = 512


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(corpus / "tokenizer"))


def test_delimiters_are_ids_and_the_tokens_of_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    options = DiffusionSection(isad={"tokens": [7, "return self"]})
    noise = make_noise(options, tokenizer, VOCAB)
    assert noise.delimiters is not None and noise.structural is None
    expected = {7, *tokenizer.encode("return self", add_special_tokens=False)}
    assert set(np.flatnonzero(noise.delimiters).tolist()) == expected
    assert len(expected) >= 3


def test_structural_tokens_are_found_by_their_text(tokenizer: PreTrainedTokenizerBase) -> None:
    noise = make_noise(DiffusionSection(syrm={"tokens": [7], "pattern": r"[()]"}), tokenizer, VOCAB)
    assert noise.structural is not None
    for token_id in range(len(tokenizer)):
        text = tokenizer.decode([token_id])
        is_special = token_id in tokenizer.all_special_ids
        expected = token_id == 7 or (not is_special and ("(" in text or ")" in text))
        assert noise.structural[token_id] == expected, text
    assert 1 < noise.structural.sum() < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isad": {"tokens": [600]}}, r"diffusion\.isad\.tokens: id 600 is not among the model's 512 tokens"),
        ({"isad": {"tokens": [""]}}, "makes no token from ''"),
        ({"syrm": {"tokens": [-1]}}, r"diffusion\.syrm\.tokens: id -1"),
        ({"syrm": {"pattern": "no token reads like this"}}, "matches no token of the tokenizer"),
    ],
)
def test_tokens_that_are_not_there_are_refused(
    tokenizer: PreTrainedTokenizerBase, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_noise(DiffusionSection(**options), tokenizer, VOCAB)


def test_a_pattern_that_searches_for_ever_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded._child.cache_clear()
    monkeypatch.setattr(bounded, "SECONDS", 0.5)
    endless = "(.?){99}#~#"
    with pytest.raises(UserError, match=r"syrm\.pattern = '.*': takes more than 0\.5 s; simplify it"):
        make_noise(DiffusionSection(syrm={"pattern": endless}), tokenizer, VOCAB)
    bounded._child.cache_clear()


def test_syrm_masks_structural_prompt_tokens_and_counts_them(tokenizer: PreTrainedTokenizerBase) -> None:
    noise = make_noise(DiffusionSection(syrm={"tokens": [7], "extra": 0.5}, weights="rate"), tokenizer, VOCAB)
    token_ids = np.array([7, *range(100, 140), 9, 9])
    sample = Sample(token_ids, np.arange(43) >= 41)
    widened = [noise.widened(sample, seed=3, index=index) for index in (0, 0, 1)]
    assert np.array_equal(widened[0].eligible, widened[1].eligible), "a function of seed and index"
    assert not np.array_equal(widened[0].eligible, widened[2].eligible)
    assert widened[0].eligible[[0, 41, 42]].all()
    assert 8 < widened[0].eligible[1:41].sum() < 32
    noised = noise_sample(widened[0], Levels.at(1.0), np.full(43, 0.5), noise)
    assert noised.num_eligible == widened[0].eligible.sum() == noised.masks.sum()
    assert noised.weights.sum() == pytest.approx(1.0)
