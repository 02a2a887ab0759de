"""Exact search: every query with every vector that is allowed, and the order of results."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from twotower.evaluation.ranking import top_k

# scores held at once, 16 MB
SCORES = 2**22
# vectors scored at once for many queries, and those of them that are passed over at once
TILE = 16_384
BLOCK = 128
# candidates kept beyond k, whose order a matrix product's rounding may have changed
MARGIN = 16


def scan(
    queries: Float[Tensor, "B D"],
    k: int,
    vectors: Float[Tensor, "N D"],
    keys: Int[Tensor, "N"],
    largest_norm: float,
    *,
    banned: Int[Tensor, "pairs 2"] | None = None,
    mask: Bool[Tensor, "N"] | None = None,
    tile: int | None = None,
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The k best of some vectors, best first, of equal ones those with the smaller keys: scores and places.

    The score of a pair is the same float32 number in every batch and among any other vectors: the best k are chosen by a
    matrix product, whose rounding depends on its size, with all that its rounding leaves open, and their scores then
    taken one by one.

    Args:
        queries, vectors, keys: on one device.
        k: at least 1; beyond the candidates there are, scores are -inf and places -1.
        largest_norm: at least that of every vector.
        banned: (pairs, 2) query row and place that must not come for it.
        mask: the vectors that may come; None for all.
        tile: vectors scored at once; None for so many that their scores stay in the processor's cache.
    """
    if tile is None:
        tile = max(TILE, min(16 * TILE, SCORES // max(1, len(queries))))
    parts = []
    for start in range(0, len(queries), max(1, SCORES // tile)):
        block = queries[start : start + max(1, SCORES // tile)]
        mine = None
        if banned is not None:
            mine = banned[(banned[:, 0] >= start) & (banned[:, 0] < start + len(block))] - torch.tensor(
                [start, 0], device=banned.device
            )
        parts.append(_scan_block(block, k, vectors, keys, largest_norm, mine, mask, tile, k + MARGIN))
    return torch.cat([scores for scores, _ in parts]), torch.cat([places for _, places in parts])


def _scan_block(
    queries: Tensor,
    k: int,
    vectors: Tensor,
    keys: Tensor,
    largest_norm: float,
    banned: Tensor | None,
    mask: Tensor | None,
    tile: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    rough, places = _widest(queries, min(width, len(vectors)), vectors, banned, mask, tile)
    found = ordered(queries, rough, places, vectors, keys, k)
    if width >= len(vectors):
        return found
    # a float32 product of D terms, in any order, is wrong by less than D * 2^-24 * |q| |v|: twice that for a rough score
    # and its exact one, and twice again for the candidate at place k
    slack = 4 * queries.shape[1] * 2.0**-24 * largest_norm * queries.norm(dim=1)
    last = rough[:, -1]
    crowded = torch.nonzero((last > -torch.inf) & (last >= rough[:, k - 1] - slack)).flatten()
    if len(crowded):
        mine = None
        if banned is not None:
            row = torch.full((len(queries),), -1, device=banned.device)
            row[crowded] = torch.arange(len(crowded), device=banned.device)
            mine = torch.stack([row[banned[:, 0]], banned[:, 1]], dim=1)
            mine = mine[mine[:, 0] >= 0]
        if width == k + MARGIN:
            again = _scan_block(queries[crowded], k, vectors, keys, largest_norm, mine, mask, tile, 8 * width)
        else:
            again = _every(queries[crowded], k, vectors, keys, mine, mask)
        found[0][crowded], found[1][crowded] = again
    return found


def _every(
    queries: Tensor, k: int, vectors: Tensor, keys: Tensor, banned: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The k best where very many scores are equal: all candidates' own scores, some at a time, with the best so far beside them.

    Candidates come by key, so that of equal scores those that came before stay before.
    """
    order = keys.argsort()
    if mask is not None:
        order = order[mask[order]]
    place_of = torch.empty_like(keys)
    place_of[order] = torch.arange(len(order), device=keys.device)
    best = queries.new_full((len(queries), k), -torch.inf)
    places = torch.full((len(queries), k), -1, device=keys.device)
    zero = queries.eq(0).all(1)  # every score is 0: those with the smallest keys that are allowed
    step = max(BLOCK, SCORES // (16 * len(queries)))
    for start in range(0, len(order), step):
        at = order[start : start + step]
        open_rows = torch.nonzero(~(zero & (best[:, -1] > -torch.inf))).flatten()
        if not len(open_rows):
            break
        scores = inner(queries[open_rows], at.expand(len(open_rows), -1), vectors)
        if banned is not None:
            row_of = torch.full((len(queries),), -1, device=keys.device)
            row_of[open_rows] = torch.arange(len(open_rows), device=keys.device)
            allowed = torch.ones(len(vectors), dtype=torch.bool, device=keys.device) if mask is None else mask
            here = banned[allowed[banned[:, 1]]]
            column, row = place_of[here[:, 1]] - start, row_of[here[:, 0]]
            inside = (column >= 0) & (column < len(at)) & (row >= 0)
            scores[row[inside], column[inside]] = -torch.inf
        better = (scores > best[open_rows, -1:]).any(1)  # an equal one comes after those that are there
        open_rows, scores = open_rows[better], scores[better]
        both = torch.cat([best[open_rows], scores], dim=1)
        names = torch.cat([places[open_rows], at.expand(len(open_rows), -1)], dim=1)
        # a stable sort keeps the order of equal scores, which topk does not
        values, chosen = both.sort(dim=1, descending=True, stable=True)
        best[open_rows], places[open_rows] = values[:, :k], names.gather(1, chosen[:, :k])
    return best, places.masked_fill_(best == -torch.inf, -1)


def _widest(
    queries: Tensor, width: int, vectors: Tensor, banned: Tensor | None, mask: Tensor | None, tile: int
) -> tuple[Tensor, Tensor]:
    """The `width` largest of the matrix product's scores, in any order of equal ones."""
    best = _Best(width)
    for start in range(0, len(vectors), tile):
        scores = queries @ vectors[start : start + tile].T
        if mask is not None:
            scores.masked_fill_(~mask[start : start + tile], -torch.inf)
        if banned is not None:
            here = banned[(banned[:, 1] >= start) & (banned[:, 1] < start + tile)]
            scores[here[:, 0], here[:, 1] - start] = -torch.inf
        best.take(scores, start)
    return best.result()


class _Best:
    """The largest scores so far of each row. Once there are enough, most of a tile is passed over: whole blocks of it lie below
    the smallest that counts."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.values = self.places = self.least = torch.empty(0)
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # row, score, place

    def take(self, scores: Float[Tensor, "B T"], start: int) -> None:
        rows, columns = scores.shape
        if not self.values.numel() or self.values.shape[1] < self.width:
            values, places = top_k(scores, min(self.width, columns))
            if self.values.numel():
                values, places = torch.cat([self.values, values], 1), torch.cat([self.places, places + start], 1)
            else:
                places = places + start
            self._keep(values, places)
            return
        whole = columns - columns % BLOCK
        blocks = scores[:, :whole].unflatten(1, (-1, BLOCK))
        row, block = torch.nonzero(blocks.amax(2) > self.least[:, None], as_tuple=True)
        hit, at = torch.nonzero(blocks[row, block] > self.least[row, None], as_tuple=True)
        self._wait(scores, row[hit], block[hit] * BLOCK + at, start)
        row, at = torch.nonzero(scores[:, whole:] > self.least[:, None], as_tuple=True)
        self._wait(scores, row, at + whole, start)
        if sum(len(row) for row, _, _ in self.waiting) > rows * self.width // 2:
            self._merge()

    def _wait(self, scores: Tensor, row: Tensor, column: Tensor, start: int) -> None:
        if len(row):
            self.waiting.append((row, scores[row, column], column + start))

    def _merge(self) -> None:
        row, score, place = (torch.cat(part) for part in zip(*self.waiting, strict=True))
        self.waiting = []
        order = row.argsort()
        row, score, place = row[order], score[order], place[order]
        counts = torch.bincount(row, minlength=len(self.values))
        at = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        values = score.new_full((len(self.values), int(counts.max())), -torch.inf)
        places = torch.zeros_like(values, dtype=torch.int64)
        values[row, at], places[row, at] = score, place
        self._keep(torch.cat([self.values, values], 1), torch.cat([self.places, places], 1))

    def _keep(self, values: Tensor, places: Tensor) -> None:
        self.values, order = values.topk(min(self.width, values.shape[1]), dim=1)
        self.places = places.gather(1, order)
        self.least = self.values[:, -1]

    def result(self) -> tuple[Tensor, Tensor]:
        if self.waiting:
            self._merge()
        return self.values, self.places


def ordered(
    queries: Float[Tensor, "B D"],
    rough: Float[Tensor, "B W"],
    places: Int[Tensor, "B W"],
    vectors: Float[Tensor, "N D"],
    keys: Int[Tensor, "N"],
    k: int,
) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The k best of some candidates of each query, by their own scores and then their keys; -inf and -1 for none.

    Args:
        rough: -inf for a place that does not count.
        places: of the vectors; anything in range where it does not count.
    """
    scores = inner(queries, places, vectors).masked_fill_(rough == -torch.inf, -torch.inf)
    by_key = keys[places].argsort(dim=1, stable=True)
    best, order = scores.gather(1, by_key).sort(dim=1, descending=True, stable=True)
    best, chosen = best[:, :k], places.gather(1, by_key.gather(1, order))[:, :k]
    short = k - best.shape[1]
    if short > 0:
        best = torch.nn.functional.pad(best, (0, short), value=-torch.inf)
        chosen = torch.nn.functional.pad(chosen, (0, short), value=-1)
    return best, chosen.masked_fill(best == -torch.inf, -1)


def inner(
    queries: Float[Tensor, "B D"], places: Int[Tensor, "B W"], vectors: Float[Tensor, "N D"]
) -> Float[Tensor, "B W"]:
    """The inner product of each query with its own candidates, each by itself."""
    rows = max(1, 2**18 // max(1, places.shape[1] * vectors.shape[1]))
    if vectors.device.type == "cpu":  # NumPy's loop is three times as fast as what PyTorch offers for this
        table, asked, at = vectors.numpy(), queries.numpy(), places.numpy()
        scores = np.empty(at.shape, dtype=np.float32)
        for start in range(0, len(at), rows):
            part = slice(start, start + rows)
            np.einsum("bwd,bd->bw", table[at[part]], asked[part], out=scores[part])
        return torch.from_numpy(scores)
    rows *= 64
    parts = [
        (vectors[at] * asked[:, None]).sum(-1)
        for at, asked in zip(places.split(rows), queries.split(rows), strict=True)
    ]
    return torch.cat(parts)
