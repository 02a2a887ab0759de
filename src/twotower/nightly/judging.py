"""What live and new are worth: the same questions for both, and whether the night's rows are like those before."""

import math

import numpy as np
import polars as pl
import torch
from torch import Tensor

from twotower.config.config import Config
from twotower.data.dataset import Dataset
from twotower.evaluation import Evaluation, Queries, ScoreQueries, score_vectors
from twotower.evaluation.result import RECOMMENDED
from twotower.experiment.measuring import make_evaluator
from twotower.experiment.rows import with_latest_history, with_users
from twotower.experiment.tables import Tables
from twotower.health.measures import list_overlap
from twotower.nightly.known import Affinity
from twotower.serving.encoding import embed_rows
from twotower.serving.retriever import Retriever

OTHERS = 50  # items of other rows that each row's own is compared with
FEWEST = 30  # rows and users below which nothing is said of their like


class Served:
    """A Retriever among candidates that it may not all hold: those rank behind all others, as they are never recommended.

    Args:
        retriever: live or new.
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever

    def score_queries(self, queries: Queries, candidates: Dataset) -> ScoreQueries:
        """As in Ranker."""
        held, bundle = self.retriever.items, self.retriever.bundle
        ids = candidates.to_polars()[held.id_name].to_list()
        known = torch.tensor([raw in held for raw in ids])
        vectors = torch.zeros(len(ids), bundle.index.dim)
        vectors[known] = bundle.index.vectors_of(held.keys_of([raw for raw in ids if raw in held]))
        asked = queries.select(self.retriever.query_columns).to_polars()
        score = score_vectors(embed_rows(bundle.model.query, bundle.preprocessor, asked), vectors)

        def known_first(rows: Tensor) -> Tensor:
            return score(rows).masked_fill_(~known, -torch.inf)

        return known_first


def judge(config: Config, tables: Tables, live: Retriever, new: Retriever) -> tuple[Evaluation, Evaluation]:
    """The new bundle's figures and the live one's, on the same queries among the same candidates.

    Args:
        config: says what is measured.
        tables: `train` holds what was known before the first held-out row, `validation` the held-out rows.
        live, new: what is compared.
    """
    evaluator = make_evaluator(config, tables, "validation", tables.validation)
    return evaluator(Served(new), name="new"), evaluator(Served(live), name="live")


def sameness(evaluation: Evaluation) -> float:
    """The mean share of a person's list that stands in another's too."""
    lists = evaluation.values[RECOMMENDED].to_list()
    most = max(map(len, lists))
    codes = {raw: number for number, raw in enumerate(dict.fromkeys(raw for found in lists for raw in found))}
    whole = [[codes[raw] for raw in found] for found in lists if len(found) == most]
    return float(list_overlap(torch.tensor(whole)))


def affinity(config: Config, live: Retriever, known: Tables, rows: pl.DataFrame, seed: int) -> Affinity | None:
    """How well a bundle knows whose rows are whose; None where there are too few rows of known people and items.

    Args:
        config: of the run.
        live: the bundle.
        known: `train` holds the rows before these, from which histories come.
        rows: which the bundle has not learnt.
        seed: of the draw of the others.
    """
    user, item = config.data.user, config.data.item
    held = pl.Series([raw in live.items for raw in rows[item].to_list()], dtype=pl.Boolean)
    some = rows.filter(held).join(known.train.select(user).unique(), on=user, how="semi", maintain_order="left")
    if len(some) < FEWEST or some[user].n_unique() < FEWEST:
        return None
    asked = with_latest_history(config, with_users(config, some, known.users), known.train)
    bundle = live.bundle
    queries = embed_rows(bundle.model.query, bundle.preprocessor, asked.select(live.query_columns))
    items = bundle.index.vectors_of(live.items.keys_of(some[item].to_list()))
    others = torch.randint(len(some), (OTHERS, len(some)), generator=torch.Generator().manual_seed(seed))
    own, above = (queries * items).sum(1), torch.zeros(len(some))
    for other in others:
        theirs = (queries * items[other]).sum(1)
        above += (own > theirs).float() + 0.5 * (own == theirs).float()
    shares = pl.DataFrame({"user": some[user], "share": (above / OTHERS).double().numpy()})
    mean = float(shares["share"].mean())  # type: ignore[arg-type]
    sums = shares.group_by("user").agg((pl.col("share") - mean).sum())["share"].to_numpy()
    return Affinity(mean, math.sqrt(float(np.square(sums).sum())) / len(shares))
