"""Pooling: the vectors of a list to one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twotower.data.ragged import Ragged
from twotower.errors import choose

Combined = Float[Tensor, "B D"]
# a name of COMBINERS, or a module from Ragged vectors (total, D) to (B, D)
Combiner = str | nn.Module


def combine(vectors: Ragged, combiner: Combiner) -> Combined:
    """Pool the vectors of each row to one: (B, D); by name, an empty row gives zeros."""
    if isinstance(combiner, nn.Module):
        return combiner(vectors)
    return choose("sequence_combiner", combiner, COMBINERS)(vectors)


def check_combiner(combiner: Combiner) -> None:
    """ValueError with the choices for an unknown name."""
    if isinstance(combiner, str):
        choose("sequence_combiner", combiner, COMBINERS)


def as_ragged(vectors: Tensor | Ragged) -> Ragged:
    """Lists of one fixed length, (B, L, D), as B lists of L vectors."""
    if isinstance(vectors, Ragged):
        return vectors
    rows, length, dim = vectors.shape
    offsets = torch.arange(0, rows * length + 1, max(length, 1), device=vectors.device)[: rows + 1]
    return Ragged(vectors.reshape(-1, dim), offsets)


def combine_weighted(vectors: Ragged, weights: Float[Tensor, "total"], combiner: str) -> Combined:
    """Pool by a weight for each element: (B, D); a row whose weights sum to 0, such as an empty one, gives zeros.

    "sum" is sum_i w_i v_i; "mean" divides it by sum_i w_i, "sqrtn" by sqrt(sum_i w_i^2). With all weights 1 they are the
    combiners of the same names.

    Args:
        vectors: B lists of vectors (total, D).
        weights: at least 0.
        combiner: "mean", "sum" or "sqrtn".
    """
    row = vectors.row_of_value()
    total = _sum(Ragged(vectors.values * weights[:, None], vectors.offsets))
    size = choose("weighted sequence_combiner", combiner, SIZES)(weights.new_zeros(vectors.num_rows), row, weights)
    return total / torch.where(size > 0, size, 1.0)[:, None]


def parallel_weights(vectors: Ragged, given: Tensor | Ragged, name: str, weights_name: str) -> Float[Tensor, "total"]:
    """The values of a list column of weights, if it goes along with the lists it weighs.

    Raises:
        ValueError: lists of other lengths, no lists, or a negative weight.
    """
    weights = given if isinstance(given, Ragged) or given.ndim != 2 else as_ragged(given[:, :, None])
    if torch.compiler.is_exporting() and isinstance(weights, Ragged):  # a graph without branches cannot refuse
        return weights.values.reshape(-1).to(vectors.values.dtype)
    if not isinstance(weights, Ragged) or not torch.equal(weights.offsets, vectors.offsets):
        raise ValueError(
            f"column {weights_name!r} must hold one weight for each element of column {name!r}, but "
            f"{_difference(vectors, weights)}. Make both lists of one length in every row."
        )
    values = weights.values.reshape(-1).to(vectors.values.dtype)
    if bool((values < 0).any()):
        raise ValueError(
            f"column {weights_name!r} holds negative weights, down to {float(values.min())}; expected numbers of at least 0."
        )
    return values


def _difference(vectors: Ragged, weights: Tensor | Ragged) -> str:
    if not isinstance(weights, Ragged):
        return "it holds one number a row"
    wanted, came = vectors.lengths(), weights.lengths()
    if len(wanted) != len(came):
        return f"they have {len(came)} and {len(wanted)} rows"
    row = int((wanted != came).nonzero()[0])
    return f"in row {row} it has {int(came[row])} and the other {int(wanted[row])}"


class AttentionPooling(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """The vectors of a list by their importance: sum_i a_i v_i, with a = softmax of <w, v_i> over the list and w learnt.

    A `sequence_combiner` of Embeddings and EmbeddingTable. w starts at 0, where it is the mean. An empty list gives zeros.
    The scores of Yang et al., "Hierarchical Attention Networks for Document Classification", NAACL 2016, pass through a
    layer with tanh first; here they are linear in the vectors, which are learnt themselves.

    Args:
        dim: D, the width of the vectors; None reads it from the first batch.

    Raises:
        ValueError: dim below 1, or (in forward) vectors of another width.

    Example:
        >>> pooling = AttentionPooling(2)
        >>> lists = Ragged(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), torch.tensor([0, 2, 2]))
        >>> pooling(lists).tolist()
        [[2.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"AttentionPooling needs dim >= 1, or None to read it from the first batch; got {dim}.")
        self.dim = dim
        self.weight = nn.UninitializedParameter() if dim is None else nn.Parameter(torch.zeros(dim))

    def initialize_parameters(self, vectors: Ragged) -> None:
        """Make w as wide as the vectors; PyTorch calls this before the first forward."""
        if isinstance(self.weight, nn.UninitializedParameter):
            self.weight.materialize((vectors.values.shape[-1],))
            nn.init.zeros_(self.weight)

    def forward(self, vectors: Ragged) -> Combined:
        """B lists of vectors (total, D) to (B, D)."""
        values, row = vectors.values, vectors.row_of_value()
        if values.shape[-1] != len(self.weight):
            raise ValueError(
                f"this AttentionPooling has learnt vectors of width {len(self.weight)}, but got width {values.shape[-1]}. Give "
                "columns of different widths a module each: sequence_combiner={column: AttentionPooling(), ...}."
            )
        score = (values * self.weight).sum(-1)
        # less the list's largest, no exp overflows and every sum is at least 1
        largest = score.new_full((vectors.num_rows,), -torch.inf).scatter_reduce(0, row, score.detach(), "amax")
        share = (score - largest[row]).exp()
        total = share.new_zeros(vectors.num_rows).index_add(0, row, share)
        return _sum(Ragged(values * (share / total[row]).to(values.dtype)[:, None], vectors.offsets))


def _reduce(vectors: Ragged, how: str) -> Combined:
    pooled = vectors.values.new_zeros(vectors.num_rows, vectors.values.shape[-1])
    rows = vectors.row_of_value()[:, None].expand_as(vectors.values)
    return pooled.scatter_reduce(0, rows, vectors.values, how, include_self=False)


def _sum(vectors: Ragged) -> Combined:
    pooled = vectors.values.new_zeros(vectors.num_rows, vectors.values.shape[-1])
    return pooled.index_add(0, vectors.row_of_value(), vectors.values)


def _mean(vectors: Ragged) -> Combined:
    return DIVISORS["mean"](_sum(vectors), vectors.lengths())


def _sqrtn(vectors: Ragged) -> Combined:
    return DIVISORS["sqrtn"](_sum(vectors), vectors.lengths())


def _max(vectors: Ragged) -> Combined:
    return _reduce(vectors, "amax")


# from a row's sum and its length to what the combiner of that name gives
DIVISORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda total, length: total,
    "mean": lambda total, length: total / length.clamp(min=1)[:, None],
    "sqrtn": lambda total, length: total / length.clamp(min=1).sqrt()[:, None],
}
COMBINERS: dict[str, Callable[[Ragged], Tensor]] = {"mean": _mean, "sum": _sum, "sqrtn": _sqrtn, "max": _max}

Size = Callable[[Tensor, Tensor, Tensor], Tensor]
# what a weighted sum is divided by: from zeros (B,), the row of each element (total,) and its weight
SIZES: dict[str, Size] = {
    "mean": lambda zeros, row, weights: zeros.index_add(0, row, weights),
    "sum": lambda zeros, row, weights: zeros + 1,
    "sqrtn": lambda zeros, row, weights: zeros.index_add(0, row, weights.square()).sqrt(),
}
