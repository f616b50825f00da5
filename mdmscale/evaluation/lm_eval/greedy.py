"""Whether greedy decoding from a prompt gives a certain target: what a task such as lambada asks.

As LLaDA's evaluation does it: of the masked target, the token of the highest confidence is committed in each
pass. Here a batch ends as soon as each of its texts is complete or has a wrong token, mostly after one pass.
"""

from collections.abc import Iterator, Sequence

from mdmscale.evaluation.likelihood.scoring import Scored
from mdmscale.generation.options import GenerationOptions
from mdmscale.generation.prompts import encode_ids
from mdmscale.generation.sampler import batches, stream
from mdmscale.models.opening import LoadedModel


def greedy_matches(loaded: LoadedModel, items: Sequence[Scored], batch_size: int) -> Iterator[bool]:
    """For each item, whether greedy decoding gives exactly its target."""
    for members in batches(items, batch_size):
        yield from _matches(loaded, members)


def _matches(loaded: LoadedModel, items: Sequence[Scored]) -> list[bool]:
    requests = [encode_ids(loaded, item.prompt_ids, len(item.target_ids)) for item in items]
    longest = max(len(item.target_ids) for item in items)
    alike = [True] * len(items)
    for frame in stream(loaded, requests, GenerationOptions(length=max(1, longest))):
        for row, item in enumerate(items):
            size = len(item.prompt_ids)
            decoded, wanted = frame.row(row)[size:], requests[row].token_ids[size:]
            places = zip(decoded, item.target_ids, wanted, strict=True)
            alike[row] = all(token in (target, open_) for token, target, open_ in places)
        if not any(alike):
            break
    return alike
