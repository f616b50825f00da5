"""Texts of this project and of the published formulas, from the same models: confident, middling and flat."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from generation.reference_dream import dream
from generation.reference_llada import LogitsOf, fast_dllm, llada
from models.tiny_folder import CORPUS, write_model_folder

from mdmscale.generation import GenerationOptions, LoadedModel, encode_prompt, generate, load_model
from mdmscale.models.tokenizer import num_token_ids

LENGTH = 24
PROMPTS = tuple(line[:end] for end in (4, 7, 10, 14) for line in CORPUS)

SCALES = {"flat": 1.0, "middling": 5.0, "confident": 20.0}
"""The standard deviation of the models' logits."""

LLADA = {
    "LLaDA, a token a step": {"steps": 24, "block_length": 24},
    "LLaDA, 3 blocks": {"steps": 24, "block_length": 8},
    "LLaDA, 3 blocks, 15 steps": {"steps": 15, "block_length": 8},
    "LLaDA, 10 steps": {"steps": 10, "block_length": 24},
}
FAST_DLLM = {
    "Fast-dLLM, threshold 0.9": {"block_length": 8, "threshold": 0.9},
    "Fast-dLLM, factor 1": {"block_length": 12, "factor": 1.0},
}
DREAM = {
    "Dream, entropy": {"alg": "entropy", "steps": 24},
    "Dream, entropy, 12 steps, top-p 0.95": {"alg": "entropy", "steps": 12, "top_p": 0.95},
    "Dream, maskgit_plus, 20 steps": {"alg": "maskgit_plus", "steps": 20},
    "Dream, maskgit_plus, 12 steps, top-k 5": {"alg": "maskgit_plus", "steps": 12, "top_k": 5},
    "Dream, topk_margin, 12 steps": {"alg": "topk_margin", "steps": 12},
}
WAYS = [*LLADA, *FAST_DLLM, *DREAM]
REMASKING = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}


SATURATED = 4e-15
"""Confidences that differ by less are equal in float64, and nothing says which comes first: a true tie."""


@dataclass(frozen=True)
class Agreement:
    """How many tokens of the responses equal the reference's.

    A text that differs is left out if the reference has had a true tie in it.
    """

    num_equal: int
    num_tokens: int
    num_tied: int  # texts that are left out

    @property
    def share(self) -> float:
        return self.num_equal / self.num_tokens


def make_models(folder: Path) -> dict[str, LoadedModel]:
    """Tiny random models in fp32, alike but for the scale of their heads.

    Their weights are larger than at the start of a training, so that a mask's logits depend on its context.
    """
    loaded = load_model(write_model_folder(folder), "fp32")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if weight.ndim == 2:
                scale = 0.25 if "lm_head" not in name else weight.shape[1] ** -0.5
                weight.normal_(0.0, scale, generator=random)
    models = {}
    for kind, scale in SCALES.items():
        model = copy.deepcopy(loaded.model)
        with torch.no_grad():
            model.lm_head.weight *= scale
        models[kind] = replace(loaded, model=model)
    return models


def logits_of(loaded: LoadedModel) -> LogitsOf:
    """The model's logits without the mask and the rows that pad its vocabulary."""

    @torch.inference_mode()
    def compute(text: list[int]) -> torch.Tensor:
        logits = loaded.model(input_ids=torch.tensor([text])).logits[0].double()
        logits[:, num_token_ids(loaded.tokenizer) :] = -torch.inf
        logits[:, loaded.description.mask_token_id] = -torch.inf
        return logits

    return compute


def compare(
    loaded: LoadedModel,
    way: str,
    prompts: Sequence[str] = PROMPTS,
    decimals: int | None = None,
) -> Agreement:
    """Decode the prompts in this way, as one batch, and by the reference, each alone.

    With `decimals` the texts compared with the reference's are those of the same loop with rounded scores.
    """
    mask = loaded.description.mask_token_id
    if way in DREAM:
        loaded = replace(loaded, description=replace(loaded.description, logit_shift=True))
    requests = [encode_prompt(loaded, prompt, LENGTH) for prompt in prompts]
    compute = logits_of(loaded)
    expected, rounded = [], []
    for request in requests:
        prompt = request.token_ids[: request.prompt_length]
        if way in FAST_DLLM:
            expected.append((fast_dllm(compute, prompt, LENGTH, mask, **FAST_DLLM[way])[0], 1.0))
        elif way in DREAM:
            expected.append(dream(compute, prompt, LENGTH, mask, **DREAM[way]))
        else:
            expected.append(llada(compute, prompt, LENGTH, mask, **LLADA[way]))
            if decimals is not None:
                rounded.append(llada(compute, prompt, LENGTH, mask, **LLADA[way], decimals=decimals)[0])
    texts = rounded or [each.token_ids for each in generate(loaded, requests, options_of(way), len(requests))]
    numbers = [
        sum(one == other for one, other in zip(text[-LENGTH:], answer[-LENGTH:], strict=True))
        for text, (answer, _) in zip(texts, expected, strict=True)
    ]
    counted = [
        number
        for number, (_, gap) in zip(numbers, expected, strict=True)
        if number == LENGTH or gap > SATURATED
    ]
    return Agreement(sum(counted), LENGTH * len(counted), len(numbers) - len(counted))


def options_of(way: str) -> GenerationOptions:
    """The same way in this project's options. EOS is like any token, as in the references."""
    if way in LLADA:
        return GenerationOptions(length=LENGTH, eos="keep", **LLADA[way])
    if way in FAST_DLLM:
        return GenerationOptions(length=LENGTH, eos="keep", **FAST_DLLM[way])
    values = dict(DREAM[way])
    remasking = REMASKING[values.pop("alg")]
    return GenerationOptions(
        length=LENGTH, schedule="dream", scores="sampling", remasking=remasking, eos="keep", **values
    )
