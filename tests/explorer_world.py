"""Small bundles to explore, with ids and titles that nobody would choose."""

import datetime as dt

import polars as pl
import torch

import twotower as tt
from twotower import Categorical, Numeric, Tags

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
ODD = ["a/b", "//x//", "..", ".", "ü ñ 猫", "qu\"ot'e", "<b>", "x?y=1&z#f%20", " ", "a+b", "%2F", "\\", "static", "-1"]
IDS = ODD + [f"i{n}" for n in range(40 - len(ODD))]
COUNT = len(IDS)
ITEMS = pl.DataFrame(
    {
        "item_id": IDS,
        "title": [EVIL, None, "Die Brücke", "The Bridge"] + [f"Film {n}" for n in range(4, COUNT)],
        "genres": [[["Drama", "War"], ["<i>Noir</i>"], [], ["Drama", None]][n % 4] for n in range(COUNT)],
        "year": [1950 + n if n % 5 else None for n in range(COUNT)],
        "price": [float("nan") if n == 3 else n / 2 for n in range(COUNT)],
        "color": [n % 2 == 0 if n % 7 else None for n in range(COUNT)],
        "day": [dt.date(2020, 1, 1 + n % 28) for n in range(COUNT)],
        "codes": [[n % 3, 7] for n in range(COUNT)],
        "vector": [[0.5, float(n)] for n in range(COUNT)],
        "a b/c": ["x" if n % 2 else "y" for n in range(COUNT)],
    }
)
USERS = pl.DataFrame(
    {
        "user_id": ["u1", "o/dd ü", "<u>", "fresh", "all", "bare"],
        "city": ["Rome", "<i>Oslo</i>", None, "Rome", "Rome", "Rome"],
        "asked": [10.0, 20.0, 30.0, 10.0, 10.0, None],
        "past": [["a/b", "i3", "gone"], ["i1"], ["gone"], [], IDS[:2], []],
        "seen": [["a/b", "i3", "i4"], ["i1"], ["gone"], [], IDS, None],
    },
    schema_overrides={"past": pl.List(pl.String), "seen": pl.List(pl.String)},
)


def odd_retriever() -> tt.Retriever:
    """Towers that read a history, a city and a time that may not be missing; untrained ones serve as well as any."""
    events = pl.DataFrame(
        {
            "city": ["Rome", "<i>Oslo</i>"] * COUNT,
            "asked": [float(n) for n in range(2 * COUNT)],
            "past": [[IDS[n % COUNT]] for n in range(2 * COUNT)],
            "item_id": IDS * 2,
        }
    )
    columns = {
        "city": Categorical(Tags.USER),
        "asked": Numeric(Tags.USER),
        "past": Categorical(Tags.USER, share="item_id"),
        "item_id": Categorical(Tags.ITEM_ID),
        "genres": Categorical(Tags.ITEM),
    }
    preprocessor = tt.Preprocessor(columns).fit(events, ITEMS)
    return tt.Retriever(
        _model(preprocessor.schema),
        preprocessor,
        ITEMS,
        users=tt.ParquetFeatures(USERS, key="user_id"),
        metrics={"recall_at_10": 0.25},
    )


def plain_retriever() -> tt.Retriever:
    """Whole numbers as ids, no texts, no users, no history."""
    events = pl.DataFrame({"age": [20, 30, 40], "hobby": ["chess", "go", "chess"], "id": [1, 2, 3]})
    columns = {
        "age": Numeric(Tags.USER, fill="mean"),
        "hobby": tt.Hashed(Tags.USER, buckets=8),
        "id": Categorical(Tags.ITEM_ID),
    }
    preprocessor = tt.Preprocessor(columns).fit(events)
    return tt.Retriever(_model(preprocessor.schema), preprocessor, pl.DataFrame({"id": [1, 2, 3, 12]}))


def _model(schema: tt.Schema) -> tt.TwoTowerModelV2:
    torch.manual_seed(0)
    return tt.TwoTowerModelV2(
        *(
            tt.Encoder(schema.select_by_tag(tag), tt.MLPBlock([8], no_activation_last_layer=True))
            for tag in (Tags.USER, Tags.ITEM)
        )
    )
