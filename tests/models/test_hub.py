"""What is a local path and what a hub id, and what happens where the hub does not answer."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn

import huggingface_hub.constants
import pytest

from mdmscale.config.model import ModelSection
from mdmscale.models import hub
from mdmscale.models.backbone import model_config
from mdmscale.models.hub import UnreachableError, check_dataset, check_local, opening_arguments
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("./x", "no such folder;"),
        ("../x", "no such folder;"),
        ("/nowhere/at/all", "no such folder;"),
        ("~/models/x", "no such folder (~ stands for itself here"),
        ("data/nothing/tokenizer", "no such folder;"),
        ("runs/nothing", "no such folder (runs is a folder here, so this is no hub id);"),
        ("", "is empty; give a folder"),
        ("a file.txt", "is a file; give the folder that holds it"),
    ],
)
def test_a_missing_local_path_is_told_without_the_hub(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file.txt").touch()
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(hub, "_request", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError) as caught:
        check_local("model.path", source)
    assert str(caught.value).startswith(f"model.path = {source!r}: {reason}")
    for opening in (lambda: opening_arguments("model.path", source), lambda: load_tokenizer(source)):
        with pytest.raises(UserError, match=r"no such folder|is a file|is empty"):
            opening()
    with pytest.raises(UserError, match=r"--tokenizer .*: (no such folder|is a file|is empty)"):
        check_local("--tokenizer", source)


@pytest.mark.parametrize("source", ["gpt2", "owner/name", "owner/name-1.5_b"])
def test_what_may_be_a_hub_id_is_left_to_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_local("model.path", source)


class Hub(ThreadingMixIn, HTTPServer):
    """A hub of this machine: the answer's status by the name of the model; `silent` is never answered."""

    daemon_threads = True
    end = threading.Event()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name == "silent":
            Hub.end.wait()
            return
        self.send_response({"there": 200, "secret": 401, "broken": 503}.get(name, 404))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"id": "owner/there", "siblings": []}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of a hub that answers, with an empty cache, seen from an empty folder."""
    Hub.end.clear()
    server = Hub(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hub, "SECONDS_TO_ANSWER", 0.2)
    yield address
    Hub.end.set()
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub_is_opened_from_it(endpoint: str) -> None:
    assert opening_arguments("model.path", "owner/there") == {}
    check_dataset("input 'hf:owner/there'", "owner/there")


@pytest.mark.parametrize("name", ["missing", "secret"])
def test_a_model_that_the_hub_lacks_is_a_mistake(endpoint: str, name: str) -> None:
    with pytest.raises(UserError, match=f"{endpoint} has no such model, or a private one; check") as caught:
        opening_arguments("model.path", f"owner/{name}")
    assert not isinstance(caught.value, UnreachableError)
    with pytest.raises(UserError, match=r"input 'hf:x': .* has no such dataset"):
        check_dataset("input 'hf:x'", f"owner/{name}")


@pytest.mark.parametrize(
    ("name", "reason"), [("silent", "cannot be reached|answer"), ("broken", "status 503")]
)
def test_a_hub_that_does_not_answer_is_named_with_the_mend(endpoint: str, name: str, reason: str) -> None:
    with pytest.raises(UnreachableError, match=reason) as caught:
        load_tokenizer(f"owner/{name}", "model.tokenizer")
    message = str(caught.value)
    assert message.startswith(f"model.tokenizer = 'owner/{name}': ") and "\n" not in message
    assert "HF_HOME" in message and "HF_HUB_OFFLINE=1" in message and f"hf download owner/{name}" in message
    with pytest.raises(UnreachableError, match="--repo-type dataset"):
        check_dataset("input 'hf:x'", f"owner/{name}")


def test_no_hub_at_all_is_told_for_models_too(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no one listens
    with pytest.raises(UnreachableError, match=r"model\.path = 'owner/there': .* cannot be reached"):
        model_config(ModelSection(path="owner/there"), 0)


def test_offline_and_not_in_the_cache(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set, and the cache lacks it"):
        opening_arguments("model.path", "owner/there2")
    check_dataset("input 'hf:x'", "owner/there2")  # datasets has a cache of its own


def test_what_the_cache_has_is_opened_from_it_where_the_hub_is_silent(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--owner--silent" / "snapshots" / "abc").mkdir(parents=True)
    assert opening_arguments("model.path", "owner/silent") == {"local_files_only": True}


def test_neither_path_nor_hub_id(endpoint: str) -> None:
    with pytest.raises(UserError, match="'a--b': neither a folder nor a hub id; a hub id looks like"):
        opening_arguments("model.path", "a--b")
