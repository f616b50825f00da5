"""What a run's model is. A run that resumes must still be the same model, and its other changes are told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mdmscale.config.loading import parse_yaml
from mdmscale.config.run import RunConfig
from mdmscale.models.backbone import ARCHITECTURE_KEYS, Backbone
from mdmscale.models.tokenizer_identity import identity_differences, tokenizer_identity
from mdmscale.system.errors import UserError
from mdmscale.system.files import read_object
from mdmscale.system.run_folder import MODEL_FOLDER, RunFolder
from mdmscale.training.state import TrainingState
from mdmscale.weights.fingerprint import weights_fingerprint

# Besides ARCHITECTURE_KEYS, values of config.json that decide what the layers compute.
_LAYER_KEYS = ("model_type", "hidden_act", "rms_norm_eps", "rope_parameters", "attention_bias", "mlp_bias")


def model_identity(backbone: Backbone, path: str | None) -> dict[str, Any]:
    """What state.json says about the model: its shape, mask token, shift, objective, tokenizer and weights.

    `path` is model.path.
    """
    values = backbone.model.config.to_dict()
    return {
        "config": {name: values[name] for name in (*ARCHITECTURE_KEYS, *_LAYER_KEYS) if name in values},
        "mask_token_id": backbone.mask_token_id,
        "logit_shift": backbone.logit_shift,
        "objective": backbone.objective,
        "tokenizer": tokenizer_identity(backbone.tokenizer),
        "tokenizer_name": str(backbone.tokenizer.name_or_path),
        "path": path,
        "weights": None if path is None else weights_fingerprint(path),
    }


def check_model(state: TrainingState, checkpoint: Path, identity: dict[str, Any], backbone: Backbone) -> None:
    """Refuse to resume with another model than the checkpoint's; `identity` is this run's.

    A model folder may have moved, so it is its weights that count, not its path.

    Raises:
        UserError: naming each option, its value and the checkpoint's.
    """
    before = {"objective": "full", **(state.model or _described(checkpoint))}  # older ones do not say it
    mend = "or choose another run.name to start from scratch"
    problems = [
        f"{_option(name, identity['path'])} = {now}, but checkpoint {checkpoint} was trained with {then}; "
        f"use that value, {mend}"
        for name, now, then in _other_values(identity, before)
    ]
    if differences := identity_differences(before.get("tokenizer", {}), backbone.tokenizer, False):
        problems.append(
            f"model.tokenizer: {identity['tokenizer_name']!r} has {', '.join(differences)}, compared with "
            f"{before['tokenizer_name']!r}, with which checkpoint {checkpoint} was trained; use that one, "
            f"{mend}"
        )
    names_another = before.get("path", identity["path"]) != identity["path"]
    if names_another and (before["weights"] != identity["weights"] or identity["weights"] is None):
        problems.append(
            f"model.path = {_shown(identity['path'])} does not hold the weights of {_shown(before['path'])}, "
            f"from which the run of checkpoint {checkpoint} started; give that one, {mend}"
        )
    if problems:
        raise UserError(*problems)


def _other_values(now: dict[str, Any], then: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, value now, value then) of each value that both identities have and that differs."""
    shape = then.get("config", {})
    for name, value in now["config"].items():
        if name in shape and shape[name] != value:
            yield name, value, shape[name]
    for name in ("mask_token_id", "logit_shift", "objective"):
        if name in then and then[name] != now[name]:
            yield name, now[name], then[name]


def changes_since(
    state: TrainingState, checkpoint: Path, config: RunConfig, identity: dict[str, Any]
) -> list[str]:
    """`key: old -> new` for every config key whose value is not the one that the checkpoint was trained with.

    Keys that the checkpoint's version did not have are left out. A checkpoint that does not hold its config
    was trained with the one of its run folder.
    """
    before = state.config or _config_of_run(checkpoint)
    if before is None:
        return []
    after = config.model_dump(mode="json")
    changes = [f"{name}: {old} -> {new}" for name, old, new in _differing(before, after)]
    if "weights" not in before["diffusion"] and config.diffusion.weighs_by_count:
        changes.append("diffusion.weights: rate, the only choice then -> count; rate continues as before")
    if state.model is not None and state.model["weights"] != identity["weights"]:
        changes.append(f"the weights in {identity['path']}; the run goes on with those of its checkpoint")
    return changes


def _config_of_run(checkpoint: Path) -> dict[str, Any] | None:
    """The values of the config file in a checkpoint's run folder, which may have keys of its version only."""
    path = RunFolder(checkpoint.parent.parent).config
    return parse_yaml(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, value in new.items():
        if name not in old or old[name] == value:
            continue
        if isinstance(value, dict) and isinstance(old[name], dict):
            yield from _differing(old[name], value, f"{prefix}{name}.")
        else:
            yield prefix + name, _shown(old[name]), _shown(value)


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _option(name: str, path: str | None) -> str:
    """What decides a value of the model: an option, or the config.json of model.path."""
    if name == "objective":
        return "diffusion.objective"
    if path is not None and name not in ("mask_token_id", "logit_shift"):
        return f"model.path: {path}/config.json: {name}"
    return f"model.{ {'model_type': 'architecture', 'rope_parameters': 'rope_theta'}.get(name, name) }"


def _described(checkpoint: Path) -> dict[str, Any]:
    """What can be told of the model of a checkpoint whose state.json does not describe it."""
    path = checkpoint / MODEL_FOLDER / "config.json"
    if not path.is_file():
        return {}
    values = read_object(path)
    mdm = values.get("mdm") or {}
    return {
        "config": {name: values[name] for name in ARCHITECTURE_KEYS if name in values},
        **{name: mdm[name] for name in ("mask_token_id", "logit_shift", "objective") if name in mdm},
    }
