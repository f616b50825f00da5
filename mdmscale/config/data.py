"""The `data` section: what is read, and how samples are cut from it."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from mdmscale.config.section import Section, key

TrainOn = Literal["last", "all", "completion"]
SpecialTokens = Literal["refuse", "read", "text"]


class DataSection(Section):
    kind: Literal["tokens", "sft"] = key(
        ..., "tokens: packed pretraining shards; sft: prompts with responses"
    )
    path: str | list[str] = key(
        ...,
        "tokens: prefixes, folders or globs of .bin/.idx shards; sft: those, or .jsonl, .json, .csv, .tsv, "
        ".parquet or .arrow files",
    )
    sequence_length: int = key(
        ..., "most tokens in a sample; `too_long` says what happens to longer SFT samples", ge=2
    )
    held_out: float = key(
        0.01, "share of documents (sft: of samples), at most a million, held out for evaluation", ge=0, lt=1
    )
    random_length_fraction: float = key(
        0.01,
        "tokens: share of sequences cut to a random length, so that training sees short inputs",
        ge=0,
        le=1,
    )
    fill_multiple: int = key(
        0,
        "sft: extend each response to a multiple of this length with EOS tokens that are trained; 0: one EOS",
        ge=0,
    )
    too_long: Literal["error", "truncate", "drop"] = key(
        "error", "sft: what to do with samples longer than sequence_length"
    )
    train_on: TrainOn = key(
        "last",
        "sft: what of a conversation is trained. last: the assistant's last turn; all: all of its turns (an "
        "earlier one then sees those after it); completion: all that follows the prompt or first user turn",
    )
    special_tokens: SpecialTokens = key(
        "refuse",
        "sft: special tokens written out in a prompt, response or text. refuse: name the line; read: they "
        "are the tokens (text that was rendered beforehand); text: ordinary text, as in messages always",
    )
    num_workers: int | None = key(
        None,
        "processes of a rank that prepare batches in advance; 0: the training process prepares them; null: 2 "
        "on a GPU, 0 on the CPU",
        ge=0,
    )

    skip: list[list[Annotated[int, Field(ge=0)]]] = key(
        [],
        "samples left out of training: [from, to] means numbers from..to - 1 in the order of training, as "
        "consumed_samples in metrics.jsonl counts them; later samples move up",
    )

    @field_validator("skip")
    @classmethod
    def _are_ranges(cls, skip: list[list[int]]) -> list[list[int]]:
        for each in skip:
            if len(each) != 2 or each[0] >= each[1]:
                raise ValueError(f"{each} is no range; give [from, to] with from < to")
        return skip

    @model_validator(mode="after")
    def _sft_options_are_used(self) -> Self:
        unset = {"fill_multiple": 0, "train_on": "last", "special_tokens": "refuse"}
        used = [name for name, value in unset.items() if getattr(self, name) != value]
        if used and self.kind != "sft":
            raise ValueError(
                f"{used[0]} is set but kind is tokens; only sft samples have prompts and answers"
            )
        return self
