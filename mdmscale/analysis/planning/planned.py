"""Which model a config asks for, without its weights, and where torch can be spared without it."""

from pathlib import Path

from mdmscale.config.model import ModelSection
from mdmscale.models.shape import ModelShape, shape_of_config, shape_of_keys


def planned_shape(options: ModelSection) -> tuple[ModelShape, str]:
    """The model's shape, and a note on where it is from.

    A model.path that is no folder here is planned from the architecture keys where they are given, else
    looked up on the hub. A tokenizer is opened only where it decides the vocabulary.

    Raises:
        UserError: for a folder that is no model's, or that differs from the keys.
    """
    keys = (options.hidden_size, options.num_hidden_layers, options.num_attention_heads)
    if options.vocab_size and all(keys) and (options.path is None or not Path(options.path).is_dir()):
        note = "" if options.path is None else f" (from the architecture keys, {options.path} not being here)"
        return shape_of_keys(options, options.vocab_size), note
    from mdmscale.models.backbone import model_config, num_scratch_tokens, run_tokenizer  # imports torch

    num_tokens = num_scratch_tokens(run_tokenizer(options)) if options.path is None else 0
    return shape_of_config(model_config(options, num_tokens)), ""
