"""The model class for lm-evaluation-harness: `mdmscale` among its models.

    import mdmscale.evaluation.lm_eval.model  # registers it
    lm_eval.simple_evaluate(model="mdmscale", model_args="pretrained=PATH,rows=64", tasks=["arc_easy"])

The harness (0.4.13) loads models only of its own package by name, so its command line needs this module
imported: `python -m mdmscale.evaluation.lm_eval` is `lm_eval` with it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any, TypeVar, get_args

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from mdmscale.evaluation.likelihood.scoring import Scored, log_likelihoods
from mdmscale.evaluation.lm_eval.answers import Answers, key_of
from mdmscale.evaluation.lm_eval.decoding import Decoding, decoding, response_text, unread
from mdmscale.evaluation.lm_eval.encoding import Encoder
from mdmscale.evaluation.lm_eval.greedy import greedy_matches
from mdmscale.evaluation.lm_eval.options import Greedy, open_model, parse_batch_size, split_options
from mdmscale.generation.prompts import Request, encode_ids
from mdmscale.generation.sampler import generate
from mdmscale.models.opening import LoadedModel
from mdmscale.parallel.work_group import WorkGroup
from mdmscale.system.console import work_progress
from mdmscale.system.errors import UserError
from mdmscale.system.notices import say

Job = TypeVar("Job")


@register_model("mdmscale")
class MDMLM(TemplateLM):
    """A masked diffusion model, or its autoregressive twin, as the harness asks it.

    Log-likelihoods are those of `evaluate likelihood`, texts those of `generate`. Each rank of a launcher
    answers its own share of a task's questions.
    """

    def __init__(
        self,
        pretrained: str | LoadedModel,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        greedy: Greedy = "auto",
        group: WorkGroup | None = None,
        answers: Answers | None = None,
        **options: Any,
    ) -> None:
        """Open the model.

        Args:
            pretrained: a run, a model folder or a hub id; or a loaded model.
            batch_size: rows of a forward pass; auto means the default, 8.
            max_batch_size: not used, as device. The harness gives both to every model, and names cuda:0 even
                where there is none. Models are opened on the GPU if there is one.
            device: not used.
            dtype: fp32 or bf16; None keeps that of the saved weights.
            greedy: whether to find out if greedy decoding gives a continuation. auto: only where a question
                has one continuation, as lambada's; of several choices the likeliest is taken instead.
            group: the ranks that share the work.
            answers: where answers are kept, and taken from.
            options: fields of LikelihoodOptions and of GenerationOptions. seed belongs to both, and
                block_length to the likelihood only for method = block.

        Raises:
            UserError: where an option is wrong, or the model cannot be opened.
        """
        super().__init__()
        if greedy not in get_args(Greedy):
            raise UserError(f"greedy = {greedy!r}: choose one of {', '.join(get_args(Greedy))}")
        self.batch_size = parse_batch_size(batch_size)
        self.likelihood, self.decoding = split_options(options)
        self.group = group or WorkGroup()
        self.loaded = open_model(pretrained, dtype)
        self.tokenizer: Any = self.loaded.tokenizer
        self._device = self.loaded.device
        self._rank, self._world_size = self.group.rank, self.group.world_size
        self._greedy = greedy
        self._encoder = Encoder(self.loaded)
        self._answers = Answers() if answers is None else answers
        self._unread: set[str] = set()

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self.loaded.description.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """The harness keeps prepared requests under this name."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The tokens of a text; `_encode_pair` of the harness calls it."""
        return self._encoder.encode(string, opened=add_special_tokens is not False)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text, as the harness then gives it to the other methods."""
        return self._encoder.render(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """ln p(continuation | context) in nats, and whether greedy decoding gives the continuation."""
        items = [self._scored(*request.args[:2]) for request in requests]
        if self._greedy == "auto":
            choices = {(each.task_name, each.doc_id, each.idx) for each in requests}
            num_choices = Counter((task, doc) for task, doc, _ in choices)
            asked = [num_choices[each.task_name, each.doc_id] == 1 for each in requests]
        else:
            asked = [self._greedy == "always"] * len(items)
        return self._pairs(items, asked)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        items = [self._encoder.scored(context, continuation) for _, context, continuation in requests]
        return self._pairs(items, [self._greedy != "never"] * len(items))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """ln p(text) in nats for each text, the sum over its windows."""
        windows = [self._encoder.windows(request.args[0]) for request in requests]
        scores = iter(self._scores([window for each in windows for window in each]))
        return [sum(next(scores)[0] for _ in each) for each in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A response to each context."""
        repeats: Counter[int] = Counter()
        jobs: dict[int, tuple[Request, Decoding]] = {}
        keys = []
        for request in requests:
            text, asked = request.args[:2]
            how = self._decoding(asked)
            job = self._request(text, how.options.length)
            kept = asdict(how.options) | {"padding": "left"}
            key = key_of("generate", job.token_ids, kept, how.until)
            if how.options.draws:  # the same request again asks for another sample
                job = replace(job, sample=repeats[key])
                repeats[key] += 1
                key = key_of(key, job.sample)
            jobs[key] = (job, how)
            keys.append(key)
        self._answer("generating", jobs, self._texts, lambda job: (str(job[1]), -len(job[0].token_ids)))
        return [self._answers[key] for key in keys]

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks, joined; a number becomes a vector of numbers."""
        return torch.cat([torch.atleast_1d(each) for each in self.group.gather(tensor.cpu())])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all ranks, on rank `dst`."""
        gathered = self.group.gather(obj)
        return gathered if self.rank == dst else None

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.group.wait()

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes about the model beside its results."""
        return {
            "model_folder": str(self.loaded.description.folder),
            "model_num_parameters": self.loaded.model.num_parameters(),
            "model_dtype": str(self.loaded.model.dtype),
            **self.settings(),
        }

    def settings(self) -> dict[str, Any]:
        """What decides the answers besides the model and the requests."""
        return {
            "likelihood": asdict(self.likelihood),
            "decoding": self.decoding,
            "greedy": self._greedy,
        }

    def _scored(self, context: str, continuation: str) -> Scored:
        if context == "":
            return self._encoder.scored(
                self._encoder.opening, self._encoder.encode(continuation, opened=False)
            )
        return self._encoder.scored(*self._encode_pair(context, continuation))

    def _pairs(self, items: Sequence[Scored], asked: Sequence[bool]) -> list[tuple[float, bool]]:
        """The log-likelihoods, and where it is asked, whether greedy decoding gives the item's target."""
        scores = self._scores(items)
        unknown = [
            item
            for item, (_, is_greedy), is_asked in zip(items, scores, asked, strict=True)
            if is_asked and is_greedy is None
        ]
        decoded = iter(self._decoded_alike(unknown))
        return [
            (nats, is_asked and (next(decoded) if is_greedy is None else is_greedy))
            for (nats, is_greedy), is_asked in zip(scores, asked, strict=True)
        ]

    def _scores(self, items: Sequence[Scored]) -> list[tuple[float, bool | None]]:
        """(nats, whether each token is the likeliest; None by methods that do not see them one by one)."""

        def compute(jobs: Sequence[Scored]) -> Iterator[tuple[float, bool | None]]:
            for score in log_likelihoods(self.loaded, jobs, self.likelihood, self.batch_size):
                yield score.nats, score.is_greedy

        return self._of_items("scoring", items, compute, empty=(0.0, True))

    def _decoded_alike(self, items: Sequence[Scored]) -> list[bool]:
        def compute(jobs: Sequence[Scored]) -> Iterator[bool]:
            return greedy_matches(self.loaded, jobs, self.batch_size)

        return self._of_items("greedy decoding", items, compute, empty=True)

    def _of_items(
        self,
        title: str,
        items: Sequence[Scored],
        compute: Callable[[Sequence[Scored]], Iterator[Any]],
        *,
        empty: Any,
    ) -> list[Any]:
        """The answers of items. An item without target tokens needs no model: its answer is `empty`."""
        keys = [key_of(title, item.prompt_ids, item.target_ids) for item in items]
        jobs = {key: item for key, item in zip(keys, items, strict=True) if item.target_ids}
        self._answer(title, jobs, compute, lambda item: -len(item.prompt_ids) - len(item.target_ids))
        return [
            self._answers[key] if item.target_ids else empty for key, item in zip(keys, items, strict=True)
        ]

    def _answer(
        self,
        title: str,
        jobs: dict[int, Job],
        compute: Callable[[Sequence[Job]], Iterator[Any]],
        order: Callable[[Job], Any],
    ) -> None:
        """Compute what has no answer yet. `order` puts like texts together, and long ones first.

        So a lack of memory shows at once, and the time that is left is never estimated too low.
        """
        todo = [key for key in jobs if key not in self._answers]
        todo.sort(key=lambda key: (order(jobs[key]), key))
        with work_progress(title, len(todo), shown=self.rank == 0) as progress:
            for key, value in zip(todo, compute([jobs[key] for key in todo]), strict=True):
                self._answers.add({key: value})
                progress.advance(progress.task_ids[0])

    def _texts(self, jobs: Sequence[tuple[Request, Decoding]]) -> Iterator[str]:
        """The responses, in order: neighbours of the same decoding share their batches."""
        for how, group in groupby(jobs, key=lambda job: job[1]):
            requests = [request for request, _ in group]
            for generation in generate(self.loaded, requests, how.options, self.batch_size):
                yield response_text(self.loaded, generation, how.until)

    def _decoding(self, asked: dict[str, Any]) -> Decoding:
        new = set(unread(asked)) - self._unread
        if new:
            self._unread |= new
            say(f"generation_kwargs: {', '.join(sorted(new))} of a task mean nothing here, and are left out")
        return decoding(asked, self.decoding)

    def _request(self, context: str, length: int) -> Request:
        return encode_ids(self.loaded, self._encoder.prompt(context, length), length)
