"""What a run carries from step to step, and a checkpoint keeps."""

from typing import Any, Protocol


class Stateful(Protocol):
    """A part of a run with a state of its own, in PyTorch's two verbs.

    The state is JSON: floats survive it bit for bit. A checkpoint keeps each part's state under the part's
    name and knows nothing of what is in it.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state that `state_dict` gave, on a part that was made with this run's options."""
        ...
