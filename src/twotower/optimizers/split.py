"""One optimiser over two: tables by their rows, everything else densely."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from twotower.optimizers.rows import check_options


class SplitOptimizer(torch.optim.Optimizer):
    """Steps several optimisers as one, with one state: for schedulers, checkpoints and the Trainer it is a single one.

    Args:
        parts: optimisers over different parameters.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._built = False
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._built = True
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
        """Take the state of all parts, if it is of the same optimisers."""
        check_options(self, state_dict)
        super().load_state_dict(state_dict)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not after construction: it would belong to no part.

        Raises:
            ValueError: a group is added.
        """
        if self._built:
            raise ValueError(
                "a SplitOptimizer takes no more parameter groups: build it anew from optimisers that have them."
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: PyTorch's keeps the groups and the state only."""
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a copy; the parts share its groups and state."""
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """The parts work on this optimiser's groups and state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
