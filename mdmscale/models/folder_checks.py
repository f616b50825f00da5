"""What a model folder must not hold: transformers would load it as another model, or fail later.

Checked before any weight is loaded, by training and sampling (models/opening.py) and by conversion.
"""

from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.weights.adapter_names import CONFIG_FILE as ADAPTER_CONFIG

QUANTIZATION = "quantization_config"
MOST_LAYERS = 2000
LAYER_KEYS = ("num_hidden_layers", "n_layers")  # transformers' and LLaDA's
# Files in which older tools of GPTQ and AWQ state it.
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")


def check_unquantized(config: dict[str, Any], folder: Path) -> None:
    """Refuse quantised weights, which can be neither trained nor converted.

    Args:
        config: the content of the folder's config.json.

    Raises:
        UserError: naming the method.
    """
    entries = config.get(QUANTIZATION)
    method = entries.get("quant_method") or "of an unknown method" if isinstance(entries, dict) else entries
    where = f"{folder / 'config.json'}: {QUANTIZATION} ({method})"
    if not entries:
        named = next((name for name in QUANTIZATION_FILES if (folder / name).is_file()), None)
        if named is None:
            return
        where = f"{folder / named}"
    raise UserError(
        f"{where}: quantised weights can be neither trained nor converted; get the model without "
        "quantisation, or dequantize() it with transformers and save it"
    )


def check_layers(config: dict[str, Any], folder: Path) -> None:
    """Refuse a model of more layers than any has: transformers would build one after the other, for hours.

    Args:
        config: the content of the folder's config.json.

    Raises:
        UserError: naming the key.
    """
    for name in LAYER_KEYS:
        number = config.get(name)
        if isinstance(number, int | float) and number > MOST_LAYERS:
            raise UserError(f"{folder / 'config.json'}: {name} = {number:.10g} is above {MOST_LAYERS}")


def check_no_adapter(folder: Path, mend: str) -> None:
    """Refuse a LoRA adapter that lies beside a model's weights, or without any.

    transformers adds such an adapter to the model as layers of its own.

    Raises:
        UserError: naming the adapter and `mend`.
    """
    check_not_adapter_alone(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder / ADAPTER_CONFIG}: a LoRA adapter lies beside the model's weights; {mend}")


def check_not_adapter_alone(folder: Path) -> None:
    """Refuse a folder with an adapter and no model.

    Raises:
        UserError: naming the model that the adapter belongs to.
    """
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
        raise UserError(
            f"{folder}: is a LoRA adapter for {base!r} without that model; copy the model's folder, put the "
            "adapter's files beside its weights, and merge them with tools/convert.py import"
        )
