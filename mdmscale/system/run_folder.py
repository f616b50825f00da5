"""The layout of a run folder."""

EXPORT_FOLDER = "hf"  # the trained model, adapters merged
ADAPTER_FOLDER = "adapter"  # the adapters of model.lora by themselves

ENGINE_FOLDER = "engine"  # in a checkpoint: DeepSpeed's files
MODEL_FOLDER = "model"  # in a checkpoint: the model's config and tokenizer
