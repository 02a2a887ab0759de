"""The best k candidates of every query, in tiles: the matrix of all scores is never held."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from twotower.data.ragged import Ragged
from twotower.evaluation.task import RankingTask

# Scores (T, N) of a tile of queries with all candidates, given the queries' numbers (T,). They are compared as float32. The
# evaluator writes into them, and is done with them before it asks for the next: one buffer will do, a table that is kept will not.
ScoreQueries = Callable[[Tensor], Tensor]
SCORES_IN_MEMORY = 2**24  # of one tile: 64 MB of float32; larger ones are no faster
_LOW = 2**31  # the lower half of a sort key


@dataclass(frozen=True, eq=False)
class Ranked:
    """The first K candidates of Q queries.

    Args:
        places: (Q, K) their positions in the catalogue, best first; -1 where none is left.
        hits: (Q, K) 1 where the candidate is a positive of the query, else 0.
    """

    places: Int[Tensor, "Q K"]
    hits: Int[Tensor, "Q K"]


def rank(score: ScoreQueries, task: RankingTask, k: int) -> Ranked:
    """Rank all candidates for all queries, less those that the query has seen, and keep the first k.

    Ties lose: among equal scores positives come last, and else the order of the catalogue decides. Memory is one tile of
    scores and the (Q, k) result.

    Args:
        score: gives the scores; higher is better, -inf is never recommended.
        task: who is asked, and what is right.
        k: how many, at most the number of candidates.

    Raises:
        ValueError: k is larger than the catalogue, or a score is nan.
    """
    check_cut_off(k, task.num_candidates)
    parts = [_rank_tile(scores, task.positives.take(rows), k) for rows, scores in score_tiles(score, task)]
    return Ranked(torch.cat([places for places, _ in parts]), torch.cat([hits for _, hits in parts]))


def check_cut_off(k: int, num_candidates: int) -> None:
    """ValueError when there are fewer candidates than k."""
    if k > num_candidates:
        raise ValueError(
            f"a metric at k={k} needs at least {k} candidates; the catalogue has {num_candidates}. "
            f"Lower k, such as metrics=['recall_at_{num_candidates}']."
        )


def score_tiles(score: ScoreQueries, task: RankingTask) -> Iterator[tuple[Tensor, Tensor]]:
    """The queries' numbers (T,) and their scores (T, N), -inf where seen, tile after tile."""
    for rows in torch.arange(len(task.queries)).split(max(1, SCORES_IN_MEMORY // task.num_candidates)):
        scores, seen = _checked(score(rows), (len(rows), task.num_candidates)), task.seen.take(rows)
        scores[seen.row_of_value().to(scores.device), seen.values.to(scores.device)] = -torch.inf
        yield rows, scores


def _checked(scores: object, shape: tuple[int, int]) -> Tensor:
    """The scores as float32 that can be written to; ValueError for anything but a tensor (T, N)."""
    if not isinstance(scores, Tensor) or scores.shape != shape or scores.dtype == torch.bool:
        came = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"a ranker must give a tensor of numbers (queries, candidates), here {shape}; got {came}.")
    return scores.float().contiguous()  # an expanded tensor is one row of memory for all


def score_vectors(queries: Float[Tensor, "Q D"], candidates: Float[Tensor, "N D"]) -> ScoreQueries:
    """Scores as the products of vectors, on the candidates' device."""
    queries = queries.to(candidates.device)
    # one buffer: memory that is new in every tile costs as much as the products
    tile: list[Tensor] = []

    def score(rows: Tensor) -> Tensor:
        if not tile or len(tile[0]) < len(rows):
            tile[:] = [candidates.new_empty(len(rows), len(candidates))]
        return torch.mm(queries[rows.to(queries.device)], candidates.T, out=tile[0][: len(rows)])

    return score


def _rank_tile(scores: Float[Tensor, "T N"], positives: Ragged, k: int) -> tuple[Tensor, Tensor]:
    """(T, k) places and hits of a tile."""
    positives = positives.to(scores.device)
    best, places = top_k(scores, min(k + 1, scores.shape[1]))
    if bool(best[:, 0].isnan().any()):
        raise ValueError("the model scores candidates with nan; lower the learning rate or look for nan in its inputs.")
    # equal scores come in any order: where there are some, rank the row again by keys that are all different
    tied = ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -torch.inf)).any(1)
    best, places = best[:, :k], places[:, :k]
    for rows in torch.nonzero(tied).flatten().split(max(1, len(scores) // 4)):
        places[rows] = top_k(_keys(scores[rows], positives.take(rows)), k)[1]
    places = places.masked_fill(best == -torch.inf, -1)
    return places.cpu(), _hits(places, positives, scores.shape[1]).cpu()


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, largest first, as torch.topk gives them.

    The largest k of a row lie in the k groups with the largest maxima, so that only these are sorted: about three times
    as fast on a million columns.
    """
    rows, columns = values.shape
    size = 2 ** round(math.log2(max(1, columns / k)) / 2)  # groups and their members are then about as many
    if size < 8:
        top, at = values.topk(k, dim=1)
        return top, at
    groups = columns // size
    # column c is in group c % groups, so that a maximum runs over whole rows of memory
    most = values[:, : groups * size].unflatten(1, (size, groups)).amax(1)
    best = most.topk(min(k, groups), dim=1).indices
    members = torch.arange(size, device=values.device)[None, :, None] * groups + best[:, None, :]
    rest = torch.arange(groups * size, columns, device=values.device).expand(rows, -1)
    chosen = torch.cat([members.flatten(1), rest], dim=1)
    top, at = values.gather(1, chosen).topk(k, dim=1)
    return top, chosen.gather(1, at)


def _keys(scores: Float[Tensor, "T N"], positives: Ragged) -> Int[Tensor, "T N"]:
    """Integers that sort by score, then negatives before positives, then by place."""
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: minus zero is zero
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # a float's bits, read as an integer, sort by its size
    keys = order * 2 * _LOW + _LOW // 2 + torch.arange(scores.shape[1] - 1, -1, -1, device=scores.device)
    keys[positives.row_of_value(), positives.values] -= _LOW // 2
    return keys


def _hits(places: Int[Tensor, "T K"], positives: Ragged, num_candidates: int) -> Int[Tensor, "T K"]:
    """1 where a row's place is among its positives."""
    rows = torch.arange(len(places), device=places.device)[:, None]
    known = (positives.row_of_value() * num_candidates + positives.values).sort().values
    asked = torch.where(places < 0, -1, rows * num_candidates + places)
    if not len(known):
        return torch.zeros_like(places)
    return (known[torch.searchsorted(known, asked).clamp(max=len(known) - 1)] == asked).long()
