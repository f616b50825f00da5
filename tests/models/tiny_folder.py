"""A tiny random masked diffusion model, saved as an ordinary Hugging Face folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CORPUS = ["def add(a, b):", "    return a + b", "for step in range(steps):", "    print(step)"]
MASK_TOKEN = "<|mask|>"
EOS_TOKEN = "</s>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few lines, with EOS and mask tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=[EOS_TOKEN, MASK_TOKEN],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS_TOKEN, mask_token=MASK_TOKEN)


def write_model_folder(folder: Path) -> Path:
    """Save the tiny model and its tokenizer to `folder`."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=320,  # more rows than tokens, as training pads them
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
    )
    config.is_causal = False
    config.mdm = {
        "mask_token_id": tokenizer.mask_token_id,
        "logit_shift": False,
        "eps": 1e-3,
        "source": "scratch",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
