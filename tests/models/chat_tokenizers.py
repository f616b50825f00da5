"""Small tokenizers of the kinds that real models have, and chat templates that follow their published rules.

A template is written once. `TAGS` puts {% generation %} tags around its answers, `NO_TAGS` leaves them out.
"""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "user says hello to the assistant, and the assistant says hello back: 3+4=7, 12 + 7 = 19.",
    "What is the capital of France? The capital of France is Paris.\n\nWhat is 2*3? It is 6.\n",
    'system tools name arguments {"city": "Paris"} weather sunny [INST] hi [/INST] yo\n=7 =7 =7',
]

TAGS = ("{% generation %}", "{% endgeneration %}")
NO_TAGS = ("", "")

# ChatML with a system turn of its own, as SmolLM2 has it.
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\\nBe helpful.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}OPEN{{ m.content + '<|im_end|>' }}CLOSE{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Llama 3: BOS, a header for each turn, trimmed content, <|eot_id|>.
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{% if m.role == 'assistant' %}OPEN{{ m.content | trim + '<|eot_id|>' }}CLOSE"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

# Qwen 2.5: tools in the system turn, calls as JSON in <tool_call>, their results in a user turn.
QWEN = (
    "{% set system = messages[0].content if messages[0].role == 'system' else 'You are Qwen.' %}"
    "{{ '<|im_start|>system\\n' + system }}"
    "{% if tools %}{{ '\\n\\n# Tools\\n<tools>' }}{% for t in tools %}{{ '\\n' + t | tojson }}{% endfor %}"
    "{{ '\\n</tools>' }}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}OPEN{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{% if m.content or not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{{ '\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}CLOSE{{ '\\n' }}"
    "{% elif m.role == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{% elif m.role != 'system' %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def template(text: str, tags: tuple[str, str] = NO_TAGS) -> str:
    """A template with or without tags."""
    return text.replace("OPEN", tags[0]).replace("CLOSE", tags[1])


def byte_level(*special: str, eos: str, bos: str | None = None, added: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE, as Llama 3's and Qwen's, with the mask token <|mask|>."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=[*dict.fromkeys([*special, eos]), "<|mask|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, mask_token="<|mask|>"
    )


def sentencepiece(kind: str, special: tuple[str, ...] = ()) -> Any:
    """A BPE whose tokens carry the space before them, as Llama 2's. It opens texts with BOS.

    Args:
        kind: where a space is put in front: `first` at a text's start, `always` also behind special tokens,
            `normalizer` as `always`, by the older means that Llama 2's own file uses.
    """
    named = ["<unk>", "<s>", "</s>", *special]
    trainer = BpeTrainer(vocab_size=200, special_tokens=named, show_progress=False)
    learner = Tokenizer(BPE(unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    learner.train_from_iterator(CORPUS, trainer)
    model = json.loads(learner.to_str())["model"]
    size = len(model["vocab"])
    vocab = model["vocab"] | {f"<0x{byte:02X}>": size + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    if kind == "normalizer":
        space = normalizers.Replace(" ", "▁")
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(named)
    tokenizer.post_processor = TemplateProcessing("<s> $A", None, [("<s>", vocab["<s>"])])
    opened = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if "<|mask|>" in special:
        opened.add_special_tokens({"mask_token": "<|mask|>"})
    return opened


def smollm2(tags: tuple[str, str] = NO_TAGS) -> Any:
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", eos="<|im_end|>")
    tokenizer.chat_template = template(CHATML, tags)
    return tokenizer


def llama3(tags: tuple[str, str] = NO_TAGS) -> Any:
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
    tokenizer = byte_level(*special, eos="<|eot_id|>", bos="<|begin_of_text|>")
    tokenizer.chat_template = template(LLAMA3, tags)
    return tokenizer


def qwen(tags: tuple[str, str] = NO_TAGS) -> Any:
    tokenizer = byte_level(
        "<|endoftext|>", "<|im_start|>", eos="<|im_end|>", added=("<tool_call>", "</tool_call>")
    )
    tokenizer.chat_template = template(QWEN, tags)
    return tokenizer
