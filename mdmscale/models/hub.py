"""Where a model or a tokenizer is: in a local folder, on the Hugging Face hub, or in the hub's cache.

transformers takes a path that does not exist for a hub id, and tries for a minute to reach the hub. Here a
path is told from a hub id by how it is written, and the hub gets a few seconds to answer. Needs no torch.
"""

import functools
import threading
from pathlib import Path
from typing import Any

from mdmscale.system.errors import UserError, first_line
from mdmscale.system.links import check_links

SECONDS_TO_ANSWER = 5.0  # that the hub has, and once more for finding its address
_LOG_IN = "check the name, or log in with `hf auth login`"


class UnreachableError(UserError):
    """The hub cannot be reached, and its cache on this machine lacks the model."""


def check_local(option: str, source: str | Path) -> None:
    """Refuse what is written like a local path but is no folder, or one with links that leave it.

    Asks no one, so it costs nothing.

    Args:
        option: what `source` was given for, such as model.path or --tokenizer.

    Raises:
        UserError: naming the option.
    """
    path, label = Path(source), labelled(option, source)
    if not str(source):  # which would name the working folder
        raise UserError(f"{label}: is empty; give a folder or a hub id (owner/name)")
    if path.is_dir():
        check_links(path)
        return
    if path.is_file():
        raise UserError(f"{label}: is a file; give the folder that holds it")
    reason = _why_local(str(source))
    if reason is not None:
        raise UserError(
            f"{label}: no such folder{reason}; give a folder that exists, or a hub id (owner/name)"
        )


def opening_arguments(option: str, source: str | Path) -> dict[str, Any]:
    """What `from_pretrained` needs besides `source`: nothing, or to look only at files on this machine.

    Raises:
        UnreachableError: for a hub id, if neither the hub answers nor the cache has it.
        UserError: for a missing folder, and for a hub id that does not exist.
    """
    check_local(option, source)
    if Path(source).is_dir():
        return {}
    name, label = str(source), labelled(option, source)
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{label}: neither a folder nor a hub id; a hub id looks like owner/name") from None
    failure = _ask_hub(name, constants.ENDPOINT, "model")
    if failure is None:
        return {}
    if _is_cached(name):
        return {"local_files_only": True}
    if isinstance(failure, LookupError):
        raise UserError(
            f"{label}: no such folder, and {constants.ENDPOINT} has no such model, or a private one; "
            f"{_LOG_IN}"
        )
    raise UnreachableError(
        f"{label}: no such folder, and as a hub id it cannot be opened: {failure}; on a machine that reaches "
        f"{constants.ENDPOINT} run `hf download {name}`, then copy that machine's HF_HOME to this one's "
        f"({constants.HF_HOME}) and set HF_HUB_OFFLINE=1"
    )


def local_folder(option: str, source: str | Path) -> Path:
    """The folder of a model: `source` itself, or where the hub's cache has it; what it lacks is downloaded.

    Raises:
        UserError: as `opening_arguments`.
    """
    if Path(source).exists():
        return Path(source)
    arguments = opening_arguments(option, source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), **arguments))


def check_dataset(label: str, name: str) -> None:
    """Refuse a dataset of the hub that does not exist, or that this machine cannot reach now.

    Raises:
        UserError: beginning with `label`.
    """
    from huggingface_hub import constants

    if Path(name).exists() or constants.HF_HUB_OFFLINE:
        return
    failure = _ask_hub(name, constants.ENDPOINT, "dataset")
    if isinstance(failure, LookupError):
        raise UserError(f"{label}: {constants.ENDPOINT} has no such dataset, or a private one; {_LOG_IN}")
    if failure is not None:
        raise UnreachableError(
            f"{label}: {failure}; on a machine that reaches it run `hf download --repo-type dataset {name} "
            "--local-dir FOLDER`, copy the folder here, and give its files"
        )


def why_not_opened(error: BaseException) -> str:
    """Why transformers could not open a model or tokenizer, in one line.

    Every caller passes trust_remote_code=False. Without it transformers asks on the terminal whether to run a
    folder's own code.
    """
    if "trust_remote_code" in str(error):
        return (
            "it needs code of its own (auto_map in its JSON files), which is never run here; give a model or "
            "tokenizer of a class that transformers has"
        )
    return first_line(error)


def labelled(option: str, value: str | Path) -> str:
    """An option with its value, as messages name it."""
    return f"{option} {value}" if option.startswith("--") else f"{option} = {str(value)!r}"


def _why_local(source: str) -> str | None:
    """Why `source` is a local path, as the end of a sentence; None if it can be a hub id."""
    first, slash, rest = source.partition("/")
    if source.startswith("~"):
        return " (~ stands for itself here; write the whole path)"
    if source.startswith((".", "/")) or "/" in rest:
        return ""
    if slash and Path(first).is_dir():
        return f" ({first} is a folder here, so this is no hub id)"
    return None


@functools.cache
def _ask_hub(name: str, endpoint: str, kind: str) -> Exception | None:
    """Ask the hub for a model or dataset: None if it has it, LookupError if not, else why there is no answer.

    The question is asked in a thread, because a system that looks for an address can wait much longer than
    the connection may. It is asked once: tokenizer, config and weights may need the answer.
    """
    answers: list[Exception | None] = []
    asking = threading.Thread(target=lambda: answers.append(_request(name, endpoint, kind)), daemon=True)
    asking.start()
    asking.join(2 * SECONDS_TO_ANSWER)
    return answers[0] if answers else TimeoutError(f"{endpoint} does not answer")


def _request(name: str, endpoint: str, kind: str) -> Exception | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        HfApi(endpoint=endpoint).repo_info(name, repo_type=kind, timeout=SECONDS_TO_ANSWER)
    except OfflineModeIsEnabled:
        return ConnectionError("HF_HUB_OFFLINE is set, and the cache lacks it")
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403, 404):
            return LookupError(name)
        return ConnectionError(f"{endpoint} answers with status {error.response.status_code}")
    except Exception as error:  # httpx's errors, whose package huggingface_hub is free to change
        return ConnectionError(f"{endpoint} cannot be reached ({first_line(error)})")
    return None


def _is_cached(name: str) -> bool:
    """Whether the hub's cache on this machine has a version of a model."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "snapshots"
    return folder.is_dir() and any(folder.iterdir())
