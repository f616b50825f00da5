"""Recognise the model family of a folder by its config.json."""

from pathlib import Path
from typing import Any

from mdmscale.models.backbone import FAMILIES as ARCHITECTURES
from mdmscale.system.errors import UserError


def identify(values: dict[str, Any], folder: Path) -> str:
    """The family: mdmscale, arm, llada, dream or diffullama. Only its name tells DiffuLLaMA from Llama.

    Raises:
        UserError: naming the model, where it cannot be converted.
    """
    model_type = str(values.get("model_type", "")).lower()
    declared = values.get("architectures")
    architectures = " ".join(map(str, declared)) if isinstance(declared, list) else ""
    if model_type.startswith("llada2") or "LLaDA2" in architectures:
        raise UserError(f"{folder}: is a LLaDA2 model (block diffusion, mixture of experts): not supported")
    if model_type.startswith("llada"):
        if model_type != "llada" or "MoE" in architectures or "num_experts" in values:
            raise UserError(f"{folder}: is a LLaDA-MoE model (mixture of experts): not supported")
        return "llada"
    if model_type == "dream":
        if "block_size" in values:
            raise UserError(f"{folder}: is a block-diffusion relative of Dream: not supported")
        return "dream"
    if model_type in ARCHITECTURES:
        if isinstance(values.get("mdm"), dict):
            return "mdmscale"
        names = f"{folder.resolve().name} {values.get('_name_or_path', '')}".lower()
        return "diffullama" if model_type == "llama" and "diffullama" in names else "arm"
    raise UserError(
        f"{folder / 'config.json'}: model_type = {values.get('model_type')!r} is not supported; "
        f"supported are {', '.join(ARCHITECTURES)}, llada and Dream"
    )


def settle_family(requested: str, values: dict[str, Any], folder: Path) -> str:
    """The family to import `folder` as: its own for `auto`, else the requested one if the folder can be that.

    Raises:
        UserError: where the folder is of another family, or is an mdmscale model already.
    """
    found = identify(values, folder)
    if found == "mdmscale":
        raise UserError(f"{folder}: is an mdmscale model already; give it as model.path, or export it")
    if requested in ("auto", found):
        return found
    alike = {"arm", "diffullama"}
    if {requested, found} == alike and (requested == "arm" or values.get("model_type") == "llama"):
        return requested
    kind = f"{found} ({values.get('model_type')})"
    raise UserError(f"--family {requested}: {folder} is of the family {kind}; give that, or auto")
