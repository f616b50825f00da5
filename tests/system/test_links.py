"""Links and indexes that lead out of a folder are refused by whoever reads it; the hub's cache is not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models.tiny_folder import write_model_folder

from mdmscale.config.model import ModelSection
from mdmscale.conversion.inspecting import inspect_folder
from mdmscale.conversion.tokenizer_files import copy_tokenizer
from mdmscale.data.indexed import IndexedWriter
from mdmscale.data.preparation.folders import data_files
from mdmscale.data.shards import find_prefixes
from mdmscale.models.backbone import model_config
from mdmscale.models.opening import describe_model, load_model, load_weights
from mdmscale.models.tokenizer import load_tokenizer
from mdmscale.system.errors import UserError
from mdmscale.system.links import check_link, check_links, is_plain_name
from mdmscale.weights.adapters import read_adapter
from mdmscale.weights.weight_files import WeightFolder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "model")


def move_out(file: Path, to: Path | None = None) -> Path:
    """Move a file to another folder, and leave a link to it."""
    target = to or file.parent.parent / "elsewhere" / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    file.rename(target)
    file.symlink_to(target)
    return file


def copied(folder: Path) -> None:
    target = folder.parent / "copy"
    target.mkdir()
    copy_tokenizer(folder, target)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "generate": ("config.json", describe_model),
    "train": ("config.json", lambda folder: model_config(ModelSection(path=str(folder)), 0)),
    "convert": ("config.json", inspect_folder),
    "weights": ("model.safetensors", WeightFolder),
    "transformers": ("model.safetensors", load_weights),
    "tokenizer": ("tokenizer.json", load_tokenizer),
    "copied tokenizer": ("tokenizer.json", copied),
    "adapter": ("adapter_config.json", read_adapter),
    "templates": ("additional_chat_templates/x.jinja", load_tokenizer),
    "copied templates": ("additional_chat_templates/x.jinja", copied),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_link_out_of_a_models_folder_is_refused(model: Path, reader: str) -> None:
    name, read = READERS[reader]
    file = model / name
    file.parent.mkdir(exist_ok=True)
    if not file.exists():
        file.write_text("{}")
    move_out(file, model.parent / "secret")
    with pytest.raises(UserError, match=f"{name}: leads by a link to .*secret, outside of ") as refused:
        read(model)
    assert len(refused.value.problems) == 1


def test_a_model_in_the_hubs_cache_is_read(plain: Path, tmp_path: Path) -> None:
    """Also by a link to the snapshot: it is the user who names it."""
    cached = tmp_path / "hub" / "models--owner--name"
    snapshot = shutil.copytree(plain, cached / "snapshots" / "0123abcd")
    (cached / "blobs").mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(cached / "blobs" / str(number))
        file.symlink_to(f"../../blobs/{number}")
    (tmp_path / "named").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "named"):
        assert load_model(folder).description.vocab_size == 320
        assert inspect_folder(folder)["kind"] == "model"
    move_out(snapshot / "config.json", tmp_path / "secret")
    with pytest.raises(UserError, match="leads by a link"):
        describe_model(snapshot)


def test_a_blobs_folder_that_is_itself_a_link_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").touch()
    snapshot = tmp_path / "repo" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "repo/blobs").symlink_to(tmp_path / "elsewhere")
    (snapshot / "config.json").symlink_to("../../blobs/secret")
    with pytest.raises(UserError, match="leads by a link"):
        check_links(snapshot)


def test_links_within_a_folder_and_to_nothing_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/link").symlink_to("../file")
    (tmp_path / "dangling").symlink_to("nothing")
    check_links(tmp_path)
    check_link(tmp_path / "sub/link", tmp_path)
    check_links(tmp_path / "no folder")


def test_shards_of_a_folder_stay_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    with IndexedWriter(folder / "shard-00000", np.dtype("<u2")) as writer:
        writer.add_document(np.arange(9))
    assert find_prefixes([str(folder)]) == [folder / "shard-00000"]
    move_out(folder / "shard-00000.bin")
    with pytest.raises(UserError, match=r"shard-00000\.bin: leads by a link to "):
        find_prefixes([str(folder)])
    assert find_prefixes([str(folder / "shard-00000")])  # which the user names


def test_files_of_a_dataset_stay_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "data/train.jsonl").write_text("{}")
    data_files(folder, [".jsonl"], "train")
    move_out(folder / "data/train.jsonl", tmp_path / "secret")
    with pytest.raises(UserError, match=r"train\.jsonl: leads by a link to "):
        data_files(folder, [".jsonl"], "train")


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/secret.arrow", "..", "", "a/b.arrow", 7])
def test_a_saved_datasets_index_names_files_beside_it(tmp_path: Path, name: object) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "secret.arrow").touch()
    (tmp_path / "set/state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match=r"state\.json: names .*, which is not in its folder"):
        data_files(tmp_path / "set", [".arrow"], "train")


def test_a_saved_datasets_splits_are_folders_in_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["../elsewhere"]}')
    with pytest.raises(UserError, match=r"dataset_dict\.json: names \'\.\./elsewhere\', which is not in"):
        data_files(tmp_path / "set", [".arrow"], "train")


def test_plain_names() -> None:
    assert is_plain_name("model-00001-of-00002.safetensors") and is_plain_name("...")
    assert not any(map(is_plain_name, ("", ".", "..", "a/b", "/a", "a\0b", None, 3, b"a")))
