"""Damaged, foreign and hostile folders are refused with one line that names the file. Nothing is written."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conversion.folders import DREAM, LLADA, llada_shapes, make_arm, random_weights, write_folder

from mdmscale.conversion.importing import ImportOptions, import_folder
from mdmscale.system.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)), num_shards=2)


@pytest.fixture
def bin_source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)), "bin", num_shards=2)


def refusal(source: Path, **options: Any) -> str:
    """The message of an import, which must fail and leave no files."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError) as caught:
        import_folder(source, source.with_name("ours"), ImportOptions(**options))
    assert sorted(source.parent.iterdir()) == before
    return str(caught.value)


def set_config(source: Path, **values: Any) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **values}))


def test_truncated_files(source: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert f"{shard}: is damaged" in refusal(source)
    shard.write_bytes(b"")
    assert f"{shard}: is damaged" in refusal(source)


def test_truncated_bin(bin_source: Path) -> None:
    shard = bin_source / "pytorch_model-00002-of-00002.bin"
    for length in (3000, 10, 0):
        shard.write_bytes(shard.read_bytes()[:length])
        assert f"{shard}: " in refusal(bin_source)


def test_every_flipped_bit_of_a_header_is_noticed(tmp_path: Path) -> None:
    """Either safetensors rejects the file, or names or shapes do not fit the model."""
    source = write_folder(tmp_path / "llada", LLADA, random_weights(llada_shapes(LLADA)))
    file = source / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    text = whole[: 8 + length]
    for position in range(0, 8 + len(text[8:].rstrip()), 97):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        file.write_bytes(damaged)
        assert str(source) in refusal(source), position


def test_a_missing_shard(source: Path) -> None:
    shard = source / "model-00001-of-00002.safetensors"
    shard.unlink()
    assert refusal(source) == f"{shard}: is missing, but model.safetensors.index.json names it"


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", 7])
def test_an_index_that_names_files_elsewhere(source: Path, name: Any) -> None:
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.transformer.wte.weight"] = name
    index.write_text(json.dumps(content))
    assert refusal(source) == f"{index}: names the file {name!r}, which is not in its folder"


def test_an_index_that_is_not_true(source: Path) -> None:
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"]["model.transformer.wte.weight"]
    content["weight_map"]["model.transformer.extra.weight"] = shard
    index.write_text(json.dumps(content))
    assert f"{source / shard}: has no tensor model.transformer.extra.weight" in refusal(source)
    for damage in ("[]", "{", '{"weight_map": 3}'):
        index.write_text(damage)
        assert f"{index}: is damaged" in refusal(source)
    index.unlink()
    assert "model-00001-of-00002.safetensors is there, but no index" in refusal(source)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, int]]:
        return os.open, (str(self.path), os.O_CREAT)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_is_not_run(bin_source: Path, tmp_path: Path, zipped: bool) -> None:
    shard, trace = bin_source / "pytorch_model-00001-of-00002.bin", tmp_path / "was-run"
    weights = torch.load(shard)
    torch.save({**weights, "x": Hostile(trace)}, shard, _use_new_zipfile_serialization=zipped)
    assert f"{shard}: holds more than tensors (pickled code or objects)" in refusal(bin_source)
    assert not trace.exists()


def test_unfitting_weights(source: Path) -> None:
    set_config(source, n_layers=3)
    assert "9 weights are missing, such as model.layers.2.self_attn.q_proj.weight" in refusal(source)
    set_config(source, n_layers=1)
    assert "9 weights are not known to the model, such as model.layers.1." in refusal(source)
    set_config(source, n_layers=2, mlp_hidden_size=40)
    assert "mlp.gate_proj.weight has the shape (48, 32), where its config.json asks for (40, 32)" in refusal(
        source
    )
    for values in (
        {"d_model": 33},
        {"d_model": "wide"},
        {"d_model": 0},
        {"rope_theta": None},
        {"n_layers": None},
    ):
        set_config(source, **{"mlp_hidden_size": 48, **LLADA, **values})
        assert f"{source / 'config.json'}: describes no model" in refusal(source), values


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": 3}', "{}"])
def test_a_damaged_config(source: Path, content: str) -> None:
    (source / "config.json").write_text(content)
    assert str(source / "config.json") in refusal(source)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llada", "architectures": ["LLaDAMoEModelLM"]}, "is a LLaDA-MoE model"),
        (
            {"model_type": "llada", "architectures": ["LLaDAModelLM"], "num_experts": 64},
            "is a LLaDA-MoE model",
        ),
        ({"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"]}, "is a LLaDA2 model"),
        ({**DREAM, "block_size": 32}, "is a block-diffusion relative of Dream"),
        ({"model_type": "gpt2"}, "model_type = 'gpt2' is not supported"),
    ],
)
def test_relatives_are_refused_by_name(source: Path, values: dict[str, Any], message: str) -> None:
    (source / "config.json").write_text(json.dumps(values))
    assert message in refusal(source)


def test_other_architectures_under_lladas_name(source: Path) -> None:
    set_config(source, alibi=True, rope=False, scale_logits=True, activation_type="gelu")
    message = refusal(source)
    for problem in ("alibi = True", "rope = False", "scale_logits = True", "activation_type = 'gelu'"):
        assert problem in message
    assert len(message.splitlines()) == 4


def test_the_wrong_family(source: Path, tmp_path: Path) -> None:
    assert "--family dream: " in refusal(source, family="dream")
    assert "is of the family llada (llada); give that, or auto" in refusal(source, family="arm")
    qwen = make_arm(tmp_path / "qwen", "qwen2")
    assert "is of the family arm (qwen2)" in refusal(qwen, family="diffullama")
    import_folder(source, tmp_path / "ours", ImportOptions())
    with pytest.raises(UserError, match="is an mdmscale model already"):
        import_folder(tmp_path / "ours", tmp_path / "again", ImportOptions())


def test_a_model_without_a_mask_token(source: Path) -> None:
    set_config(source, mask_token_id=None)
    assert "has no mask_token_id; give --mask-token" in refusal(source)
    import_folder(source, source.with_name("ours"), ImportOptions(mask_token="5"))


@pytest.mark.parametrize("layers", [10**6, 10**18, 1e300])
def test_endless_layers(source: Path, layers: float) -> None:
    """transformers would build them one after the other."""
    set_config(source, n_layers=layers)
    assert "config.json: n_layers = " in refusal(source) and "is above 2000" in refusal(source)


@pytest.mark.parametrize("declared", [-1, "x", {}, [None], True])
def test_architectures_of_any_kind(source: Path, declared: object) -> None:
    set_config(source, architectures=declared, n_layers=1)
    assert "not known to the model" in refusal(source)


@pytest.mark.parametrize(
    ("dtype", "shape", "offsets", "problem"),
    [
        ("F6_E2M3", [4], [0, 3], "has the dtype F6_E2M3, which torch does not have"),
        ("F4", [], [0, 0], "is damaged or no safetensors file"),
        ("F4", [2], [0, 1], "has the dtype float4_e2m1fn_x2, so the model is quantised"),
        ("F32", [2**62, 4], [0, 16], "is damaged or no safetensors file"),
        ("F32", [-1], [0, 4], "is damaged or no safetensors file"),
        ("XX", [1], [0, 4], "is damaged or no safetensors file"),
    ],
)
def test_odd_headers(source: Path, dtype: str, shape: list[int], offsets: list[int], problem: str) -> None:
    header = json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    file = source / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(offsets[1]))
    assert problem in refusal(source)


@pytest.mark.parametrize("size", [2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_a_huge_size(source: Path, size: int) -> None:
    (source / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    assert "is damaged or no safetensors file" in refusal(source)
