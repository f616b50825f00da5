"""Loading a config: what is read, what is refused, and the messages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config.conftest import COMPLETE, problems
from conftest import SHIPPED

from mdmscale.config.keys import describe_keys
from mdmscale.config.loading import dump_config, load_config, validate
from mdmscale.config.origin import Origin
from mdmscale.parallel.batch_layout import make_layout
from mdmscale.system.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, number",
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        ("1.5e-5", 1.5e-5),
        ("0.1", 0.1),
        (".5", 0.5),
        ("1.", 1.0),
        ("1", 1.0),
        ("1_0.0", 10.0),
    ],
)
def test_numbers_as_people_write_them(config_file: Path, text: str, number: float) -> None:
    config_file.write_text(COMPLETE.replace("1e-4", text))
    assert load_config(config_file).optimizer.lr == number
    assert load_config(config_file, [f"optimizer.weight_decay={text}"]).optimizer.weight_decay == number


def test_sft_is_packed_where_attention_can_keep_samples_apart(config_file: Path) -> None:
    def packs(*overrides: str) -> bool:
        return make_layout(load_config(config_file, list(overrides)), 1).packs

    sft = ("data.kind=sft", "data.path=x.jsonl")
    assert not packs() and packs("train.packing=true")
    assert packs(*sft) and not packs(*sft, "train.packing=false") and not packs(*sft, "model.attention=eager")


@pytest.mark.parametrize("text", ["no", "on", "2024-01-31", "x1e5", "e4", "1e"])
def test_words_stay_words(config_file: Path, text: str) -> None:
    assert load_config(config_file, [f"run.name={text}"]).run.name == text


def test_duplicate_keys_are_named_with_their_line(config_file: Path) -> None:
    config_file.write_text(COMPLETE + "run: {name: again}\n")
    assert problems(config_file) == ["line 6: duplicate key 'run'"]
    config_file.write_text(COMPLETE.replace("steps: 10,", "steps: 10, steps: 20,"))
    assert problems(config_file) == ["line 4: duplicate key 'steps'"]


def test_yaml_merge_keys_work(config_file: Path) -> None:
    text = COMPLETE.replace("train: {", "train: &train {") + "eval: {<<: *train, every: 5}\n"
    config_file.write_text(text)
    unknown = [line.partition(":")[0] for line in problems(config_file)]
    assert unknown == ["eval.steps", "eval.global_batch_size", "eval.micro_batch_size"]


@pytest.mark.parametrize(
    "override, unknown, suggestion",
    [
        ("train.step=3", "train.step", "train.steps"),
        ("model.hiden_size=4", "model.hiden_size", "model.hidden_size"),
        ("diffusion.p_pots.targt=loss", "diffusion.p_pots.targt", "diffusion.p_pots.target"),
        ("train.lr=1e-3", "train.lr", "optimizer.lr"),
        ("optimizer.seed=1", "optimizer.seed", "run.seed"),
        ("diffusion.target=loss", "diffusion.target", "diffusion.p_pots.target"),
        ("steps=3", "steps", "train.steps"),
        ("optimiser.lr=1", "optimiser", "optimizer"),
    ],
)
def test_unknown_keys_come_with_the_nearest(
    config_file: Path, override: str, unknown: str, suggestion: str
) -> None:
    found = f"override {override!r}: {unknown}: unknown key; did you mean {suggestion}?"
    assert problems(config_file, override) == [found]
    values = yaml.safe_load(COMPLETE) | {"diffusion": {"p_pots": {}}}
    section, (*parents, name) = values, unknown.split(".")
    for parent in parents:
        section = section[parent]
    section[name] = yaml.safe_load(override.partition("=")[2])
    config_file.write_text(yaml.safe_dump(values))
    assert problems(config_file) == [f"{unknown}: unknown key; did you mean {suggestion}?"]


def test_unknown_keys_without_a_likeness_point_to_the_list(config_file: Path) -> None:
    found = "override 'run.zzzzzz=1': run.zzzzzz: unknown key; see --keys for the known ones"
    assert problems(config_file, "run.zzzzzz=1") == [found]


@pytest.mark.parametrize(
    "overrides, expected",
    [
        # several keys that do not fit: the overrides among them are named beside the file
        (["train.steps=5", "optimizer.warmup_steps=9"], "with train.steps=5 optimizer.warmup_steps=9: "),
        (["run.seed=1", "train.micro_batch_size=3"], "with train.micro_batch_size=3: train: "),
        (["data.held_out=0", "eval.every=5"], "with data.held_out=0 eval.every=5: "),
        # the last of two overrides of a key is the one that is wrong, and a good one is not blamed
        (["train.steps=5", "train.steps=none", "run.seed=3"], "override 'train.steps=none': train.steps"),
        # a section that only the override has, and one that hides the file's
        (["optimizr.lr=1"], "override 'optimizr.lr=1': optimizr: unknown key"),
        (["train=[1]"], "override 'train=[1]': train = [1]: expected a section"),
        (["diffusion.p_pots.probe_steps=[0, -1]"], "override 'diffusion.p_pots.probe_steps=[0, -1]': "),
    ],
)
def test_a_problem_is_blamed_on_the_override_that_causes_it(
    config_file: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(config_file, overrides)
    (problem,) = caught.value.problems
    assert problem.removeprefix(f"{config_file} ").startswith(expected)


def test_the_file_is_blamed_for_its_own_mistakes(config_file: Path) -> None:
    config_file.write_text(COMPLETE.replace("steps: 10", "stepz: 10"))
    assert problems(config_file, "train.micro_batch_size=4", "run.seed=2") == [
        "train.steps: required, but not given",
        "train.stepz: unknown key; did you mean train.steps?",
    ]


def test_all_problems_are_reported_at_once(config_file: Path) -> None:
    config_file.write_text(
        COMPLETE.replace("steps: 10", "steps: ten")
        .replace("kind: tokens, ", "")
        .replace("name: test", "nme: test")
    )
    assert problems(config_file) == [
        "run.name: required, but not given",
        "run.nme: unknown key; did you mean run.name?",
        "data.kind: required, but not given",
        "train.steps = 'ten': input should be a valid integer",
    ]


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.steps=1.5", "train.steps = 1.5: input should be a valid integer"),
        ("train.steps=true", "train.steps = True: input should be a valid integer"),
        ("train.steps='3'", "train.steps = '3': input should be a valid integer"),
        ("train.steps=0", "train.steps = 0: input should be greater than or equal to 1"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': input should be a valid number"),
        ("optimizer.lr=.inf", "optimizer.lr = inf: input should be a finite number"),
        ("run.name=7", "run.name = 7: input should be a valid string"),
        ("logging.tensorboard=1", "logging.tensorboard = 1: input should be a valid boolean"),
        ("model.dtype=fp16", "model.dtype = 'fp16': input should be 'fp32' or 'bf16'"),
        ("optimizer.betas=[0.9]", "optimizer.betas = [0.9]: list should have at least 2 items"),
        ("train=5", "train = 5: expected a section with keys under it"),
        ("train=null", "train = None: expected a section with keys under it"),
    ],
)
def test_wrong_types_and_values(config_file: Path, override: str, expected: str) -> None:
    (problem,) = problems(config_file, override)
    assert problem.startswith(f"override {override!r}: {expected}")


@pytest.mark.parametrize(
    "text, number",
    [("1e3", 1000), ("1E6", 1_000_000), ("2.0", 2), ("3_000.", 3000), ("12", 12)],
)
def test_whole_numbers_may_be_written_as_floats(config_file: Path, text: str, number: int) -> None:
    steps = load_config(config_file, [f"train.steps={text}"]).train.steps
    assert (steps, type(steps)) == (number, int)
    config_file.write_text(COMPLETE.replace("steps: 10", f"steps: {text}"))
    assert load_config(config_file).train.steps == number


def test_whole_floats_reach_optional_integers_and_lists_of_them(config_file: Path) -> None:
    lists = ["diffusion.p_pots.probe_steps=[0, 1e0]", "data.num_workers=null"]
    config = load_config(config_file, ["diffusion.t_sampler=stratified", "diffusion.strata=8.0", *lists])
    assert config.diffusion.strata == 8 and type(config.diffusion.strata) is int
    assert [type(step) for step in config.diffusion.p_pots.probe_steps] == [int, int]
    assert config.data.num_workers is None
    assert type(load_config(config_file, ["optimizer.lr=1e0"]).optimizer.lr) is float


def test_an_override_opens_a_section_that_the_file_sets_to_null(config_file: Path) -> None:
    config_file.write_text(COMPLETE.replace("{tokenizer: tok,", "{path: m, lora: null, tokenizer: tok,"))
    lora = load_config(config_file, ["model.lora.rank=4"]).model.lora
    assert lora is not None and lora.rank == 4
    assert load_config(config_file).model.lora is None


def test_overrides_reach_nested_keys_lists_and_null(config_file: Path) -> None:
    config = load_config(
        config_file,
        [
            "diffusion.p_pots.probe_steps=[0, 100]",
            "diffusion.p_pots.defensive=0.1",
            "data.path=[a, b]",
            "model.num_key_value_heads=2",
            "model.num_key_value_heads=null",
            "optimizer.betas=[0.9, 0.99]",
            "run.output_dir=",
        ],
    )
    assert config.diffusion.p_pots.probe_steps == [0, 100]
    assert config.diffusion.p_pots.defensive == 0.1
    assert config.data.path == ["a", "b"]
    assert config.model.num_key_value_heads is None
    assert config.optimizer.betas == [0.9, 0.99]
    assert config.run.output_dir == ""


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.steps", "override 'train.steps': write section.key=value, such as train.steps=100"),
        ("=3", "override '=3': write section.key=value, such as train.steps=100"),
        ("data.path=[a", "override 'data.path=[a': line 1: "),
        ("train.steps.more=1", "override 'train.steps.more=1': steps is a value, not a section"),
    ],
)
def test_malformed_overrides(config_file: Path, override: str, expected: str) -> None:
    (problem,) = problems(config_file, override)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "expected sections with keys"),
        ("- a\n", "expected sections with keys"),
        ("run: [\n", "line 2: "),
        ("? [a]\n: 1\n", "line 1: found unhashable key"),
    ],
)
def test_files_that_are_no_config(config_file: Path, text: str, expected: str) -> None:
    config_file.write_text(text)
    (problem,) = problems(config_file)
    assert problem.startswith(expected)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config .*missing\.yaml: no such file"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match=f"--config {tmp_path}: is a folder; give a YAML file"):
        load_config(tmp_path)
    (tmp_path / "config.yaml").write_text(COMPLETE)
    with pytest.raises(UserError, match=f"is a folder; give {tmp_path}/config.yaml to repeat that run"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", ["plain", "1e-4", "1e5", "no", "true", "null", "2024-01-31", "007", "1.5"])
def test_dumped_configs_load_to_an_equal_config(config_file: Path, name: str) -> None:
    config = load_config(
        config_file, [f"run.name='{name}'", "diffusion.p_pots.probe_steps=[0, 5]", "data.path=[a, b]"]
    )
    config_file.write_text(dump_config(config))
    assert load_config(config_file) == config


def test_dtype_has_its_long_names(config_file: Path) -> None:
    assert load_config(config_file, ["model.dtype=bfloat16"]).model.dtype == "bf16"
    assert load_config(config_file, ["model.dtype=float32"]).model.dtype == "fp32"


@pytest.mark.parametrize(
    ("text", "meant"), [("true", "full"), ("false", "none"), ("none", "none"), ("selective", "selective")]
)
def test_recomputation_is_a_choice_or_a_switch(config_file: Path, text: str, meant: str) -> None:
    config = load_config(config_file, [f"model.activation_checkpointing={text}"])
    assert config.model.activation_checkpointing == meant


def test_configs_cannot_be_changed(config_file: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config(config_file).train.steps = 5


def test_a_mirror_pair_is_two_rows(config_file: Path) -> None:
    assert load_config(config_file).diffusion.rows_per_sample == 1
    assert load_config(config_file, ["diffusion.masking=mirror"]).diffusion.rows_per_sample == 2


def test_importing_the_configuration_does_not_import_torch() -> None:
    code = (
        "import sys, mdmscale.config.run, mdmscale.config.loading\n"
        "print(sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == "[]\n"


def test_configs_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert validate(yaml.safe_load(dump_config(config)), Origin("dump")) == config


def test_every_key_is_read_by_the_package() -> None:
    read = set()
    for path in (ROOT / "mdmscale").rglob("*.py"):
        if path.parent.name != "config":
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            read |= {
                node.attr
                for node in nodes
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
            }
    unread = [key.name for key in describe_keys() if key.name.rpartition(".")[2] not in read]
    assert not unread, f"keys that no code reads: {unread}"
