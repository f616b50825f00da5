"""The `data` section: what is read, and how samples are cut from it."""

from typing import Literal, Self

from pydantic import model_validator

from mdmscale.config.section import Section, key


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
    num_workers: int | None = key(
        None,
        "processes of a rank that prepare batches in advance; 0: the training process prepares them; null: 2 "
        "on a GPU, 0 on the CPU",
        ge=0,
    )

    @model_validator(mode="after")
    def _fill_is_used(self) -> Self:
        if self.fill_multiple and self.kind != "sft":
            raise ValueError("fill_multiple is set but kind is tokens; only sft samples are filled")
        return self
