"""From requests to texts: the calls with which a program samples."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import Request, decode_response
from mdmscale.models.opening import LoadedModel
from mdmscale.models.tokenizer import num_token_ids

if TYPE_CHECKING:
    from mdmscale.generation.denoise import Frame


Item = TypeVar("Item")


@dataclass(frozen=True)
class Generation:
    """A finished text."""

    request: Request
    token_ids: list[int]  # of the whole text, with its prompt
    text: str  # the response up to its first EOS; of an infilling the whole text
    num_forwards: int


def generate(
    loaded: LoadedModel,
    requests: Sequence[Request],
    options: GenerationOptions | None = None,
    batch_size: int = 8,
) -> Iterator[Generation]:
    """Sample a text for each request, in order, `batch_size` at a time.

    In fp32 a text depends neither on the batch size nor on the other texts of its batch.
    """
    for members in batches(requests, batch_size):
        last = deque(stream(loaded, members, options), maxlen=1)
        yield from finish(loaded, members, last[0] if last else None)


def stream(
    loaded: LoadedModel, requests: Sequence[Request], options: GenerationOptions | None = None
) -> Iterator["Frame"]:
    """Denoise the requests as one batch. Yields the padded batch after every step.

    An autoregressive model continues them token by token instead. Options of denoising, which a task's
    settings may have, mean nothing to it and are ignored; `left_to_right.check_options` refuses them.
    """
    options = options or GenerationOptions()
    # Embedding rows beyond the tokenizer are padding; they stand for no text.
    without_text = range(num_token_ids(loaded.tokenizer), loaded.description.vocab_size)
    sample = _continued if loaded.description.objective == "ar" else _denoised
    yield from sample(loaded, requests, options, without_text)


def _denoised(
    loaded: LoadedModel, requests: Sequence[Request], options: GenerationOptions, banned_ids: Sequence[int]
) -> Iterator["Frame"]:
    from mdmscale.generation.batch import pad_requests
    from mdmscale.generation.denoise import denoise
    from mdmscale.generation.predictor import Predictor

    description = loaded.description
    batch = pad_requests(requests, options, description.wanted_id, loaded.device)
    predictor = Predictor(
        loaded.model,
        batch,
        logit_shift=description.logit_shift,
        guidance=options.guidance,
        cache=options.cache,
    )
    yield from denoise(predictor, batch, options, banned_ids=banned_ids, eos_ids=sorted(loaded.eos_ids))


def _continued(
    loaded: LoadedModel, requests: Sequence[Request], options: GenerationOptions, banned_ids: Sequence[int]
) -> Iterator["Frame"]:
    from mdmscale.generation.autoregressive import decode

    description = loaded.description
    mask = [] if description.mask_token_id is None else [description.mask_token_id]
    yield from decode(
        loaded.model,
        requests,
        options,
        wanted_id=description.wanted_id,
        banned_ids=[*mask, *banned_ids],
        eos_ids=sorted(loaded.eos_ids),
    )


def finish(
    loaded: LoadedModel, requests: Sequence[Request], frame: "Frame | None", *, raw: bool = False
) -> Iterator[Generation]:
    """The texts of a batch after its last frame; `frame` is None where nothing was masked."""
    for row, request in enumerate(requests):
        token_ids, num_forwards = request.token_ids, 0
        if frame is not None:
            token_ids, num_forwards = frame.row(row), frame.num_forwards[row]
        text = decode_response(loaded, request, token_ids, raw=raw)
        yield Generation(request, token_ids, text, num_forwards)


def batches(items: Sequence[Item], batch_size: int) -> Iterator[Sequence[Item]]:
    """`items` in groups of `batch_size`; the last group may be shorter."""
    for first in range(0, len(items), batch_size):
        yield items[first : first + batch_size]
