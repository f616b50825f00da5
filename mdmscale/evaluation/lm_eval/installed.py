"""Whether lm-evaluation-harness, an extra, is there. Imports neither it nor torch."""

from importlib.util import find_spec

from mdmscale.system.errors import UserError


def check_installed() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        UserError: naming the extra.
    """
    if find_spec("lm_eval") is None:
        raise UserError(
            "lm-evaluation-harness is not installed; install it with: pip install 'mdmscale[lm-eval]'"
        )
