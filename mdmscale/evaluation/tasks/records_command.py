"""`evaluate records`: write a task's training records, for data.kind: sft."""

import argparse
import json
from pathlib import Path

from mdmscale.evaluation.tasks.catalogue import load_task
from mdmscale.evaluation.tasks.task import Task
from mdmscale.system.errors import UserError
from mdmscale.system.files import written_file

EXAMPLES = """\
examples:
  # GSM8K's training set as conversations, from a local copy
  python tools/evaluate.py records --task gsm8k --data train.jsonl --output data/gsm8k_train.jsonl

  # 5,000 generated sums for a model without a chat template; evaluation asks others
  python tools/evaluate.py records --task reasoning-gym:chain_sum --limit 5000 --plain \\
      --output data/sums.jsonl

Train on the file with data.kind: sft and data.path. Its prompts have the tokens that `evaluate tasks` gives
the model, if both go through the chat template or neither does.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--task", required=True, metavar="NAME", help="a shipped task, reasoning-gym:NAME, or your YAML file"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="the training data (default: where the task says it is)"
    )
    parser.add_argument("--tables", type=Path, metavar="DIR", help="hitab: the folder of the tables")
    parser.add_argument("--limit", type=int, metavar="N", help="write only the first N records")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="write conversations, for a chat template")
    form.add_argument("--plain", action="store_true", help="write prompts and responses as plain text")
    form.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="write what fits this tokenizer (a folder or hub id): conversations if it has a chat template",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSONL file")
    parser.add_argument("--overwrite", action="store_true", help="replace an --output that exists")


def run(arguments: argparse.Namespace) -> None:
    """Write the records.

    Raises:
        UserError: where the task, its data or the output is wrong.
    """
    output: Path = arguments.output
    if output.exists() and not arguments.overwrite:
        raise UserError(f"--output {output}: exists already; choose another, or give --overwrite")
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit}: must be at least 1")
    task = load_task(arguments.task, arguments.tables)
    chat = is_chat(task, arguments)
    items = task.items(arguments.data, arguments.limit, split="train")
    lines = [json.dumps(task.trained(item, chat), ensure_ascii=False) + "\n" for item in items]
    with written_file(output) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    form = "conversations (for a model without a chat template: --plain)" if chat else "prompts and responses"
    print(f"{output}: {len(lines):,} {form}; train on them with data.kind: sft")


def is_chat(task: Task, arguments: argparse.Namespace) -> bool:
    """Whether to write conversations: as the options say, else as the task does, else yes."""
    if arguments.chat or arguments.plain:
        return bool(arguments.chat)
    if arguments.tokenizer is not None:
        from mdmscale.models.tokenizer import load_tokenizer

        return task.uses_chat(load_tokenizer(arguments.tokenizer, "--tokenizer"))
    return task.file.chat != "never"
