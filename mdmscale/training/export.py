"""Export of the trained model to a Hugging Face folder that opens without mdmscale."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mdmscale.engine.engine import Engine
from mdmscale.models.backbone import Backbone
from mdmscale.models.lora import save_adapter
from mdmscale.parallel.collectives import on_first_rank
from mdmscale.parallel.ranks import Ranks
from mdmscale.system.folders import published_folder
from mdmscale.system.sums import write_sums
from mdmscale.weights.adapters import merge_trained


def export_model(engine: Engine, backbone: Backbone, folder: Path, adapter: Path, ranks: Ranks) -> Path:
    """Write config, safetensors and tokenizer to `folder`, which appears only when it is complete.

    Adapters are merged into the weights. They are also written unmerged to the folder `adapter`. Every rank
    calls this.
    """
    weights = engine.gather_weights(ranks)

    def write_model(unfinished: Path) -> None:
        merged = weights if lora is None else merge_trained(weights, lora.lora_alpha / lora.r)
        backbone.model.save_pretrained(unfinished, state_dict=merged)
        backbone.tokenizer.save_pretrained(unfinished)

    lora = backbone.lora
    if lora is not None:
        on_first_rank(ranks, lambda: _publish(adapter, partial(save_adapter, weights, lora)))
    on_first_rank(ranks, lambda: _publish(folder, write_model))
    return folder


def _publish(folder: Path, write: Callable[[Path], None]) -> None:
    with published_folder(folder) as unfinished:
        write(unfinished)
        write_sums(unfinished)


def write_description(backbone: Backbone, folder: Path) -> None:
    """Write the model's config and tokenizer, without its weights, into a new folder."""
    backbone.model.config.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    if backbone.lora is not None:
        backbone.lora.save_pretrained(str(folder))
