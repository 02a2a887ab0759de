"""The softmax losses without their B x N matrix: value and gradients in one pass over tiles of queries.

For rows i with query q(i), and the pool's candidates j less those hidden from the row,

    softmax: loss_i = log(exp(p_i) + exp(n_i)) - p_i,    bsl: loss_i = n_i - ratio p_i,
    n_i = log(exp(o_i) + sum_j exp(<query_q(i), pool_j> + offset_j)).

A tile holds the scores of some queries with the whole pool. Its exponentials give their sums, hence the loss of the
rows of these queries, hence at once the gradient of every score, so that two more products finish with the tile. The
rows of one query share its scores; what is hidden from a row is taken out of the tile and put back for the others.
Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021, is the same idea for attention.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.devices import has_bfloat16_products
from twotower.losses.softmax import bsl, softmax

# numbers in a tile: about what a core's cache holds, and what keeps a GPU busy
TILE_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}
MIN_TILE_ROWS = 64
# exponents of float32 reach 87: with all logits of a query in a range of this width, one shift fits all
SAFE_RANGE = 80.0
LOG2_E = 1 / math.log(2)
# of one query, so many rows share a row of scores; what each does not see is listed for all of them
GROUP_ROWS = 64
# weights below this do not count beside weights of at least 1 / B
NEGLIGIBLE = 1e-30


@dataclass(frozen=True, eq=False)
class Hidden:
    """Which candidates of the pool are no negatives of which rows: pairs (row, column), each at most once."""

    row: Int[Tensor, "P"]
    column: Int[Tensor, "P"]


class Workspace:
    """Memory that every step uses again: fresh pages from the system cost as much as the arithmetic done in them."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Memory of a shape, with what was left in it; valid until the name is taken again."""
        wanted, held = dtype or like.dtype, self._held.get(name)
        if held is None or held.numel() < math.prod(shape) or held.dtype != wanted or held.device != like.device:
            held = self._held[name] = torch.empty(math.prod(shape), dtype=wanted, device=like.device)
        return held[: math.prod(shape)].view(shape)

    def __deepcopy__(self, memo: object) -> "Workspace":
        return Workspace()


@dataclass(frozen=True, eq=False)
class Positives:
    """What B rows hold: logits p_i = <query_q(i), vectors_c(i)> + offset_i.

    Args:
        vectors: (U, D) distinct candidates.
        query_row, row: (B,) the query q(i) and the candidate c(i) of each row.
        offset: (B,) less the correction of the positive, where it is corrected.
    """

    vectors: Float[Tensor, "U D"]
    query_row: Int[Tensor, "B"]
    row: Int[Tensor, "B"]
    offset: Float[Tensor, "B"] | None = None


def fused_ratio(loss: Callable[..., Tensor]) -> tuple[bool, float | None]:
    """Whether `fused_softmax` takes a loss, and its ratio there: of softmax, bsl, and partial(bsl, ratio=...)."""
    if loss is softmax:
        return True, None
    base, given = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    if base is bsl and set(given) <= {"ratio"}:
        return True, given.get("ratio", 1.0)
    return False, None


def fused_softmax(
    query: Float[Tensor, "Q D"],
    positives: Positives,
    pool: Float[Tensor, "N D"],
    offset: Float[Tensor, "N"],
    hidden: Hidden,
    weight: Float[Tensor, "B"],
    own: Float[Tensor, "B"] | None = None,
    workspace: Workspace | None = None,
    ratio: float | None = None,
) -> Float[Tensor, ""]:
    """sum_i weight_i * loss_i, with gradients for all vectors and for own.

    Products with the pool are taken in bfloat16 under autocast to bfloat16, where the device has them; all else in the
    vectors' precision.

    Args:
        query: (Q, D) distinct queries, already divided by the temperature.
        positives: the rows.
        pool: (N, D) candidates of the pool.
        offset: (N,) added to a candidate's scores: log of its multiplicity less the correction.
        hidden: pairs of a row and a candidate of the pool to leave out.
        weight: (B,) weights of the rows.
        own: (B,) log-sum-exp o of the logits of the row's own negatives, -inf where it has none.
        workspace: to be used again by the next step.
        ratio: of `bsl`, whose rows without negatives are worth nothing; None is `softmax`.
    """
    device = query.device.type
    asked = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    low = asked and has_bfloat16_products(device)
    absent = torch.full_like(weight, -torch.inf) if own is None else own
    with torch.autocast(device, enabled=False):
        total: Tensor = _FusedSoftmax.apply(
            query, positives.vectors, pool, absent, positives, offset, hidden, weight, low, workspace or Workspace(),
            ratio,
        )  # type: ignore[no-untyped-call] # fmt: skip
    return total


class _FusedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        query: Tensor,
        candidate: Tensor,
        pool: Tensor,
        own: Tensor,
        positives: Positives,
        offset: Tensor,
        hidden: Hidden,
        weight: Tensor,
        low: bool,
        workspace: Workspace,
        ratio: float | None,
    ) -> Tensor:
        order = _RowOrder(positives.query_row)
        # B numbers are few: they are kept in float64, in the order of their queries
        o, w = own[order.rows].double(), weight[order.rows].double()
        p_offset = torch.zeros_like(o) if positives.offset is None else positives.offset[order.rows].double()
        candidate_row = positives.row[order.rows]
        d_query, d_candidate, d_own = torch.zeros_like(query), torch.zeros_like(candidate), torch.empty_like(own)
        total = w.new_zeros(())
        scores = _Scores(query.index_select(0, order.query_of_group), pool, offset, low, workspace)
        taken_out = _TakenOut(order, hidden, len(pool))
        for first, last in order.tiles(scores.rows):
            r = slice(*order.row_start[[first, last]].tolist())
            group, of_row = order.group[r] - first, candidate_row[r]
            cells = taken_out.of_tile(first, last)
            exps, sums, shift, taken = scores.exponentials(first, last, cells.flat)
            # ---- the rows' losses
            query_of_row = scores.query[first:last].index_select(0, group)
            vectors = candidate.index_select(0, of_row)
            p = (query_of_row * vectors).sum(1).double() + p_offset[r]
            back = taken[cells.cell]  # scores that are hidden from another row of the group, but not from this one
            put_back = _logsumexp(back, cells.row, len(group))
            negatives = torch.logaddexp(sums.log()[group] + shift[group], put_back)
            z = torch.logaddexp(o[r], negatives)
            if ratio is None:
                z, w_row, p_share = torch.logaddexp(p, z), w[r], 1.0
            else:
                some = ~torch.isneginf(z)
                z, w_row, p_share = torch.where(some, z, 0.0), torch.where(some, w[r], 0.0), ratio
            total += (w_row * (z - p_share * p)).sum()
            # ---- gradients: of a score, w exp(score - z) summed over the rows of the group that it is a negative of
            g = torch.zeros_like(shift).index_add_(0, group, w_row * torch.exp(shift[group] - z))
            share = w_row[cells.row] * torch.exp(back - z[cells.row])
            of_cell = torch.zeros_like(taken).index_add_(0, cells.cell, share)
            d_tile = scores.gradients(first, last, exps, g, cells.flat, of_cell)
            d_p = w_row * (torch.expm1(p - z) if ratio is None else -ratio)
            d_p = d_p.to(query.dtype)[:, None]
            d_candidate.index_add_(0, of_row, query_of_row.mul_(d_p))
            d_query.index_add_(0, order.query_of_group[first:last], d_tile.index_add_(0, group, vectors.mul_(d_p)))
            d_own[order.rows[r]] = (w_row * torch.exp(o[r] - z)).to(own.dtype)
        ctx.save_for_backward(d_query, d_candidate, scores.d_pool, d_own)
        return total.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        one = float(grad) == 1.0
        return (*(saved if one else saved * grad for saved in ctx.saved_tensors), *[None] * 7)


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

    def __init__(self, order: _RowOrder, hidden: Hidden, columns: int) -> None:
        self.order, self.columns = order, columns
        row = order.place[hidden.row]
        key, by_key = (order.group[row] * columns + hidden.column).sort()
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

    def __init__(self, query: Tensor, pool: Tensor, offset: Tensor, low: bool, workspace: Workspace) -> None:
        self.query, self.pool, self.offset, self.low = query, pool, offset, low
        elements = TILE_ELEMENTS.get(query.device.type, TILE_ELEMENTS["cpu"])
        self.rows = min(len(query), max(MIN_TILE_ROWS, elements // max(len(pool), 1)))
        tile, whole = (self.rows, len(pool)), (len(pool), query.shape[1])
        self.buffer = workspace.take("scores", tile, query)
        self.d_tile = workspace.take("query gradient", (self.rows, query.shape[1]), query)
        self.d_pool = torch.zeros_like(pool)
        self.shift = _common_shift(query, pool, offset)
        if low:
            half = torch.bfloat16
            self.low_pool = workspace.take("low pool", whole, query, half).copy_(pool)
            self.low_buffer = workspace.take("low scores", tile, query, half)
            self.low_tile = workspace.take("low query gradient", (self.rows, query.shape[1]), query, half)
            self.low_product = workspace.take("low pool gradient", whole, query, half)
            self.product = workspace.take("pool gradient", whole, query)

    def exponentials(self, first: int, last: int, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """exp(score - shift) (groups, N) with 0 in the flat places; their sums, the shifts, and the scores there."""
        # in base 2, since exp2 takes a third of the time of exp
        query, scores = self.query[first:last] * LOG2_E, self.buffer[: last - first]
        offset = (self.offset - (self.shift or 0.0)) * LOG2_E
        if self.low:
            product = self.low_buffer[: last - first]
            torch.mm(query.to(torch.bfloat16), self.low_pool.T, out=product)
            scores.copy_(product).add_(offset)
        else:
            torch.addmm(offset, query, self.pool.T, out=scores)
        taken = scores.view(-1)[flat].double() / LOG2_E + (self.shift or 0.0)
        scores.view(-1)[flat] = -torch.inf
        if self.shift is None:
            shift = scores.amax(1)
            scores.sub_(shift.masked_fill(torch.isneginf(shift), 0.0)[:, None])
            shift = shift / LOG2_E
        else:
            shift = scores.new_full((len(query),), self.shift)
        exps = scores.exp2_()
        sums = exps.sum(1).double()
        return exps, sums, shift.double().masked_fill(sums == 0, -torch.inf), taken

    def gradients(self, first: int, last: int, exps: Tensor, g: Tensor, flat: Tensor, of_cell: Tensor) -> Tensor:
        """The products of the scores' gradients, exps * g and of_cell in the flat places, with the pool (groups, D);
        those with the queries are added to d_pool."""
        negligible = g < NEGLIGIBLE
        if bool(negligible.any()):
            exps[negligible] = 0.0
            g = torch.where(negligible, 1.0, g)
        # the factor of a whole row goes on the thin side of the products
        exps.view(-1)[flat] = (of_cell / g[flat // exps.shape[1]]).to(exps.dtype)
        factor = g.to(exps.dtype)[:, None]
        weighted = self.query[first:last] * factor
        d_query = self.d_tile[: last - first]
        if self.low:
            low, low_d = self.low_buffer[: last - first].copy_(exps), self.low_tile[: last - first]
            d_query.copy_(torch.mm(low, self.low_pool, out=low_d))
            torch.mm(low.T, weighted.to(torch.bfloat16), out=self.low_product)
            self.d_pool.add_(self.product.copy_(self.low_product))
        else:
            torch.mm(exps, self.pool, out=d_query)
            self.d_pool.addmm_(exps.T, weighted)
        return d_query.mul_(factor)


def _common_shift(query: Tensor, pool: Tensor, offset: Tensor) -> float | None:
    """A bound on all logits that is so close to the smallest that one shift fits all; else None.

    |score| <= |query| |pool|, which is tight enough for normalised vectors and spares a pass over every tile.
    """
    if not len(pool) or not len(query):
        return 0.0
    reach = float(query.norm(dim=1).max() * pool.norm(dim=1).max())
    lowest, highest = (float(value) for value in offset.aminmax())
    return reach + highest if 2 * reach + highest - lowest < SAFE_RANGE else None


def _logsumexp(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """(rows,) log of the sum of exp over the values of each row, -inf for none."""
    top = values.new_full((rows,), -torch.inf).scatter_reduce_(0, row, values, "amax")
    top.masked_fill_(torch.isneginf(top), 0.0)
    return values.new_zeros(rows).index_add_(0, row, torch.exp(values - top[row])).log() + top
