"""Small made-up worlds whose answer is known."""

import numpy as np

import twotower as tt
from twotower import Tags


def id_column(name: str, tag: Tags, largest: int) -> tt.ColumnSchema:
    return tt.ColumnSchema(
        name,
        tags=[tag, Tags.CATEGORICAL],
        dtype="int64",
        properties={"domain": {"min": 0, "max": largest, "name": name}},
    )


def clubs(rows: int = 4000, users: int = 60, items: int = 40, groups: int = 4, seed: int = 0) -> tt.Dataset:
    """Users and items belong to clubs (id modulo `groups`); nine events of ten stay within the club.

    The best ranking for a user is the club's items first. Item ids fall in popularity: weight 1 / (1 + id // groups).
    `like` is 1 for events within the club, `stars` is 5 for them and 1 otherwise.
    """
    rng = np.random.default_rng(seed)
    user = rng.integers(users, size=rows)
    inside = rng.random(rows) < 0.9
    club = np.where(inside, user % groups, rng.integers(groups, size=rows))
    per_club = items // groups
    weight = 1 / (1 + np.arange(per_club))
    item = club + groups * rng.choice(per_club, p=weight / weight.sum(), size=rows)
    like = (item % groups == user % groups).astype(np.int64)
    schema = tt.Schema(
        [
            id_column("user_id", Tags.USER_ID, users - 1),
            tt.ColumnSchema("user_height", tags=[Tags.USER, Tags.CONTINUOUS], dtype="float32"),
            id_column("item_id", Tags.ITEM_ID, items - 1),
            tt.ColumnSchema(
                "item_club",
                tags=[Tags.ITEM, Tags.CATEGORICAL],
                dtype="int64",
                properties={"domain": {"min": 0, "max": groups - 1, "name": "club"}},
            ),
            tt.ColumnSchema("like", tags=[Tags.BINARY_CLASSIFICATION], dtype="int64"),
            tt.ColumnSchema("stars", tags=[Tags.REGRESSION], dtype="float32"),
        ]
    )
    columns = {
        "user_id": user,
        "user_height": (user / users).astype(np.float32),
        "item_id": item,
        "item_club": item % groups,
        "like": like,
        "stars": np.where(like == 1, 5.0, 1.0).astype(np.float32),
    }
    return tt.Dataset(columns, schema)


def towers(data: tt.Dataset, width: int = 16) -> tuple[tt.Encoder, tt.Encoder]:
    """A query tower of the user's columns, a candidate tower of the item's."""
    user, item = data.schema.select_by_tag(Tags.USER), data.schema.select_by_tag(Tags.ITEM)
    query = tt.Encoder(user, tt.MLPBlock([32, width], no_activation_last_layer=True))
    return query, tt.Encoder(item, tt.MLPBlock([32, width], no_activation_last_layer=True))
