"""`python -m mdmscale.evaluation.lm_eval`: the command `lm_eval`, with the model `mdmscale` added.

The harness has no other way to add a model to its command line: it looks up names of its own package only.
Under torchrun (`-m mdmscale.evaluation.lm_eval`) the ranks share the questions.
"""

import sys

from mdmscale.system.errors import run_command


def main() -> int:
    """Run lm_eval's command line.

    Raises:
        UserError: where lm-eval is not installed, or the model cannot be opened.
    """
    from mdmscale.evaluation.lm_eval.installed import check_installed

    check_installed()
    from lm_eval.__main__ import cli_evaluate

    import mdmscale.evaluation.lm_eval.model  # noqa: F401  (registers the model)

    try:
        cli_evaluate()
    finally:
        _leave()
    return 0


def _leave() -> None:
    """Leave the group of ranks that the model has joined."""
    import torch.distributed as dist

    if dist.is_initialized():
        from mdmscale.parallel.ranks import finalise

        finalise()


if __name__ == "__main__":
    sys.exit(run_command(main))
