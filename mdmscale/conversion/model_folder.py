"""config.json of model folders, and the weights that it calls for."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mdmscale.models.folder_checks import check_layers, check_not_adapter_alone, check_unquantized
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.links import check_links
from mdmscale.weights.tensor_source import TensorInfo, TensorSource
from mdmscale.weights.tensor_views import HEAD, INPUT_EMBEDDING, Part, RemappedSource


def read_values(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        UserError: where it is missing or damaged, says that the weights are quantised or the layers too many,
            or a link leads out of the folder.
    """
    check_links(folder)
    check_not_adapter_alone(folder)
    values = read_object(folder / "config.json")
    check_unquantized(values, folder)
    check_layers(values, folder)
    return values


def read_hf_config(folder: Path) -> PretrainedConfig:
    """The folder's config as a transformers object. Code in the folder is never run.

    Raises:
        UserError: where transformers cannot read it.
    """
    read_values(folder)
    with describing(folder / "config.json"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def describing(path: Path) -> Iterator[None]:
    """Turn any error about sizes and types that do not fit together into a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: describes no model: {' '.join(str(error).split())}") from None


def save_hf_config(config: PretrainedConfig, infos: dict[str, TensorInfo], folder: Path) -> None:
    """Write config.json, with the precision of the weights and the class that opens them."""
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = main_dtype(infos)
    config.save_pretrained(folder)


def main_dtype(infos: dict[str, TensorInfo]) -> torch.dtype:
    """The precision of most of the bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for info in infos.values():
        sizes[info.dtype] += info.num_bytes
    return sizes.most_common(1)[0][0]


def all_dtypes(infos: dict[str, TensorInfo]) -> str:
    """Every precision of the weights. A conversion keeps each tensor's own."""
    return ", ".join(sorted({str(info.dtype).removeprefix("torch.") for info in infos.values()}))


def expected_shapes(config: PretrainedConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of the model, as transformers builds it. A tied head is not listed.

    Raises:
        UserError: where the sizes do not fit together.
    """
    with describing(folder / "config.json"):
        return model_shapes(config)


def model_shapes(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """As `expected_shapes`, of a config that is in no folder. Raises what transformers raises."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def own_weights(source: TensorSource, config: PretrainedConfig) -> TensorSource:
    """`source`, under Hugging Face names, without the copies and buffers that old files also hold.

    Whether the head is tied to the embedding is decided as transformers decides it: the config must say so,
    and the files must not hold a head that differs. Where they do, `config` becomes untied. If they hold only
    the head, the embedding is the head.
    """
    infos = source.tensors()
    parts = {name: Part(name) for name in infos if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings and HEAD in parts:
        if INPUT_EMBEDDING not in parts:
            parts[INPUT_EMBEDDING] = parts.pop(HEAD)
        elif _are_equal(source, HEAD, INPUT_EMBEDDING):
            del parts[HEAD]
        else:
            config.tie_word_embeddings = False
    return RemappedSource(source, parts)


def _are_equal(source: TensorSource, left: str, right: str) -> bool:
    infos = source.tensors()
    return infos[left] == infos[right] and torch.equal(source.read(left), source.read(right))
