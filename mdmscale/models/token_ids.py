"""The ids of EOS, BOS and padding in a model's config: the tokenizer's, and those that its folder states.

transformers fills in an id that config.json leaves out with a default of the config's class: Llama and
Mistral get EOS 2 and BOS 1. With most tokenizers these are ordinary tokens, and texts would end at one. So
ids are read from the JSON files themselves, and an id that is an ordinary token of the tokenizer is dropped:
folders that transformers has saved state the class's defaults, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.notices import say

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
# transformers marks a generation_config.json with it that only repeats the config, with the class's defaults.
_REPEATS_CONFIG = "_from_model_config"


@dataclass(frozen=True)
class TokenIds:
    """The tokens that end a text, in order; the token that begins one; the token that fills a row."""

    eos: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None

    def write(self, *configs: Any) -> None:
        """Set the ids of configs of transformers: a model's, and its generation's."""
        for config in configs:
            config.eos_token_id = None if not self.eos else self.eos[0] if len(self.eos) == 1 else [*self.eos]
            config.bos_token_id = self.bos
            config.pad_token_id = self.pad


def stated_ids(folder: Path) -> TokenIds:
    """The ids that config.json and generation_config.json of a folder state, those of config.json first.

    Raises:
        UserError: for a value that is no id.
    """
    stated = [_ids_of(read_object(folder / CONFIG_FILE), folder / CONFIG_FILE)]
    if (path := folder / GENERATION_FILE).is_file():
        values = read_object(path)
        if not values.get(_REPEATS_CONFIG):
            stated.append(_ids_of(values, path))
    return TokenIds(
        eos=tuple(dict.fromkeys(token_id for each in stated for token_id in each.eos)),
        bos=next((each.bos for each in stated if each.bos is not None), None),
        pad=next((each.pad for each in stated if each.pad is not None), None),
    )


def set_special_tokens(model: Any, path: str | None, tokenizer: Any, mask_token_id: int) -> None:
    """Set EOS, BOS and padding in the configs of a model for training, without effect on what is trained.

    Built with a padding token, torch's embedding gives that row no gradient. Where the padding token is also
    EOS, as it is in many models, EOS would not learn what it means as an input.

    The rest of a folder's generation_config.json (temperature and the like) is for autoregressive sampling
    and is dropped. transformers loads values in it that it then refuses to save.

    Args:
        path: the folder or hub id that the model was loaded from; None for a model from scratch.
    """
    from transformers import GenerationConfig

    stated = TokenIds() if path is None else stated_ids(_described_in(path))
    ids, notices = settle_ids(stated, tokenizer, model.config.vocab_size, mask_token_id)
    model.generation_config = GenerationConfig()
    ids.write(model.config, model.generation_config)
    for notice in notices:
        say(f"{path}: {notice}")
    model.get_input_embeddings().padding_idx = None


def settle_ids(
    stated: TokenIds, tokenizer: Any | None, num_rows: int, mask_token_id: int
) -> tuple[TokenIds, list[str]]:
    """The ids of a model with `num_rows` embeddings, and what a user should know about its EOS.

    The tokenizer's own ids hold. What a folder states besides holds if it is no ordinary token. Without a
    tokenizer nothing can contradict what is stated.
    """
    sensible = [token_id for token_id in stated.eos if _can_be_special(token_id, tokenizer, num_rows)]
    eos = [token_id for token_id in sensible if token_id != mask_token_id]
    of_tokenizer = None if tokenizer is None else tokenizer.eos_token_id
    if of_tokenizer is not None and of_tokenizer not in eos:
        eos.append(of_tokenizer)
    bos, pad = (
        _own_or_stated(tokenizer, kind, getattr(stated, kind), num_rows, mask_token_id)
        for kind in ("bos", "pad")
    )
    return TokenIds(tuple(eos), bos, pad), _notices(stated.eos, eos, tokenizer, mask_token_id)


def _own_or_stated(
    tokenizer: Any | None, kind: str, stated: int | None, num_rows: int, mask_token_id: int
) -> int | None:
    own = None if tokenizer is None else getattr(tokenizer, f"{kind}_token_id")
    if own is not None:
        return own
    is_kept = stated != mask_token_id and _can_be_special(stated, tokenizer, num_rows)
    return stated if is_kept else None


def _can_be_special(token_id: int | None, tokenizer: Any | None, num_rows: int) -> bool:
    """Whether the model has a row for the id and it is no ordinary token of the tokenizer."""
    if token_id is None or not 0 <= token_id < num_rows:
        return False
    if tokenizer is None or token_id in tokenizer.added_tokens_decoder:
        return True
    return token_id in tokenizer.all_special_ids or token_id not in set(tokenizer.get_vocab().values())


def _notices(stated: tuple[int, ...], eos: list[int], tokenizer: Any | None, mask_token_id: int) -> list[str]:
    texts = {} if tokenizer is None else {token_id: text for text, token_id in tokenizer.get_vocab().items()}

    def named(token_id: int) -> str:
        return f"{token_id} {texts[token_id]!r}" if token_id in texts else f"{token_id}"

    ends = " and ".join(map(named, eos)) or "none"
    notices = []
    for token_id in stated:
        if token_id not in eos:
            what = "the mask token" if token_id == mask_token_id else "no special token"
            notices.append(f"eos_token_id = {named(token_id)} is {what} and ends no text; EOS is {ends}")
    own = None if tokenizer is None else tokenizer.eos_token_id
    if own is not None and own not in stated and len(eos) > 1:
        notices.append(f"the tokenizer's EOS {named(own)} is not in the model's eos_token_id; EOS is {ends}")
    return notices


def _ids_of(values: dict[str, Any], path: Path) -> TokenIds:
    eos = values.get("eos_token_id")
    listed = [] if eos is None else eos if isinstance(eos, list) else [eos]
    if not all(type(token_id) is int for token_id in listed):  # an exact match, as a bool is an int
        raise UserError(f"{path}: eos_token_id = {eos!r} is neither a token id nor a list of token ids")
    single = {kind: values.get(f"{kind}_token_id") for kind in ("bos", "pad")}
    for kind, value in single.items():
        if value is not None and type(value) is not int:
            raise UserError(f"{path}: {kind}_token_id = {value!r} is no token id")
    return TokenIds(tuple(listed), **single)


def _described_in(path: str) -> Path:
    """The local folder with the config of a folder or hub id. Once loaded, the latter is in the cache."""
    if Path(path).is_dir():
        return Path(path)
    from transformers.utils import cached_file

    found = cached_file(path, CONFIG_FILE, local_files_only=True)
    assert found is not None
    return Path(found).parent
