"""The sizes of the model that a config trains, found without its weights and mostly without torch."""

from pathlib import Path

from mdmscale.config.model import ModelSection
from mdmscale.models.shape import ModelShape, shape_of_config, shape_of_keys


def planned_shape(options: ModelSection) -> tuple[ModelShape, str]:
    """The model's shape, and a note on its source.

    If model.path is not a local folder, the shape comes from the architecture keys where all are given, and
    otherwise from the hub. The tokenizer is opened only if it decides the vocabulary size. torch is imported
    only if a folder or the tokenizer must be read.

    Raises:
        UserError: if the folder holds no model, or its config contradicts the keys.
    """
    keys = (options.hidden_size, options.num_hidden_layers, options.num_attention_heads)
    if options.vocab_size and all(keys) and (options.path is None or not Path(options.path).is_dir()):
        note = (
            ""
            if options.path is None
            else f" (from the architecture keys; {options.path} is not a local folder)"
        )
        return shape_of_keys(options, options.vocab_size), note
    from mdmscale.models.backbone import model_config, num_scratch_tokens, run_tokenizer  # imports torch

    num_tokens = num_scratch_tokens(run_tokenizer(options)) if options.path is None else 0
    return shape_of_config(model_config(options, num_tokens)), ""
