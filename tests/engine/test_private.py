"""Looks up every private name of DeepSpeed that engine/private.py uses in the installed release.

If a new release renames one, the test of that name fails. Fix the name in engine/private.py.
"""

import ast
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from conftest import ROOT, kept_environment
from deepspeed.runtime.swap_tensor.optimizer_utils import OptimizerStateSwapInfo, OptimizerSwapper
from deepspeed.runtime.swap_tensor.partitioned_optimizer_swapper import PartitionedOptimizerSwapper
from engine.small_engine import FROZEN, make_config, make_engine, take_step

from mdmscale.engine import private
from mdmscale.engine.engine import Engine
from mdmscale.engine.private import MASTER, MOMENTS
from mdmscale.parallel.ranks import Ranks, initialise

SETTINGS = [(stage, dtype) for dtype in ("fp32", "bf16") for stage in range(4)]
PACKAGE = ROOT / "mdmscale"


@pytest.fixture(scope="module")
def engines(process_group: None) -> Iterator[dict[tuple[int, str], Engine]]:
    """An engine of every ZeRO stage and precision, after its first step."""
    with kept_environment():
        ranks = initialise()
        made = {(stage, dtype): make_engine(make_config(stage, dtype), ranks) for stage, dtype in SETTINGS}
        for engine in made.values():
            take_step(engine)
        yield made


def assert_has(owner: Any, name: str) -> None:
    kind = owner if isinstance(owner, type) else type(owner)
    assert hasattr(owner, name), f"deepspeed {deepspeed.__version__}: {kind.__name__} has no {name} any more"


# (attribute, ZeRO stage, precision) of the optimizer.
OPTIMIZER_ATTRIBUTES = [
    ("optimizer", 0, "bf16"),
    ("optimizer", 1, "fp32"),
    ("optimizer", 1, "bf16"),
    ("optimizer", 3, "bf16"),
    ("fp16_groups", 0, "bf16"),
    ("fp32_groups", 0, "bf16"),
    ("single_partition_of_fp32_groups", 1, "fp32"),
    ("single_partition_of_fp32_groups", 2, "fp32"),
    ("single_partition_of_fp32_groups", 2, "bf16"),
    ("fp32_groups_flat_partition", 1, "bf16"),
    ("fp32_partitioned_groups_flat", 3, "fp32"),
    ("fp32_partitioned_groups_flat", 3, "bf16"),
    ("_lazy_init_hp_params_optimizer_state", 1, "fp32"),
    ("_lazy_init_hp_params_optimizer_state", 1, "bf16"),
    ("_lazy_init_hp_params_optimizer_state", 2, "fp32"),
    ("update_lp_params", 1, "fp32"),
    ("update_lp_params", 1, "bf16"),
    ("update_lp_params", 2, "fp32"),
    ("_partition_all_parameters", 3, "bf16"),
    ("_reassign_or_swap_out_partitioned_parameters", 3, "bf16"),
    ("persistent_parameters", 3, "bf16"),
    ("invalidate_secondary_tensor", 3, "bf16"),
    *(("_global_grad_norm", stage, dtype) for stage, dtype in SETTINGS if (stage, dtype) != (0, "fp32")),
    ("swap_optimizer", 3, "fp32"),
    ("optimizer_swapper", 3, "fp32"),
]
SWAPPER_ATTRIBUTES = ["swap_params_info", "swap_folder", "dtype"]
SWAPPER_METHODS = ["_get_param_swap_info", "_io_aligned_numel"]
SWAPPED_ATTRIBUTES = ["tensors", "numel", "release_memory"]
SWAPPED_TENSOR_ATTRIBUTES = ["compute_tensor", "swap_path"]
SAVING_ATTRIBUTES = ["checkpoint_engine", "_copy_recovery_script"]  # of an engine
# "mpu" of a module of DeepSpeed; the others of parameters.
OTHER_ATTRIBUTES = ["mpu", "model_parallel", "ds_shape", "ds_id", "ds_tensor", "all_gather"]


@pytest.mark.parametrize(("name", "stage", "dtype"), OPTIMIZER_ATTRIBUTES)
def test_optimizers_have(engines: dict[tuple[int, str], Engine], name: str, stage: int, dtype: str) -> None:
    assert_has(engines[stage, dtype].optimizer, name)


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_engines_load_through(engines: dict[tuple[int, str], Engine], stage: int, dtype: str) -> None:
    assert_has(type(engines[stage, dtype].deepspeed.checkpoint_engine), "load")


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_optimizers_are_of_the_known_classes(
    engines: dict[tuple[int, str], Engine], stage: int, dtype: str
) -> None:
    expected = {
        (0, "fp32"): "AdamW",
        (0, "bf16"): "FP16_UnfusedOptimizer",
        (1, "bf16"): "BF16_Optimizer",
        (3, "fp32"): "DeepSpeedZeroOptimizer_Stage3",
        (3, "bf16"): "DeepSpeedZeroOptimizer_Stage3",
    }.get((stage, dtype), "DeepSpeedZeroOptimizer")
    assert type(engines[stage, dtype].optimizer).__name__ == expected


@pytest.mark.parametrize("name", SWAPPER_ATTRIBUTES)
def test_the_swapper_sets(name: str) -> None:
    assert name in OptimizerSwapper.__init__.__code__.co_names, f"OptimizerSwapper has no {name} any more"


@pytest.mark.parametrize("name", SWAPPER_METHODS)
def test_the_swapper_has(name: str) -> None:
    assert_has(PartitionedOptimizerSwapper, name)


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_engines_save_through(engines: dict[tuple[int, str], Engine], stage: int, dtype: str) -> None:
    engine = engines[stage, dtype].deepspeed
    for name in SAVING_ATTRIBUTES:
        assert_has(engine, name)
    assert list(signature(engine.checkpoint_engine.save).parameters) == ["state_dict", "path"]


def swapped_shard() -> OptimizerStateSwapInfo:
    shard = torch.zeros(8)
    shard.ds_id = "0_1"  # type: ignore[attr-defined]
    return OptimizerStateSwapInfo(shard, shard.numel(), "/disk", aio_handle=None)


@pytest.mark.parametrize("name", SWAPPED_ATTRIBUTES)
def test_a_swapped_shard_has(name: str) -> None:
    assert_has(swapped_shard(), name)


@pytest.mark.parametrize("name", SWAPPED_TENSOR_ATTRIBUTES)
def test_a_swapped_tensor_has(name: str) -> None:
    assert_has(swapped_shard().tensors[0], name)


def test_moments_are_swapped_to_files_of_the_known_name() -> None:
    (shard,) = swapped_shard().tensors
    assert shard.swap_path == "/disk/0_1.tensor.swp"
    moment = torch.zeros(8)
    moment.ds_id = f"{MOMENTS[0]}-0_1"  # type: ignore[attr-defined]
    context = type(shard)(moment, "/disk")
    assert context.swap_path == f"/disk/{MOMENTS[0]}-0_1.tensor.swp"


def test_zero_3s_parameters_have_a_whole_shape_and_shards_an_id(
    engines: dict[tuple[int, str], Engine],
) -> None:
    engine = engines[3, "fp32"]
    whole = dict(engines[0, "fp32"].module.named_parameters())
    for name, parameter in engine.module.named_parameters():
        assert_has(parameter, "ds_shape")
        assert_has(parameter, "all_gather")
        assert private.own_values(parameter) is parameter.ds_tensor  # type: ignore[attr-defined]
        assert private.whole_shape(parameter, is_sharded=True) == tuple(whole[name].shape)
    for shard in private.flat_shards(engine.optimizer):
        assert_has(shard, "ds_id")


def test_deepspeed_knows_a_part_by_its_mark() -> None:
    from deepspeed.runtime.utils import is_model_parallel_parameter

    parameter = torch.nn.Parameter(torch.zeros(2))
    assert not private.is_part(parameter) and not is_model_parallel_parameter(parameter)
    private.mark_as_part(parameter)
    assert private.is_part(parameter) and is_model_parallel_parameter(parameter), "model_parallel"


def test_deepspeed_keeps_an_mpu() -> None:
    from deepspeed.utils import groups

    assert_has(groups, "mpu")
    private.forget_model_parallel_unit()
    assert groups.mpu is None


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_adamw_steps_the_shards_or_masters(
    engines: dict[tuple[int, str], Engine], stage: int, dtype: str
) -> None:
    optimizer = engines[stage, dtype].optimizer
    adam = private.adam(optimizer)
    assert isinstance(adam, torch.optim.AdamW)
    shards, masters = private.flat_shards(optimizer), private.masters(optimizer) if stage == 0 else {}
    assert bool(shards) == (stage > 0)
    assert bool(masters) == ((stage, dtype) == (0, "bf16"))
    for stepped in [*shards, *masters.values()]:
        assert stepped.dtype == torch.float32
        assert set(MOMENTS) <= adam.state[stepped].keys()


@pytest.mark.parametrize(("stage", "dtype"), [each for each in SETTINGS if each[0] > 0])
def test_values_reach_the_shards(ranks: Ranks, stage: int, dtype: str) -> None:
    """The values are set before any step, as in a resumed run."""
    engine = make_engine(make_config(stage, dtype), ranks)
    state, shards = private.adam(engine.optimizer).state, private.flat_shards(engine.optimizer)
    for shard in shards:
        state[shard].update({kind: torch.zeros_like(shard) for kind in MOMENTS})
    private.link_moments(engine.optimizer)
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            shape = private.whole_shape(parameter, is_sharded=stage == 3)
            numbered = enumerate((MASTER, *MOMENTS), start=31)
            values = {kind: torch.full(shape, float(number)) for number, kind in numbered}
            private.set_optimizer_values(parameter, values)
    for shard in shards:
        held = {MASTER: shard, **{kind: state[shard][kind] for kind in MOMENTS}}
        for kind, value in values.items():
            others = held[kind] != value.flatten()[0]
            assert not held[kind][others].any(), f"{kind}: something else than values and padding"
            assert not others.all(), kind


@pytest.mark.parametrize(("stage", "dtype"), SETTINGS)
def test_an_engine_starts_without_a_step(ranks: Ranks, stage: int, dtype: str) -> None:
    """DeepSpeed takes one on zero gradients at ZeRO-0 in bf16, which decays the masters."""
    engine = make_engine(make_config(stage, dtype), ranks)
    assert not private.adam(engine.optimizer).state
    if stage == 0:
        assert all(torch.equal(low, high) for low, high in private.masters(engine.optimizer).items())


# Keys of DeepSpeed's files by the ZeRO stage and precision that writes them.
MODEL_KEYS = {
    (0, "fp32"): ["module", "shared_params", "optimizer"],
    (0, "bf16"): ["module", "shared_params", "optimizer"],
    (1, "fp32"): ["module", "shared_params"],
    (3, "bf16"): ["module", "shared_params", "param_shapes", "frozen_param_shapes", "frozen_param_fragments"],
}
OPTIMIZER_KEYS = {
    (1, "fp32"): ["base_optimizer_state", "single_partition_of_fp32_groups"],
    (1, "bf16"): ["base_optimizer_state", "single_partition_of_fp32_groups"],
    (2, "fp32"): ["base_optimizer_state", "single_partition_of_fp32_groups"],
    (3, "bf16"): ["optimizer_state_dict", "fp32_flat_groups"],
}


@pytest.fixture(scope="module")
def saved(
    engines: dict[tuple[int, str], Engine], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], Path]:
    """The folder with each engine's DeepSpeed files."""
    folders = {}
    for setting in MODEL_KEYS | OPTIMIZER_KEYS:
        checkpoint = tmp_path_factory.mktemp("checkpoint")
        engines[setting].save(checkpoint)
        folders[setting] = checkpoint / "engine"
    return folders


@pytest.mark.parametrize(
    ("setting", "key"), [(setting, key) for setting, keys in MODEL_KEYS.items() for key in keys]
)
def test_model_files_have(saved: dict[tuple[int, str], Path], setting: tuple[int, str], key: str) -> None:
    name = private.model_file(0, shard=0 if setting[0] == 3 else None)
    content = private.read_file(saved[setting] / name)
    assert key in content, f"deepspeed {deepspeed.__version__}: {name} has no {key} any more"


@pytest.mark.parametrize(
    ("setting", "key"), [(setting, key) for setting, keys in OPTIMIZER_KEYS.items() for key in keys]
)
def test_optimizer_files_have(saved: dict[tuple[int, str], Path], setting: tuple[int, str], key: str) -> None:
    (path,) = saved[setting].glob(private.optimizer_file(0, shard=0))
    content = private.read_file(path)["optimizer_state_dict"]
    assert key in content, f"deepspeed {deepspeed.__version__}: {path.name} has no {key} any more"


def test_zero_0_in_bf16_keeps_masters_and_adams_state(saved: dict[tuple[int, str], Path]) -> None:
    optimizer = private.read_file(saved[0, "bf16"] / private.model_file(0, None))["optimizer"]
    assert {"fp32_groups", "optimizer_state_dict"} <= optimizer.keys()


def test_frozen_and_tied_parameters_are_told_apart(saved: dict[tuple[int, str], Path]) -> None:
    content = private.read_file(saved[3, "bf16"] / private.model_file(0, shard=0))
    assert content["frozen_param_fragments"].keys() == {FROZEN} == content["frozen_param_shapes"].keys()
    assert FROZEN not in {name for group in content["param_shapes"] for name in group}
    assert content["shared_params"] == {"backbone.lm_head.weight": "backbone.model.embed_tokens.weight"}


# ---- Nothing private is used elsewhere, and nothing in private.py escapes the lists above ----

NAMES = {
    *(name for name, _, _ in OPTIMIZER_ATTRIBUTES),
    *SWAPPER_ATTRIBUTES,
    *SWAPPER_METHODS,
    *SWAPPED_ATTRIBUTES,
    *SWAPPED_TENSOR_ATTRIBUTES,
    *OTHER_ATTRIBUTES,
    *SAVING_ATTRIBUTES,
}
KEYS = {"fp32_groups", *(key for keys in (*MODEL_KEYS.values(), *OPTIMIZER_KEYS.values()) for key in keys)}
# What private.py uses of Python, torch and itself.
OTHERS_OWN = {"Tensor", "Parameter", "Optimizer", "optim", "shape", "get", "values", "items", "is_compatible"}
OTHERS_OWN |= {"no_grad", "copy_", "state", "clear", "append", "save", "step", "load", "serialization"}
OTHERS_OWN |= {"safe_globals"}
# DeepSpeed's names that torch or mdmscale have, too.
COMMON = {"optimizer", "dtype", "numel", "tensors", "all_gather"}


def attributes(path: Path) -> set[str]:
    """The attribute names after a dot, and the constant names in getattr."""
    tree = ast.parse(path.read_text())
    dotted = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    asked = {
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("getattr", "hasattr", "setattr")
        and isinstance(node.args[1], ast.Constant)
    }
    return {name for name in dotted | asked if isinstance(name, str) and not name.startswith("__")}


def test_every_attribute_that_private_uses_is_looked_for_here() -> None:
    used = attributes(PACKAGE / "engine" / "private.py") | set(private.SHARDS_OF.values())
    assert used - OTHERS_OWN == NAMES


def test_every_key_that_private_names_is_looked_for_here() -> None:
    constants = {value for name, value in vars(private).items() if name.isupper() and isinstance(value, str)}
    assert {
        value for value in constants if value not in (MASTER, private._ZERO_0_IN_BF16, private._ZERO_3)
    } == KEYS


def test_no_other_module_uses_a_private_name() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "private.py":
            assert not attributes(path) & (NAMES - COMMON), path


def test_only_private_imports_from_within_deepspeed() -> None:
    whole, parts = set(), set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            name = path.relative_to(PACKAGE).as_posix()
            whole |= {name for module in modules if module == "deepspeed"}
            parts |= {name for module in modules if module.startswith("deepspeed.")}
    assert parts == {"engine/private.py"}
    assert whole == {"engine/engine.py", "engine/elastic.py", "parallel/op_build.py", "parallel/ranks.py"}
