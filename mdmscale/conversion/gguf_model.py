"""Config and weights of a GGUF file, through transformers' own reader.

That reader leaves out tensors and keys that it does not know, without a word. So everything in the file is
compared with what the model has: what would be lost is refused by name.
"""

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mdmscale.conversion.gguf_file import GgufFile, alone
from mdmscale.conversion.model_folder import describing, model_shapes
from mdmscale.models.opening import load_weights
from mdmscale.system.errors import UserError
from mdmscale.weights.tensor_source import TensorInfo

# llama.cpp writes Mistral's models as llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3")
# What a file may say about its architecture and be carried over whole. Windows are removed by every import.
KNOWN = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "tensor_data_layout",
    "vocab_size",
}
ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1 to 3.3 stretch their RoPE by these and differ in the factor only.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_config(file: GgufFile) -> PretrainedConfig:
    """The model's config in transformers' terms.

    Raises:
        UserError: where the architecture is not supported, or the file says more than transformers reads.
    """
    if file.architecture not in ARCHITECTURES:
        raise UserError(
            f"{file.path}: general.architecture = {file.architecture!r} is not supported; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    prefix = f"{file.architecture}."
    for key, value in file.fields.items():
        if key.startswith(prefix) and key.removeprefix(prefix) not in KNOWN and not _says_nothing(key, value):
            raise UserError(
                f"{file.path}: {key} = {value!r} would be lost, because transformers does not read it from "
                "GGUF; import the original folder of the model instead"
            )
    with describing(file.path), alone(file.path) as folder:
        config = AutoConfig.from_pretrained(
            folder, gguf_file=file.path.name, local_files_only=True, trust_remote_code=False
        )
    vars(config).pop("_model_name_or_path", None)  # the model's title, not a path
    head_dim = file.fields.get(f"{prefix}attention.key_length")
    if head_dim is not None and hasattr(config, "head_dim"):
        config.head_dim = head_dim  # transformers leaves Qwen3's at its default
    if ROPE_FACTORS in file.tensors:
        _set_llama3_rope(config, file)
    return config


def _says_nothing(key: str, value: Any) -> bool:
    """Whether the key only says that a feature is absent."""
    if key.endswith("rope.scaling.type"):
        return value == "none"
    return key.endswith(("expert_count", "expert_used_count")) and value == 0


def _set_llama3_rope(config: PretrainedConfig, file: GgufFile) -> None:
    """Say in the config what the file says by a tensor: how far each frequency of RoPE is stretched.

    Raises:
        UserError: where it is not the way in which Llama 3.1 and later do it.
    """
    stored = torch.from_numpy(file.tensors[ROPE_FACTORS].data.copy()).float()  # [head_dim / 2]
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {**LLAMA3_ROPE, "rope_theta": theta, "factor": round(float(stored.max()), 4)}
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** (-torch.arange(len(stored)) / len(stored))
    if not torch.allclose(plain / stretched, stored, rtol=1e-3):
        raise UserError(
            f"{file.path}: {ROPE_FACTORS} stretches RoPE in an unknown way; import the original folder of "
            "the model instead"
        )


class GgufWeights:
    """The dequantised weights, under transformers' names.

    transformers reads a file in one go. So the whole model is in memory from the first `read` on, in `dtype`,
    and one more tensor in fp32 while it loads.
    """

    def __init__(self, file: GgufFile, config: PretrainedConfig, dtype: torch.dtype) -> None:
        """Raise UserError where the file lacks a tensor of the model, or has one of another shape or name."""
        with describing(file.path):
            self._shapes = model_shapes(config)
        _check_tensors(file, _stored_shapes(self._shapes, file.architecture, config.num_hidden_layers))
        self._file = file
        self._config = deepcopy(config)  # an import changes its own
        self._dtype = dtype
        self._loaded: dict[str, torch.Tensor] | None = None

    def tensors(self) -> dict[str, TensorInfo]:
        return {name: TensorInfo(shape, self._dtype) for name, shape in self._shapes.items()}

    def read(self, name: str) -> torch.Tensor:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded[name].contiguous()

    def _load(self) -> dict[str, torch.Tensor]:
        path = self._file.path
        with alone(path) as folder:
            try:
                model = load_weights(folder, gguf_file=path.name, config=self._config, dtype=self._dtype)
            except UserError as error:
                raise UserError(str(error).replace(str(folder), str(path))) from None
        return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _stored_shapes(
    shapes: dict[str, tuple[int, ...]], architecture: str, num_layers: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's weights by the names that llama.cpp gives them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    key = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(key, num_layers)
    stored = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")  # kind is weight or bias
        stored[f"{names.get_name(module)}.{kind}"] = shape
    return stored


def _check_tensors(file: GgufFile, expected: dict[str, tuple[int, ...]]) -> None:
    """Compare the file's tensors with the model's.

    Raises:
        UserError: naming the first that is missing, unknown or of another shape.
    """
    if missing := sorted(expected.keys() - file.tensors.keys()):
        raise UserError(f"{file.path}: lacks {len(missing)} tensors of the model, such as {missing[0]}")
    if unknown := sorted(file.tensors.keys() - expected.keys() - {ROPE_FACTORS}):
        raise UserError(
            f"{file.path}: transformers' {file.architecture} model has no place for {len(unknown)} tensors "
            f"of this file, such as {unknown[0]}; import the original folder of the model instead"
        )
    for name, shape in expected.items():
        if (found := file.tensors[name].shape) != shape:
            raise UserError(f"{file.path}: {name} has the shape {found}, but the model needs {shape}")
