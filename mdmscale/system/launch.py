"""How this process was started. Without torchrun or deepspeed, several processes would all be rank 0."""

from collections.abc import Mapping

from mdmscale.system.errors import UserError

# (number of processes, this process's place among them), as launchers that start processes only name them
_STARTERS = {
    "srun": ("SLURM_NTASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "mpiexec": ("PMI_SIZE", "PMI_RANK"),
}


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse to train as one of several processes that do not know of each other.

    Such processes have no RANK. Each would train the whole run by itself, in the same folder.

    Raises:
        UserError: naming the variable that shows it, and how to start ranks.
    """
    if "RANK" in environment:
        _check_number(environment, "RANK", least=0)
        _check_number(environment, "WORLD_SIZE", least=1)
        return
    for starter, (size, place) in _STARTERS.items():
        if place in environment and _count(environment.get(size)) > 1:
            raise UserError(
                f"{size} = {environment[size]} and {place} = {environment[place]}, but RANK is not set: "
                f"{starter} starts processes and makes no ranks of them, so each would train the whole run "
                f"in the same folder; {_mend(starter)}"
            )
    if "WORLD_SIZE" in environment:
        _check_number(environment, "WORLD_SIZE", least=1)
        if environment["WORLD_SIZE"] != "1":
            raise UserError(
                f"WORLD_SIZE = {environment['WORLD_SIZE']}, but RANK is not set, so this process would train "
                f"alone; {_mend('python')}, or unset WORLD_SIZE to train on one rank"
            )


def _mend(starter: str) -> str:
    if starter == "srun":
        return (
            "submit launchers/train.sbatch, or start one task a node with torchrun (srun --ntasks-per-node 1 "
            "torchrun ... launchers/train.py), or one rank with srun --ntasks 1"
        )
    return "start ranks with torchrun --nproc-per-node N launchers/train.py --config FILE, or with deepspeed"


def _check_number(environment: Mapping[str, str], name: str, least: int) -> None:
    if _count(environment.get(name)) < least:
        value = environment.get(name)
        said = "is not set" if value is None else f"= {value!r} is no number from {least} on"
        raise UserError(f"{name} {said}; start ranks with torchrun or deepspeed, which set it")


def _count(text: str | None) -> int:
    """The number that `text` states, -1 where it states none."""
    return int(text) if text is not None and text.isdecimal() else -1
