"""The names of LoRA's tensors and files: in a model under training, and in peft's folders.

In a model under training peft wraps each adapted layer. `q_proj.weight` and `q_proj.bias` become
`q_proj.base_layer.weight` and `q_proj.base_layer.bias`, with `q_proj.lora_A.default.weight` and
`q_proj.lora_B.default.weight` beside them. In folders the base model keeps its own names. The adapter's names
start with `base_model.model.` there and have no `.default` in them.
"""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"

_PEFT_PREFIX = "base_model.model."
_WRAPPED = ".base_layer."
_ADAPTED = f"{_WRAPPED}weight"
_TRAINED_PAIR = (".lora_A.default.weight", ".lora_B.default.weight")


def public_name(trained: str) -> str:
    """The name that a parameter under training has in the base model's folder, or an adapter's in peft's."""
    if is_trained_adapter(trained):
        return _PEFT_PREFIX + trained.replace(".default.", ".")
    return trained.replace(_WRAPPED, ".")


def is_trained_adapter(trained: str) -> bool:
    """Whether a parameter under training is an adapter's."""
    return trained.endswith(_TRAINED_PAIR)


def trained_pair(trained: str) -> tuple[str, str] | None:
    """The names of A and B beside an adapted weight under training; None if the weight is not adapted."""
    if not trained.endswith(_ADAPTED):
        return None
    side_a, side_b = _TRAINED_PAIR
    module = trained.removesuffix(_ADAPTED)
    return module + side_a, module + side_b


def is_public_adapter(public: str) -> bool:
    """Whether a tensor of a folder is an adapter's."""
    return public.startswith(_PEFT_PREFIX)


def public_pair(public: str) -> tuple[str, str]:
    """The names that A and B of a base model's weight have in peft's folder, if it is adapted."""
    module = _PEFT_PREFIX + public.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"
