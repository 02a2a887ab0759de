"""The nightly refresh: learn the fresh rows, judge the new bundle beside the live one, publish it only if it is not worse."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import polars as pl

from twotower.bundle import Bundle
from twotower.data.splits import split_by_time
from twotower.evaluation import Difference, Evaluation, compare
from twotower.experiment.features import user_features
from twotower.experiment.lock import held
from twotower.experiment.run import Say, quiet
from twotower.experiment.tables import Tables
from twotower.feature_stores.parquet import ParquetFeatures
from twotower.files import PathLike, written_aside
from twotower.nightly import verdict
from twotower.nightly.fresh import Fresh, catalogue, read_fresh
from twotower.nightly.judging import affinity, judge, sameness
from twotower.nightly.known import Affinity, Known, Ledger, live_path, read_known
from twotower.nightly.learning import is_finite, learn, rows_to_learn
from twotower.nightly.publishing import publish, settle
from twotower.nightly.rules import RefreshRules
from twotower.serving.retriever import Retriever

Outcome = Literal["published", "kept", "nothing"]


@dataclass(frozen=True)
class Refreshed:
    """What came of a refresh.

    Args:
        outcome: "published"; "kept" if the live bundle stays; "nothing" if there was nothing to do.
        reasons: why the live bundle stays, or would have stayed but for `force`.
        report: all that was found, as plain JSON.
        path: the file that holds the report.
        comparison: new less live, metric by metric; () if it did not come to that.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    report: Mapping[str, Any]
    path: Path | None  # None until it is written
    comparison: tuple[Difference, ...] = ()


def refresh(
    live: PathLike,
    interactions: PathLike | Sequence[PathLike],
    *,
    items: PathLike | Sequence[PathLike] | None = None,
    users: PathLike | Sequence[PathLike] | None = None,
    run: PathLike | None = None,
    rules: RefreshRules | None = None,
    skip_known: bool = False,
    force: bool = False,
    say: Say = quiet,
) -> Refreshed:
    """Bring a live bundle up to date with fresh interactions; it is replaced only by one that is not worse.

    The latest share of the fresh rows is held out. The rest is learnt by a copy of the live model, which takes in new users and
    items, together with rows held out before and a sample of old rows. Live and new answer the same queries of the held-out rows,
    among the same candidates, from what was known before. The new bundle is published at once, the live one stays as
    PATH.previous, and the report lies in PATH.refresh/reports.

    Args:
        live: the bundle's folder, or the run that holds it.
        interactions: Parquet of the rows after those that the live bundle knows, with the columns of the config.
        items: Parquet of all items that can be recommended from now on. Without it the live ones stay; where the config has
            no data.items, those of the learnt rows are added.
        users: Parquet of new or changed users.
        run: the run that made the bundle, if it stands elsewhere. It is asked at the first refresh alone; then the bundle knows its
            rows.
        rules: how to learn, and what decides.
        skip_known: leave out rows that are not after the known ones, instead of refusing them.
        force: publish whatever the rules say, but never a model that holds nan.
        say: told each stage.

    Raises:
        ValueError: a damaged bundle, no run that it comes from, rows that the bundle knows, a column that is missing or of
            another type; another refresh of the bundle is under way.

    Example:
        >>> found = tt.refresh("live", "tonight.parquet", items="items.parquet")    # doctest: +SKIP
        >>> found.outcome, found.reasons                                            # doctest: +SKIP
        ('published', ())
    """
    path, started = live_path(live), time.perf_counter()
    rules = rules or RefreshRules()
    with held(Ledger(path).folder):
        settle(path)
        say(f"loading and verifying {path}")
        served = Retriever.load(path)
        known = read_known(served.bundle, path, run)
        fresh = read_fresh(known, served.bundle.items, _paths(interactions), _paths(items), _paths(users), skip_known)
        report: dict[str, Any] = {"bundle": str(path), "rules": asdict(rules), "notes": list(fresh.notes)}
        report |= {"night": known.night + 1, "known_until": str(known.rows[known.time].max())}
        if not len(fresh.rows):
            return _nothing_new(path, known, fresh, report, say)
        night = _Night(path, served, known, fresh, rules, say, report)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            done = night.work(force)
        report["notes"] += list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
        report["seconds"] = round(time.perf_counter() - started, 2)
        file = _write_report(Ledger(path), report)
    return replace(done, path=file)


class _Night:
    """One refresh, from the fresh rows to a verdict."""

    def __init__(
        self, path: Path, live: Retriever, known: Known, fresh: Fresh, rules: RefreshRules, say: Say, report: dict[str, Any]
    ) -> None:  # fmt: skip
        self.path, self.live, self.known, self.fresh = path, live, known, fresh
        self.rules, self.say, self.report = rules, say, report
        self.config = known.config
        self.before: Affinity | None = None
        self.now: Affinity | None = None

    def work(self, force: bool) -> Refreshed:
        """Look at the rows, learn, judge, publish."""
        to_learn, held_out = self._parts()
        items = catalogue(self.config, self.live.bundle.items, self.fresh, to_learn)
        to_learn, held_out = (self._listed(part, items) for part in (to_learn, held_out))
        lost = self._describe(held_out, items)
        found = [self._unlike(), verdict.items_lost(lost, len(self.live.bundle.items), self.rules)]
        reasons = [reason for reason in found if reason is not None]
        if not len(to_learn) or not len(held_out):
            return self._done("kept", [*reasons, "no fresh row to learn, or none to judge by, is of a candidate."])
        if not self._new_to_someone(to_learn, held_out):
            return self._done("kept", [*reasons, verdict.ALL_SEEN])
        if reasons and not force:
            return self._done("kept", reasons)
        tables = Tables(pl.concat([self.known.rows, to_learn]), held_out, held_out.clear(), items, self.fresh.users)
        retriever = self._learnt(tables)
        if retriever is None:
            return self._done("kept", [*reasons, "training ran away: the new model holds nan or infinite numbers."])
        self.say("judging live and new on the rows held out")
        new, live = judge(self.config, tables, self.live, retriever)
        differences = compare(new, live)
        reasons += self._objections(new, live, differences)
        self._tell(new, live, differences)
        if reasons and not force:
            return self._done("kept", reasons, differences)
        self.say("publishing")
        measure = verdict.reference(self.before, self.now, sound=not reasons)
        publish(self._bundle(retriever, new, to_learn, held_out, measure), self.path)
        return self._done("published", reasons, differences)

    def _parts(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The fresh rows to learn, and the latest to judge by."""
        rows, time, share = self.fresh.rows, self.known.time, self.rules.held_out
        try:
            return split_by_time(rows, time, share)
        except ValueError:  # nearly all are of one moment, such as a date
            self.report["notes"].append(
                f"most fresh rows are of one {time!r}: of these the last in the file are held out."
            )
            ordered = rows.sort(time, maintain_order=True)
            cut = round(len(rows) * (1 - share))
            return ordered[:cut], ordered[cut:]

    def _new_to_someone(self, to_learn: pl.DataFrame, held_out: pl.DataFrame) -> bool:
        """Whether a held-out row is left to judge by, once those that repeat what their person had are not asked."""
        if not self.config.evaluation.remove_seen:
            return True
        pair = [self.config.data.user, self.config.data.item]
        had = pl.concat([self.known.rows.select(pair), to_learn.select(pair)])
        return len(held_out.join(had, on=pair, how="anti")) > 0

    # ---- learning

    def _listed(self, rows: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
        """Rows with items that can be recommended."""
        item = self.config.data.item
        kept = rows.join(items.select(item), on=item, how="semi", maintain_order="left")
        if len(kept) < len(rows):
            gone = rows.join(items.select(item), on=item, how="anti")
            self.report["notes"].append(
                f"{len(gone):,} of {len(rows):,} rows are of {gone[item].n_unique():,} items that are no candidates, such as "
                f"{gone[item][0]!r}; they are left out. New items come with the table of items."
            )
        return kept

    def _learnt(self, tables: Tables) -> Retriever | None:
        rows, new = rows_to_learn(self.known, tables, self.rules)
        self.report["rows"] |= {"learnt": new, "replayed": len(rows) - new}
        self.say(f"learning {new:,} rows, and {len(rows) - new:,} old ones again")
        bundle = self.live.bundle
        model, preprocessor = learn(
            self.config, bundle.model, bundle.preprocessor, tables, rows, self.rules, self.known.night
        )
        if not is_finite(model):
            return None
        return Retriever(model, preprocessor, tables.items, index=bundle.index.rebuilt)

    def _bundle(
        self, new: Retriever, judged: Evaluation, to_learn: pl.DataFrame, held_out: pl.DataFrame, measure: Affinity | None
    ) -> Bundle:  # fmt: skip
        """What is published: with the latest histories, and with where its rows lie."""
        known, ledger = self.known, Ledger(self.path)
        everything = Tables(
            pl.concat([known.rows, to_learn, held_out]), held_out.clear(), held_out.clear(), new.bundle.items, self.fresh.users
        )  # fmt: skip
        store = ParquetFeatures(user_features(self.config, everything, new.bundle.preprocessor), self.config.data.user)
        before = known.files or {"learnt": ledger.write(known.learnt, "rows"), "owed": ledger.write(known.owed, "rows")}
        origin = {
            "format": 1,
            "night": known.night + 1,
            "learnt": {**before["learnt"], **before["owed"], **ledger.write(to_learn, "rows")},
            "owed": ledger.write(held_out, "rows"),
            "users": {} if self.fresh.users is None else ledger.write(self.fresh.users, "users"),
            "affinity": None if measure is None else asdict(measure),
            "config": self.config.to_dict(),
        }
        kept = store if self.config.serving.users else None
        return replace(new.bundle, users=kept, metrics=judged.means(), origin=origin)

    # ---- what speaks against it

    def _unlike(self) -> str | None:
        """Whether the fresh rows are of another kind than those before."""
        known, time, seed = self.known, self.known.time, self.rules.seed
        before = known.affinity or affinity(self.config, self.live, self._tables(known.learnt), known.owed, seed)
        self.before = before
        now_known, came = known.rows[time], self.fresh.rows[time]
        for late in (
            verdict.too_late(now_known, came),
            verdict.apart(now_known, came),
            verdict.ahead(came, datetime.now(timezone.utc)),
        ):
            if late is not None:
                return late
        self.now = now = affinity(self.config, self.live, self._tables(known.rows), self.fresh.rows, seed)
        named = (("before", before), ("now", now))
        self.report["affinity"] = {name: None if found is None else asdict(found) for name, found in named}
        if before is None or now is None or before.least <= 0.5:
            self.report["notes"].append(
                "whether the rows fit their people cannot be said: too few are of known people and items, or the live bundle told "
                "nobody apart before."
            )
            return None
        return verdict.damaged(before, now, self.rules)

    def _tables(self, rows: pl.DataFrame) -> Tables:
        empty = rows.clear()
        return Tables(rows, empty, empty, self.live.bundle.items, self.fresh.users)

    def _objections(self, new: Evaluation, live: Evaluation, differences: Sequence[Difference]) -> list[str]:
        shared = {"live": sameness(live), "new": sameness(new)}
        self.report["lists_shared"] = shared
        found = [
            verdict.worse(differences, self.config.main_metric, self.rules),
            verdict.all_alike(shared["new"], shared["live"], self.rules),
        ]
        return [reason for reason in found if reason is not None]

    # ---- words

    def _describe(self, held_out: pl.DataFrame, items: pl.DataFrame) -> int:
        """What is new and what is gone; the number of lost items."""
        user, item, when = self.config.data.user, self.config.data.item, self.known.time
        rows, before = self.fresh.rows, self.live.bundle.items
        new = {
            "users": rows.join(self.known.rows.select(user), on=user, how="anti")[user].n_unique(),
            "items": len(items.join(before.select(item), on=item, how="anti")),
            "items_lost": len(before.join(items.select(item), on=item, how="anti")),
        }
        unknown = held_out.join(before.select(item), on=item, how="anti")
        self.report |= {
            "rows": {"fresh": len(rows), "held_out": len(held_out), "skipped": self.fresh.skipped},
            "new": new,
            "unknown_to_live": {"items": new["items"], "positives": len(unknown)},
            "times": {"from": str(rows[when].min()), "held_out_from": str(held_out[when].min()), "to": str(rows[when].max())},
        }  # fmt: skip
        self.say(
            f"{len(rows):,} fresh rows, {new['users']:,} new users, {new['items']:,} new items; {len(held_out):,} rows are held out"
        )
        return new["items_lost"]

    def _tell(self, new: Evaluation, live: Evaluation, differences: Sequence[Difference]) -> None:
        main = self.config.main_metric
        self.report["queries"], self.report["candidates"] = new.queries, new.candidates
        self.report["comparison"] = [asdict(d) for d in differences]
        self.report["metrics"] = {"live": live.means(), "new": new.means()}
        self.report["slices"] = {
            name: {"queries": part.queries, "new": _mean(part.metrics, main), "live": _mean(live.slices[name].metrics, main)}
            for name, part in new.slices.items()
        }  # fmt: skip

    def _done(self, outcome: Outcome, reasons: Sequence[str], differences: Sequence[Difference] = ()) -> Refreshed:
        self.report |= {"outcome": outcome, "reasons": list(reasons)}
        return Refreshed(outcome, tuple(reasons), self.report, None, tuple(differences))


def _nothing_new(path: Path, known: Known, fresh: Fresh, report: Mapping[str, Any], say: Say) -> Refreshed:
    """No rows came, which is well; or rows came and all were known, which is told, as it may be so every night from now on."""
    outcome: Outcome = "kept" if fresh.skipped else "nothing"
    last: Any = known.rows[known.time].max()
    reasons = []
    if fresh.skipped:
        reasons.append(
            f"none of {fresh.skipped:,} rows is after the newest known one ({known.time} = {last}): does "
            "the export still bring new rows? If that time itself is wrong, go back (--rollback), or train anew."
        )
    else:
        say("there are no fresh rows: nothing to do")
    rows = {"fresh": 0, "held_out": 0, "skipped": fresh.skipped}
    whole = {**report, "rows": rows, "outcome": outcome, "reasons": reasons}
    return Refreshed(outcome, tuple(reasons), whole, _write_report(Ledger(path), whole))


def _mean(metrics: Mapping[str, Any], name: str) -> float | None:
    return metrics[name].mean if name in metrics else None


def _paths(given: PathLike | Sequence[PathLike] | None) -> Any:
    if given is None:
        return None
    return [str(given)] if isinstance(given, (str, Path)) else [str(path) for path in given]  # type: ignore[union-attr]


def _write_report(ledger: Ledger, report: Mapping[str, Any]) -> Path:
    """Beside the bundle, by its moment; JSON has no nan."""
    folder = ledger.folder / "reports"
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.now(timezone.utc)
    file = folder / f"{moment:%Y-%m-%dT%H-%M-%S.%f}.json"
    with written_aside(file) as aside:
        aside.write_text(json.dumps({"at": moment.isoformat(), **_plain(report)}, indent=1, ensure_ascii=False))
    return file


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value
