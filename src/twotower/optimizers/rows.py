"""Optimisers for embedding tables: a step touches the rows that the batch looked up, and no others.

Their cost does not depend on the number of rows. A gradient is sparse (see EmbeddingTable.row_gradients), each row in it
once with the sum over its occurrences, so that an id that repeats in a batch counts as in a dense gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Rows = Int[Tensor, "R"]
Values = Float[Tensor, "R D"]


class OtherOptimizerError(ValueError):
    """A state that another optimiser has saved."""


def check_options(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """OtherOptimizerError where the groups of a saved state lack options that the optimiser's have."""
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        lacking = sorted(own.keys() - saved.keys() - {"initial_lr"})
        if lacking:
            raise OtherOptimizerError(
                f"the optimizer's state is of another optimizer: its options {sorted(saved.keys() - {'params'})} lack {lacking}. "
                "Compile with the one that it was saved with, such as compile(table_optimizer='lazy_adam'), or call compile() "
                "after loading, to begin the optimizer's state anew."
            )


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Updates the rows that have a gradient."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a saved state, if it is of this optimiser."""
        check_options(self, state_dict)
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # a loss, as the closure gives it
        """One step on the rows touched since the gradients were last cleared."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    rows, gradient = touched_rows(weight.grad)
                    values = weight.index_select(0, rows)
                    weight.index_copy_(0, rows, self.updated(values, gradient, rows, weight, self.state[weight], group))
        return loss

    @abstractmethod
    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """The rows' new values; may write to `values`, and to the same rows of the state."""


class LazyAdam(RowOptimizer):
    """Adam whose moments of a row stand still while the row is not looked up; what Merlin's LazyAdam does.

    Where every row is looked up in every step it is PyTorch's Adam. Otherwise a row that was not looked up keeps its
    value, while Adam would go on moving it by its old momentum.

    Args:
        params: tables.
        lr, betas, eps: as in torch.optim.Adam.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- w - lr m^ / (sqrt(v^) + eps)."""
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        b1, b2 = group["betas"]
        mean = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - b1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        unbiased = square.sqrt_().div_((1 - b2 ** state["step"]) ** 0.5).add_(group["eps"])
        return values.addcdiv_(mean, unbiased, value=-group["lr"] / (1 - b1 ** state["step"]))


class RowAdam(RowOptimizer):
    """torch.optim.Adam without momentum, betas=(0, b2), on the touched rows; for the others nothing would change anyway.

    The second moment of a row decays with every step, looked up or not, and is caught up when the row comes again. A row that is
    looked up in a share p of the steps moves by about lr / sqrt(p) each time, as under Adam over all rows, while LazyAdam moves
    all rows by lr: rare users and items learn faster here. Its state is one number for each weight, and one for each row.

    Args:
        params: tables.
        lr, eps: as in torch.optim.Adam.
        beta2: of the second moment.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float = 1e-3, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "beta2": beta2, "eps": eps})

    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """v <- b2^(steps since the last one) v + (1 - b2) g^2, w <- w - lr g / (sqrt(v^) + eps)."""
        if "seen" not in state:
            # anew, or from torch.optim.Adam's state, in which every row has seen every step
            state.pop("exp_avg", None)
            state.setdefault("step", 0)
            state.setdefault("exp_avg_sq", torch.zeros_like(weight))
            state["seen"] = torch.full((len(weight),), float(state["step"]), device=weight.device)
        state["step"] += 1
        beta2, step = group["beta2"], state["step"]
        decay = beta2 ** (step - state["seen"].index_select(0, rows))
        square = state["exp_avg_sq"].index_select(0, rows).mul_(decay[:, None])
        square.addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        state["seen"].index_fill_(0, rows, float(step))
        unbiased = square.sqrt_().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        return values.addcdiv_(gradient, unbiased, value=-group["lr"])


class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one number of state for a whole row: a <- a + mean(g^2), w <- w - lr g / (sqrt(a) + eps).

    The optimiser of large recommendation tables (FBGEMM's EXACT_ROWWISE_ADAGRAD): its state is 1 / D of the table's size.

    Args:
        params: tables.
        lr, eps: step size and the number that keeps it finite.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """One step."""
        if not state:
            state["sum"] = weight.new_zeros(len(weight))
        total = state["sum"].index_select(0, rows).add_(gradient.square().mean(1))
        state["sum"].index_copy_(0, rows, total)
        return values.addcdiv_(gradient, total.sqrt_().add_(group["eps"])[:, None], value=-group["lr"])


class RowAdagrad(RowOptimizer):
    """torch.optim.Adagrad on the touched rows; for the others nothing would change anyway.

    Args:
        params: tables.
        lr, eps: as in torch.optim.Adagrad.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2, eps: float = 1e-10) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """a <- a + g^2, w <- w - lr g / (sqrt(a) + eps)."""
        if not state:
            state["sum"] = torch.zeros_like(weight)
        total = state["sum"].index_select(0, rows).addcmul_(gradient, gradient)
        state["sum"].index_copy_(0, rows, total)
        return values.addcdiv_(gradient, total.sqrt_().add_(group["eps"]), value=-group["lr"])


class RowSGD(RowOptimizer):
    """w <- w - lr g on the touched rows.

    Args:
        params: tables.
        lr: step size.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    def updated(
        self, values: Values, gradient: Values, rows: Rows, weight: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> Values:
        """One step."""
        return values.sub_(gradient, alpha=group["lr"])


def touched_rows(gradient: Tensor) -> tuple[Rows, Values]:
    """The distinct rows of a table's gradient and the sum for each; of a dense gradient all rows."""
    if not gradient.is_sparse:
        return torch.arange(len(gradient), device=gradient.device), gradient
    if gradient.is_coalesced():
        return gradient.indices()[0], gradient.values()
    rows, place = torch.unique(gradient._indices()[0], return_inverse=True)
    values = gradient._values()
    return rows, values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values)
