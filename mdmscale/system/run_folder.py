"""The layout of a run folder."""

EXPORT_FOLDER = "hf"  # the trained model, adapters merged
ADAPTER_FOLDER = "adapter"  # the adapters of model.lora by themselves

# In a checkpoint:
ENGINE_FOLDER = "engine"  # DeepSpeed's files
MODEL_FOLDER = "model"  # config.json and tokenizer
STATE_FILE = "state.json"
