"""A bundle that is refreshed night after night, on MovieTweetings-100K, which comes with the package.

A retriever is trained on the first months. Then come nights, each with a week of ratings that it has never seen, with new films
and new people. `tt.refresh` learns the week, compares the new bundle with the live one on the week's last ratings, and publishes
it if it is not worse. Before the last night a broken export arrives: its ratings are the right ones, but under the names of other
films. It must not be published. In the end the last night is taken back.

    python examples/refresh_nightly.py                        # four nights, about a minute on 2 cores
    python examples/refresh_nightly.py --nights 2 --months 2  # what the tests run
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import polars as pl

import twotower as tt

DAY = 24 * 3600
CONFIG = {
    "columns": {
        "item_id": {"kind": "categorical", "tags": ["item_id"]},
        "genres": {"kind": "categorical", "tags": ["item"]},
        "title": {"kind": "text", "tags": ["item"], "min_count": 3},
        "year": {"kind": "numeric", "tags": ["item"]},
        "user_id": {"kind": "categorical", "tags": ["user_id"]},
    },
    "history": {"encoder": "bag"},
    "split": {"validation": 0.02, "test": 0.02},
    "model": {"temperature": 0.07},
    "training": {"epochs": 2, "stop_early": None, "health_steps": 0},
    "evaluation": {"metrics": ["recall_at_10", "ndcg_at_10"], "slices": ["cold_items", "new_users"], "baselines": []},
}


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        nights(Path(folder), given.nights, given.days, given.months)


def nights(folder: Path, number: int, days: int, months: int) -> None:
    """Train, then refresh as often."""
    data = tt.load_movietweetings()
    ratings = data.ratings.sort("timestamp", maintain_order=True)
    end = ratings["timestamp"].max()
    cuts = [end - (number - night) * days * DAY for night in range(number + 1)]  # type: ignore[operator]
    known = ratings.filter(pl.col("timestamp").is_between(cuts[0] - months * 30 * DAY, cuts[0]))
    live = first_bundle(folder, known, met(data.movies, known))

    for night in range(number):
        week = ratings.filter(pl.col("timestamp").is_between(cuts[night], cuts[night + 1], closed="right"))
        known = pl.concat([known, week])
        films = written(met(data.movies, known), folder / "films.parquet")
        if night == number - 1:
            say(f"Night {night + 1}, a broken export: every rating under the name of another film")
            names = data.movies["item_id"]
            broken = week.with_columns(pl.col("item_id").replace_strict(names, names.shuffle(1)))
            tell(tt.refresh(live, written(broken, folder / "broken.parquet"), items=films, run=folder / "run"))
        say(f"Night {night + 1}: {days} days of ratings")
        tell(tt.refresh(live, written(week, folder / "week.parquet"), items=films, run=folder / "run"))

    if live.with_name("live.previous").exists():
        say("Taking the last published night back")
        tt.rollback(live)
        print(f"The bundle recommends {len(tt.load_bundle(live).items):,} films again.")


def first_bundle(folder: Path, known: pl.DataFrame, films: pl.DataFrame) -> Path:
    """A run on the first months, and a copy of its bundle where it is served from."""
    say(f"Training on {len(known):,} ratings of {len(films):,} films")
    where = {
        "interactions": str(written(known, folder / "known.parquet")),
        "items": str(written(films, folder / "films.parquet")),
    }
    columns = {"user": "user_id", "item": "item_id", "time": "timestamp"}
    run = tt.train_run(tt.Config.from_dict(CONFIG | {"data": columns | where}), folder / "run")
    return Path(shutil.copytree(run.folder / "bundle", folder / "live"))


def met(movies: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The films that somebody has rated by now: the catalogue grows."""
    return movies.join(known, on="item_id", how="semi", maintain_order="left")


def tell(found: tt.Refreshed) -> None:
    """What was new, and the verdict."""
    report = found.report
    rows, new = report["rows"], report["new"]
    print(f"{rows['fresh']:,} ratings, the last {rows['held_out']:,} to judge by", end="; ")
    print(f"{new['users']:,} new people, {new['items']:,} new films")
    for apart in found.comparison[:1]:
        print(f"recall@10 live {apart.second:.3f}, refreshed {apart.first:.3f}, {apart.difference:+.3f}", end=" ")
        print(f"[{apart.low:+.3f}, {apart.high:+.3f}], {report['queries']:,} people, {report['candidates']:,} films")
    print(f"{found.outcome} in {report['seconds']:.0f} seconds" + "".join(f"; {reason}" for reason in found.reasons))


def written(table: pl.DataFrame, path: Path) -> Path:
    table.write_parquet(path)
    return path


def say(text: str) -> None:
    print(f"\n{text}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=4)
    parser.add_argument("--days", type=int, default=7, help="of ratings that a night brings")
    parser.add_argument("--months", type=int, default=12, help="of ratings to train on first, at most")
    return parser.parse_args()


if __name__ == "__main__":
    main()
