"""Files and folders as the project reads and writes them."""

import json
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object on disk.

    Raises:
        UserError: where the file is missing, damaged or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object")
    return content


def write_object(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
