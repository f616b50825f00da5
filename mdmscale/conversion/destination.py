"""What a conversion may write to, and what it must not replace."""

from pathlib import Path

from mdmscale.system.errors import UserError
from mdmscale.system.run_folder import is_model


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse a destination that would destroy something else.

    Raises:
        UserError: naming it and the mend.
    """
    here, there = source.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{destination}: lies in the source {source}, or holds it; choose another folder")
    if not destination.exists():
        return
    if not overwrite:
        raise UserError(f"{destination}: exists already; choose another folder or give --overwrite")
    if not is_model(destination):
        raise UserError(f"{destination}: is no model folder (no config.json), so it is not replaced")
