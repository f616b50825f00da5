"""The interface of a part of a run whose state belongs in checkpoints."""

from typing import Any, Protocol


class Stateful(Protocol):
    """A part of a run that has a state, with PyTorch's two methods.

    The state is JSON, in which floats keep every bit. A checkpoint stores each part's state under the part's
    name, whatever the state contains.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned. The part itself is made with this run's options."""
        ...
