"""The layout of a run folder. All names in it are defined here and nowhere else.

config.yaml           the resolved config
metrics.jsonl         one line per step
tensorboard/          the same numbers as event files
checkpoints/
    step-00000100/
        engine/       DeepSpeed's files with every rank's shards
        model/        config.json and tokenizer, so that an export needs only the checkpoint
        state.json    step, samples, tokens, seed, data, engine layout, components by name
        manifest.json size and sha256 of every file above
figures/              PNG files
data/                 SFT data that the run has encoded
hf/                   the trained model for Hugging Face transformers, with adapters merged
adapter/              the adapters of model.lora, not merged
hf_ema/, adapter_ema/ the same of the average of the weights, with train.ema_decay
logs/                 deepspeed-<rank>.log, what libraries print; heartbeats/<first rank of a node>.jsonl;
                      after a stall also stall.json and stacks-<rank>.txt; after an end by a value that is
                      not finite nonfinite.json, with its step
stop                  asks the run to stop
lock                  while the run trains: who trains it
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mdmscale.system.errors import UserError
from mdmscale.system.files import REPLACED, UNFINISHED

ENGINE_FOLDER = "engine"
MODEL_FOLDER = "model"
STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
EXPORT_FOLDER = "hf"
ADAPTER_FOLDER = "adapter"
AVERAGED_EXPORT_FOLDER = "hf_ema"
AVERAGED_ADAPTER_FOLDER = "adapter_ema"
_STEP = "step-"

Kind = Literal["model", "run", "checkpoint"]


@dataclass(frozen=True)
class RunFolder:
    """The paths inside the run folder at `path`, whether they exist or not."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def export(self) -> Path:
        return self.path / EXPORT_FOLDER

    @property
    def adapter(self) -> Path:
        return self.path / ADAPTER_FOLDER

    @property
    def averaged_export(self) -> Path:
        return self.path / AVERAGED_EXPORT_FOLDER

    @property
    def averaged_adapter(self) -> Path:
        return self.path / AVERAGED_ADAPTER_FOLDER

    @property
    def exports(self) -> tuple[Path, ...]:
        """The folders that a run writes when training ends, whether it writes them or not."""
        return self.export, self.adapter, self.averaged_export, self.averaged_adapter

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def stop(self) -> Path:
        return self.path / "stop"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def ends(self) -> Path:
        return self.logs / "nonfinite.json"

    @property
    def stall(self) -> Path:
        return self.logs / "stall.json"

    def library_log(self, rank: int) -> Path:
        return self.logs / f"deepspeed-{rank}.log"

    @property
    def heartbeats(self) -> Path:
        return self.logs / "heartbeats"

    def heartbeat(self, first_rank: int) -> Path:
        """The heartbeats of the ranks of a node, of which `first_rank` is the first."""
        return self.heartbeats / f"{first_rank}.jsonl"

    def stacks(self, rank: int) -> Path:
        return self.logs / f"stacks-{rank}.txt"

    @property
    def has_export(self) -> bool:
        """Whether the run has finished and exported its model."""
        return is_model(self.export)

    def checkpoint(self, step: int) -> Path:
        """The path of the checkpoint of a step."""
        return self.checkpoints / step_name(step)

    def published_checkpoints(self) -> list[Path]:
        """The checkpoints that have their final names, oldest first."""
        return published_checkpoints(self.checkpoints)


def step_name(step: int) -> str:
    """The name of the checkpoint of a step. Names sort in the order of steps."""
    return f"{_STEP}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix(_STEP))


def published_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoints in a run's checkpoints/ folder that have their final names, oldest first.

    Folders with other names, such as step-best, are the user's own: no run reads or removes them.
    """
    return _named(checkpoints, "")


def leftover_checkpoints(checkpoints: Path) -> list[Path]:
    """What killed runs left in a run's checkpoints/ folder: checkpoints half written or half removed."""
    return _named(checkpoints, UNFINISHED) + _named(checkpoints, REPLACED)


def _named(checkpoints: Path, prefix: str) -> list[Path]:
    """The folders whose name is `prefix` and that of a checkpoint."""
    name = re.compile(rf"{re.escape(prefix + _STEP)}[0-9]{{8}}")
    return sorted(
        each for each in checkpoints.glob(f"{prefix}*") if name.fullmatch(each.name) and each.is_dir()
    )


def is_model(path: Path) -> bool:
    """Whether `path` is a Hugging Face model folder."""
    return (path / "config.json").is_file()


def no_such_folder(path: Path) -> str:
    """The problem with a path that does not exist, where a hub id would not do."""
    if len(path.parts) == 2 and not path.parent.exists():  # may be a hub id
        return f"{path}: no such folder; if it is a hub id, run `hf download {path} --local-dir FOLDER` first"
    return f"{path}: no such folder"


def kind_of(path: Path) -> Kind:
    """The kind of a folder: a Hugging Face model, a run, or a checkpoint of a run.

    Raises:
        UserError: if it is none of these.
    """
    if path.is_file():
        raise UserError(f"{path}: is a file; give the folder that holds it")
    if not path.is_dir():
        raise UserError(no_such_folder(path))
    if is_model(path):
        return "model"
    if (path / STATE_FILE).is_file() or (path / ENGINE_FOLDER).is_dir():
        return "checkpoint"
    run = RunFolder(path)
    if run.config.is_file() or run.checkpoints.is_dir() or run.has_export:
        return "run"
    if checkpoints := published_checkpoints(path):
        raise UserError(f"{path}: holds checkpoints; give {path.parent}, or one of them: {checkpoints[-1]}")
    raise UserError(
        f"{path}: neither a Hugging Face model folder (no config.json), a run folder (no config.yaml) nor a "
        f"checkpoint (no {STATE_FILE})"
    )


def kind_if_any(path: Path) -> Kind | None:
    """As `kind_of`, but None for what is none of these."""
    try:
        return kind_of(path)
    except UserError:
        return None
