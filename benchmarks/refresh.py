"""How a refresh should learn: `python benchmarks/refresh.py`, about two minutes of one core.

MovieTweetings-100K: a bundle trained on all but the last fourteen days, then seven nights of two days, for several rates and shares
of old rows; and what the first bundle knows of sound, shuffled and renamed rows of each night.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch

import twotower as tt
from twotower.experiment.tables import Tables
from twotower.nightly.judging import affinity
from twotower.nightly.known import read_known

DAY, NIGHTS, DAYS = 24 * 3600, 7, 2
CONFIG = {
    "columns": {
        "item_id": {"kind": "categorical", "tags": ["item_id"]},
        "user_id": {"kind": "categorical", "tags": ["user_id"]},
        "genres": {"kind": "categorical", "tags": ["item"]},
        "year": {"kind": "numeric", "tags": ["item"]},
        "title": {"kind": "text", "tags": ["item"], "min_count": 3},
    },
    "history": {"length": 20, "encoder": "bag"},
    "model": {"temperature": 0.07},
    "training": {"epochs": 6},
    "evaluation": {"baselines": []},
}
DATA = tt.load_movietweetings()
RATINGS = DATA.ratings.sort("timestamp", "user_id", "item_id")
START = RATINGS["timestamp"].max() - NIGHTS * DAYS * DAY  # type: ignore[operator]


def rows(first: int, last: int) -> pl.DataFrame:
    """The ratings of some nights; of all before with first = -1."""
    low = 0 if first < 0 else START + first * DAYS * DAY
    return RATINGS.filter((pl.col("timestamp") > low) & (pl.col("timestamp") <= START + last * DAYS * DAY))


def films(last: int, path: Path) -> Path:
    """Those that were rated by then."""
    DATA.movies.join(rows(-1, last), on="item_id", how="semi", maintain_order="left").write_parquet(path)
    return path


def nights(folder: Path, rules: tt.RefreshRules) -> str:
    """Seven nights: the mean of live and new, what was published, and how alike the last night's lists are."""
    live = folder / "live"
    for old in folder.glob("live*"):
        shutil.rmtree(old)
    shutil.copytree(folder / "run" / "bundle", live)
    found = []
    for night in range(NIGHTS):
        rows(night, night + 1).write_parquet(folder / "night.parquet")
        table = films(night + 1, folder / "films.parquet")
        found.append(tt.refresh(live, folder / "night.parquet", items=table, run=folder / "run", rules=rules))
    new, before = (np.mean([getattr(f.comparison[0], name) for f in found]) for name in ("first", "second"))
    published = sum(f.outcome == "published" for f in found)
    shared = found[-1].report["lists_shared"]["new"]
    return f"{before:.3f} live, {new:.3f} new, {published} of {NIGHTS} published, lists share {shared:.2f}"


def known_of(folder: Path) -> str:
    """How well the first bundle knows each night's rows: sound, shuffled, and under other names."""
    retriever = tt.Retriever.load(folder / "run" / "bundle")
    known = read_known(retriever.bundle, (folder / "run" / "bundle").resolve(), None)
    names, empty = DATA.movies["item_id"], known.rows.clear()
    lines = []
    for night in range(NIGHTS):
        own = rows(night, night + 1)
        before = Tables(
            pl.concat([known.rows, rows(0, night).select(known.rows.columns)]),
            empty,
            empty,
            retriever.bundle.items,
            None,
        )
        made = {
            "sound": own,
            "shuffled": own.with_columns(pl.col("item_id").shuffle(1)),
            "renamed": own.with_columns(pl.col("item_id").replace_strict(names, names.shuffle(1))),
        }
        values = {name: affinity(known.config, retriever, before, table, 0) for name, table in made.items()}
        lines.append(", ".join(f"{name} {v.share:.3f}±{v.error:.3f}" for name, v in values.items() if v is not None))
    return "\n".join(lines)


def fooled(folder: Path) -> str:
    """What the paired test alone says of a shuffled week: it is judged on shuffled rows too."""
    live = Path(shutil.copytree(folder / "run" / "bundle", folder / "fooled"))
    week = rows(0, 7 // DAYS).with_columns(pl.col("item_id").shuffle(1))
    week.write_parquet(folder / "night.parquet")
    table = films(7 // DAYS, folder / "films.parquet")
    found = tt.refresh(
        live, folder / "night.parquet", items=table, run=folder / "run", rules=tt.RefreshRules(trust=0.0)
    )
    return f"shuffled rows, trust 0: {found.outcome}, {found.comparison[0]}"


def main() -> None:
    """Train once, then every setting from the same bundle."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows(-1, 0).write_parquet(folder / "first.parquet")
        tables = {"interactions": str(folder / "first.parquet"), "items": str(films(0, folder / "films0.parquet"))}
        columns = {"user": "user_id", "item": "item_id", "time": "timestamp"}
        tt.train_run(tt.Config.from_dict(CONFIG | {"data": columns | tables}), folder / "run")
        print(known_of(folder), flush=True)
        print(fooled(folder), flush=True)
        for rate, replay, epochs in ((1, 0, 1), (1, 0.25, 1), (1, 1, 1), (0.5, 0, 1), (0.5, 0.25, 1), (1, 0.25, 2)):
            told = nights(folder, tt.RefreshRules(rate=rate, replay=replay, epochs=epochs))
            print(f"rate {rate}, replay {replay}, epochs {epochs}: {told}", flush=True)


if __name__ == "__main__":
    main()
