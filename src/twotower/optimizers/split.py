"""One optimiser over two: tables by their rows, everything else densely."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class SplitOptimizer(torch.optim.Optimizer):
    """Steps several optimisers as one, with one state: for schedulers, checkpoints and the Trainer it is a single one.

    Args:
        parts: optimisers over different parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # a loss, as the closure gives it
        """One step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of all parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's groups and state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
