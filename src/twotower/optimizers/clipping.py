"""Gradient clipping that counts sparse gradients too; PyTorch's own stops at them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from twotower.optimizers.rows import touched_rows


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, algorithm: str = "norm") -> float:
    """Scale all gradients so that their common norm is at most `limit`, or ("value") cut each number to [-limit, limit].

    Returns:
        The norm before.
    """
    values = [_values(parameter) for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(values)
    for gradient in values:
        if algorithm == "value":
            gradient.clamp_(-limit, limit)
        else:
            gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    return norm


def gradient_norm(gradients: Iterable[Tensor]) -> float:
    """The norm of all gradients together; of sparse ones with each row counted once."""
    dense = [touched_rows(g)[1] if g.is_sparse else g for g in gradients]
    return float(torch.stack([g.float().norm() for g in dense]).norm()) if dense else 0.0


def _values(parameter: nn.Parameter) -> Tensor:
    """The numbers of a gradient, to be changed in place; rows that came in several pieces are summed first."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    if not gradient.is_coalesced():
        rows, values = touched_rows(gradient)
        gradient = torch.sparse_coo_tensor(
            rows[None], values, gradient.shape, is_coalesced=True, check_invariants=False
        )
        parameter.grad = gradient
    return gradient._values()
