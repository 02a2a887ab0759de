"""Ranking the whole catalogue for every query, and what the lists are worth."""

from twotower.evaluation.evaluator import Evaluator, Ranker
from twotower.evaluation.queries import Queries
from twotower.evaluation.ranking import Ranked, ScoreQueries, rank, score_vectors
from twotower.evaluation.result import Difference, Estimate, Evaluation, SliceEstimates, compare, tabulate
from twotower.evaluation.slices import SliceBy
from twotower.evaluation.task import RankingTask, ranking_task
from twotower.evaluation.tower import evaluate_ranking, evaluate_tower, in_batch_relevance

__all__ = [
    "Difference", "Estimate", "Evaluation", "Evaluator", "Queries", "Ranked", "Ranker", "RankingTask", "ScoreQueries",
    "SliceBy", "SliceEstimates", "compare", "evaluate_ranking", "evaluate_tower", "in_batch_relevance", "rank",
    "ranking_task", "score_vectors", "tabulate",
]  # fmt: skip
