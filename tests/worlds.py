"""Small made-up worlds whose answer is known."""

from dataclasses import dataclass

import numpy as np
import torch

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


@dataclass(frozen=True)
class TaggedItems:
    """A world with warm and cold items: events of the warm ones, all users and items as batches, and who likes what."""

    train: tt.Dataset
    users: dict[str, torch.Tensor]
    items: dict[str, torch.Tensor]
    fits: torch.Tensor


def tagged_items(
    users: int = 200, warm: int = 100, cold: int = 100, clubs: int = 5, rows: int = 6000, noise: float = 0.6
) -> TaggedItems:
    """Users and items belong to clubs; nine events of ten stay within the club. An item has four tags of four for its club,
    but a share `noise` of them is drawn from all: the id of a warm item says more than its tags, which is all that is
    known of a cold one. Ids as of a Preprocessor that has never seen the cold ones, which come as id 1."""
    rng = np.random.default_rng(0)
    club = np.arange(warm + cold) % clubs
    own = club[:, None] * 4 + rng.integers(4, size=(warm + cold, 4))
    tags = np.where(rng.random(own.shape) < noise, rng.integers(clubs * 4, size=own.shape), own) + 2
    user = rng.integers(users, size=rows)
    chosen = np.where(rng.random(rows) < 0.9, user % clubs, rng.integers(clubs, size=rows))
    item = chosen + clubs * rng.integers(warm // clubs, size=rows)
    known = {"unknown_id": 1}
    of_item = tt.ColumnSchema(
        "tags", [Tags.ITEM, Tags.CATEGORICAL], "int64", dims=((0, None), (4, 4)),
        properties={"domain": {"min": 0, "max": clubs * 4 + 1, "name": "tags"}},
    )  # fmt: skip
    schema = tt.Schema(
        [
            id_column("user_id", Tags.USER_ID, users + 1).with_properties(known),
            id_column("item_id", Tags.ITEM_ID, warm + 1).with_properties(known),
            of_item,
        ]
    )
    train = tt.Dataset({"user_id": user + 2, "item_id": item + 2, "tags": tags[item].tolist()}, schema)
    item_id = np.concatenate([np.arange(warm) + 2, np.ones(cold, dtype=np.int64)])
    return TaggedItems(
        train,
        {"user_id": torch.arange(users) + 2},
        {"item_id": torch.from_numpy(item_id), "tags": torch.from_numpy(tags)},
        torch.arange(users)[:, None] % clubs == torch.from_numpy(club),
    )
