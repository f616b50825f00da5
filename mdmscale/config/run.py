"""RunConfig: every option of a run, typed, described and checked before torch is imported.

Precedence: the defaults here < the YAML file < `section.key=value` on the command line.
"""

from typing import Self

from pydantic import model_validator

from mdmscale.config import rules
from mdmscale.config.data import DataSection
from mdmscale.config.diffusion import DiffusionSection
from mdmscale.config.model import ModelSection
from mdmscale.config.parallel import ParallelSection
from mdmscale.config.section import Section, key
from mdmscale.config.training import (
    CheckpointSection,
    EvalSection,
    LoggingSection,
    OptimizerSection,
    TrainSection,
)


class RunSection(Section):
    name: str = key(..., "name of the run; its folder is <output_dir>/<name>", pattern=r"^\w[\w.-]*$")
    output_dir: str = key("runs", "folder that contains the run folders")
    seed: int = key(0, "seed of the weights, the order of the data and all noise", ge=0, lt=2**63)
    stall_timeout: float = key(
        1800.0,
        "seconds without progress or signs from a rank before the job ends and names the rank; 0: no limit",
        ge=0,
    )
    setup_timeout: float = key(
        7200.0, "seconds that set-up may take, with the loading of a checkpoint; 0: no limit", ge=0
    )
    eval_timeout: float = key(
        1800.0, "as stall_timeout, between two forwards of an evaluation; 0: no limit", ge=0
    )
    save_timeout: float = key(3600.0, "seconds that a checkpoint may take; 0: no limit", ge=0)
    export_timeout: float = key(7200.0, "seconds that the export may take; 0: no limit", ge=0)


class RunConfig(Section):
    """The whole configuration of a run. Sections and keys have the same names as in the YAML file."""

    run: RunSection
    model: ModelSection
    data: DataSection
    diffusion: DiffusionSection = DiffusionSection()
    train: TrainSection
    optimizer: OptimizerSection
    parallel: ParallelSection = ParallelSection()
    checkpoint: CheckpointSection = CheckpointSection()
    logging: LoggingSection = LoggingSection()
    eval: EvalSection = EvalSection()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = [
            *rules.evaluation_problems(self.eval, self.data),
            *rules.best_problems(self.checkpoint, self.eval),
            *rules.task_problems(self.eval, self.parallel, self.diffusion),
            *rules.schedule_problems(self.train, self.optimizer, self.diffusion),
            *rules.prompt_problems(self.diffusion, self.data),
            *rules.objective_problems(self.diffusion, self.model),
            *rules.pattern_problems(self.diffusion, self.model),
            *rules.parallel_problems(self.parallel, self.model, self.train),
            *rules.compile_problems(self.model, self.parallel),
            *rules.sequence_problems(self.data, self.model, self.train),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self
