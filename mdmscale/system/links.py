"""What folders from elsewhere name: their links, and the names of files in their indexes, stay inside.

Otherwise such a folder could have any file of this machine read, and published with what is made of it. A
link that the user names is followed: only what lies in a folder, or is named by a file in it, is not trusted.
"""

import os
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError


def check_links(folder: Path) -> None:
    """Refuse a link directly in `folder` that leads out of it.

    The hub's cache consists of links from `snapshots/REVISION/` to the `blobs/` beside `snapshots/`. These
    are accepted. A missing folder is left to whoever reads it.

    Raises:
        UserError: naming the link, and where it leads.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        links = sorted(entry.path for entry in entries if entry.is_symlink())
    for link in links:
        check_link(Path(link), folder)


def check_link(path: Path, folder: Path) -> None:
    """Refuse a `path` in `folder`, at any depth, that leads out of the folder by a link.

    Raises:
        UserError: as `check_links`.
    """
    home, target = folder.resolve(), Path(os.path.realpath(path))
    if any(target.is_relative_to(place) for place in (home, *_blobs(home))):
        return
    raise UserError(
        f"{path}: leads by a link to {target}, outside of {folder}; put a copy in place of the link"
    )


def is_plain_name(name: Any) -> bool:
    """Whether an index names a file beside itself, and not one in another folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & set(name)


def _blobs(home: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a snapshot: of `home`, or of the snapshot that it is in."""
    parents = [place.parent for place in (home, *home.parents)]
    return [parent.parent / "blobs" for parent in parents if parent.name == "snapshots"]
