"""The softmax loss without its B x N matrix: value and gradients in one pass over tiles of queries.

For rows i with query q(i), and the pool's candidates j less those hidden from the row,

    loss_i = log(exp(p_i) + exp(o_i) + sum_j exp(<query_q(i), pool_j> + offset_j)) - p_i.

A tile holds the scores of some queries with the whole pool. Its exponentials give their sums, hence the loss of the
rows of these queries, hence at once the gradient of every score, so that two more products finish with the tile. The
rows of one query share its scores; what is hidden from a row is taken out of the tile and put back for the others.
Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, is the same idea for attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

# numbers in a tile: about what a core's cache holds, and what keeps a GPU busy
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
MIN_TILE_ROWS = 64
# exponents of float32 reach 87: with all logits of a query in a range of this width, one shift fits all
SAFE_RANGE = 80.0
# of one query, so many rows share a row of scores; what each does not see is listed for all of them
GROUP_ROWS = 64
# weights below this do not count beside weights of at least 1 / B
NEGLIGIBLE = 1e-30


@dataclass(frozen=True, eq=False)
class Hidden:
    """Which candidates of the pool are no negatives of which rows: pairs (row, column), each at most once."""

    row: Int[Tensor, "P"]
    column: Int[Tensor, "P"]


def fused_softmax(
    query: Float[Tensor, "Q D"],
    pool: Float[Tensor, "N D"],
    offset: Float[Tensor, "N"],
    positive: Float[Tensor, "B"],
    own: Float[Tensor, "B"] | None,
    weight: Float[Tensor, "B"],
    query_row: Int[Tensor, "B"],
    hidden: Hidden,
) -> Float[Tensor, ""]:
    """sum_i weight_i * loss_i, with gradients for query, pool, positive and own.

    Products are taken in bfloat16 under autocast to bfloat16, sums in the vectors' precision.

    Args:
        query: (Q, D) distinct queries, already divided by the temperature.
        pool: (N, D) candidates of the pool.
        offset: (N,) added to a candidate's scores: log of its multiplicity less the correction.
        positive: (B,) logits p.
        own: (B,) logits o, the log-sum-exp of the row's own negatives, -inf where it has none.
        weight: (B,) weights of the rows.
        query_row: (B,) the query of each row.
        hidden: pairs to leave out.
    """
    device = query.device.type
    low = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    absent = torch.full_like(positive, -torch.inf) if own is None else own
    with torch.autocast(device, enabled=False):
        total: Tensor = _FusedSoftmax.apply(
            query, pool, offset, positive, absent, weight, query_row, hidden.row, hidden.column, low
        )  # type: ignore[no-untyped-call]
    return total


class _FusedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        pool: Tensor,
        offset: Tensor,
        positive: Tensor,
        own: Tensor,
        weight: Tensor,
        query_row: Tensor,
        hidden_row: Tensor,
        hidden_column: Tensor,
        low: bool,
    ) -> Tensor:
        order = _RowOrder(query_row)
        # B numbers are few: they are kept in float64, in the order of their queries
        p, o, w = (values[order.rows].double() for values in (positive, own, weight))
        besides = torch.logaddexp(p, o)
        z = torch.empty_like(p)
        scores = _Scores(query[order.query_of_group], pool, offset, low)
        taken_out = _TakenOut(order, hidden_row, hidden_column, len(pool))
        for first, last in order.tiles(scores.rows):
            r = slice(*order.row_start[[first, last]].tolist())
            group = order.group[r] - first
            cells = taken_out.of_tile(first, last)
            exps, sums, shift, taken = scores.exponentials(first, last, cells.flat)
            # ---- the rows' losses
            back = taken[cells.cell]  # scores that are hidden from another row of the group, but not from this one
            put_back = _logsumexp(back, cells.row, r.stop - r.start)
            negatives = torch.logaddexp(sums.log()[group] + shift[group], put_back)
            z[r] = torch.logaddexp(besides[r], negatives)
            # ---- gradients: of a score, w exp(score - z) summed over the rows of the group that it is a negative of
            g = torch.zeros_like(shift).index_add_(0, group, w[r] * torch.exp(shift[group] - z[r]))
            share = w[r][cells.row] * torch.exp(back - z[r][cells.row])
            of_cell = torch.zeros_like(taken).index_add_(0, cells.cell, share)
            scores.gradients(first, last, exps, g, cells.flat, of_cell)
        d_positive, d_own = torch.empty_like(positive), torch.empty_like(positive)
        d_positive[order.rows] = (w * torch.expm1(p - z)).to(positive.dtype)
        d_own[order.rows] = (w * torch.exp(o - z)).to(positive.dtype)
        d_query = torch.zeros_like(query).index_add_(0, order.query_of_group, scores.d_query)
        ctx.save_for_backward(d_query, scores.d_pool, d_positive, d_own)
        return (w * (z - p)).sum().to(positive.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_query, d_pool, d_positive, d_own = ctx.saved_tensors
        return (d_query * grad, d_pool * grad, None, d_positive * grad, d_own * grad, *[None] * 5)


class _RowOrder:
    """The rows in the order of their queries, in groups: at most GROUP_ROWS rows of one query."""

    def __init__(self, query_row: Tensor) -> None:
        query, self.rows = query_row.sort(stable=True)
        place = torch.arange(len(query), device=query.device)
        in_query = place - torch.searchsorted(query, query)
        begins = in_query % GROUP_ROWS == 0
        self.group = begins.cumsum(0) - 1  # (B,) of the ordered rows
        self.query_of_group = query[begins]
        self.row_start = torch.cat([place[begins], place.new_tensor([len(query)])])
        self.place = torch.empty_like(place).scatter_(0, self.rows, place)  # of each row, in this order

    def tiles(self, groups: int) -> list[tuple[int, int]]:
        """(first, last) group of each tile, last not included."""
        total = len(self.query_of_group)
        return [(first, min(first + groups, total)) for first in range(0, total, groups)]


@dataclass(frozen=True, eq=False)
class _TileCells:
    """The places of a tile that some row of their group does not see.

    Args:
        flat: (C,) the cells, as places in the flattened tile.
        cell, row: (M,) for every row, the cells of its group that it sees nevertheless.
    """

    flat: Tensor
    cell: Tensor
    row: Tensor


class _TakenOut:
    """What is hidden from rows, tile by tile."""

    def __init__(self, order: _RowOrder, hidden_row: Tensor, hidden_column: Tensor, columns: int) -> None:
        self.order, self.columns = order, columns
        row = order.place[hidden_row]
        key, by_key = (order.group[row] * columns + hidden_column).sort()
        self.pair_row = row[by_key]
        distinct, self.pair_cell = torch.unique_consecutive(key, return_inverse=True)
        self.cell_group, self.cell_column = distinct // columns, distinct % columns
        groups = torch.arange(len(order.query_of_group) + 1, device=key.device)
        self.cell_start = torch.searchsorted(self.cell_group, groups)
        self.pair_start = torch.searchsorted(key, groups * columns)

    def of_tile(self, first: int, last: int) -> _TileCells:
        c0, c1 = self.cell_start[[first, last]].tolist()
        p0, p1 = self.pair_start[[first, last]].tolist()
        r0, r1 = self.order.row_start[[first, last]].tolist()
        group = self.order.group[r0:r1]
        start = self.cell_start[group] - c0
        each = self.cell_start[group + 1] - c0 - start
        # every row with every cell of its group, less the pairs that are hidden
        total = int(each.sum())
        row = torch.repeat_interleave(each, output_size=total)
        before = each.cumsum(0) - each
        cell = torch.arange(total, device=row.device) - (before - start)[row]
        sees = torch.ones(total, dtype=torch.bool, device=row.device)
        hidden = self.pair_row[p0:p1] - r0
        sees[before[hidden] + self.pair_cell[p0:p1] - c0 - start[hidden]] = False
        flat = (self.cell_group[c0:c1] - first) * self.columns + self.cell_column[c0:c1]
        return _TileCells(flat, cell[sees], row[sees])


class _Scores:
    """Scores of groups' queries with the whole pool, a tile at a time in buffers that are used again."""

    def __init__(self, query: Tensor, pool: Tensor, offset: Tensor, low: bool) -> None:
        self.query, self.pool, self.offset, self.low = query, pool, offset, low
        elements = TILE_ELEMENTS.get(query.device.type, TILE_ELEMENTS["cpu"])
        self.rows = min(len(query), max(MIN_TILE_ROWS, elements // max(len(pool), 1)))
        self.buffer = query.new_empty(self.rows, len(pool))
        self.low_pool = pool.to(torch.bfloat16) if low else pool
        self.low_buffer = self.buffer.to(torch.bfloat16) if low else self.buffer
        self.d_query, self.d_pool = torch.empty_like(query), torch.zeros_like(pool)
        self.shift = _common_shift(query, pool, offset)

    def exponentials(self, first: int, last: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """exp(score - shift) (groups, N) with 0 in the flat places; their sums, the shifts, and the scores there."""
        query, scores = self.query[first:last], self.buffer[: last - first]
        offset = self.offset - (self.shift or 0.0)
        if self.low:
            product = self.low_buffer[: last - first]
            torch.mm(query.to(torch.bfloat16), self.low_pool.T, out=product)
            scores.copy_(product).add_(offset)
        else:
            torch.addmm(offset, query, self.pool.T, out=scores)
        taken = scores.view(-1)[flat].double() + (self.shift or 0.0)
        scores.view(-1)[flat] = -torch.inf
        if self.shift is None:
            shift = scores.amax(1)
            shift.masked_fill_(torch.isneginf(shift), 0.0)  # everything is hidden from this group
            scores.sub_(shift[:, None])
        else:
            shift = scores.new_full((len(query),), self.shift)
        exps = scores.exp_()
        return exps, exps.sum(1).double(), shift.double(), taken

    def gradients(self, first: int, last: int, exps: Tensor, g: Tensor, flat: Tensor, of_cell: Tensor) -> None:
        """Add the products of the scores' gradients, exps * g and of_cell in the flat places, with pool and queries."""
        negligible = g < NEGLIGIBLE
        if bool(negligible.any()):
            exps[negligible] = 0.0
            g = torch.where(negligible, 1.0, g)
        # the factor of a whole row goes on the thin side of the products
        exps.view(-1)[flat] = (of_cell / g[flat // exps.shape[1]]).to(exps.dtype)
        factor = g.to(exps.dtype)[:, None]
        weighted = self.query[first:last] * factor
        if self.low:
            low = self.low_buffer[: last - first].copy_(exps)
            self.d_query[first:last] = torch.mm(low, self.low_pool) * factor
            self.d_pool += torch.mm(low.T, weighted.to(torch.bfloat16))
        else:
            self.d_query[first:last] = torch.mm(exps, self.pool) * factor
            self.d_pool.addmm_(exps.T, weighted)


def _common_shift(query: Tensor, pool: Tensor, offset: Tensor) -> float | None:
    """A bound on all logits that is so close to the smallest that one shift fits all; else None.

    |score| <= |query| |pool|, which is tight enough for normalised vectors and spares a pass over every tile.
    """
    reach = float(query.norm(dim=1).max() * pool.norm(dim=1).max())
    lowest, highest = (float(value) for value in offset.aminmax())
    return reach + highest if 2 * reach + highest - lowest < SAFE_RANGE else None


def _logsumexp(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """(rows,) log of the sum of exp over the values of each row, -inf for none."""
    top = values.new_full((rows,), -torch.inf).scatter_reduce_(0, row, values, "amax")
    top.masked_fill_(torch.isneginf(top), 0.0)
    return values.new_zeros(rows).index_add_(0, row, torch.exp(values - top[row])).log() + top
