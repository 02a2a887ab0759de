"""The schemas of the made-up worlds that have a name."""

from twotower.schema import ColumnSchema, Schema
from twotower.tags import Tag, Tags

USER, ITEM = Tags.USER, Tags.ITEM


def _ids(name: str, tag: Tag, number: int) -> ColumnSchema:
    return _category(name, tag, number)


def _category(name: str, tag: Tag, number: int) -> ColumnSchema:
    """One of `number` values, 0 to number - 1."""
    domain = {"min": 0, "max": number - 1, "name": name}
    return ColumnSchema(name, [tag, Tags.CATEGORICAL], "int64", properties={"domain": domain})


def _several(name: str, tag: Tag, number: int, shortest: int, longest: int) -> ColumnSchema:
    """A list of such values."""
    properties = {
        "domain": {"min": 0, "max": number - 1, "name": name},
        "value_count": {"min": shortest, "max": longest},
    }
    return ColumnSchema(name, [tag, Tags.CATEGORICAL], "int64", properties=properties)


def _history(items: ColumnSchema, length: int) -> ColumnSchema:
    """What the user did before; it shares the items' domain and so their embedding table."""
    properties = {"domain": items.properties["domain"], "value_count": {"min": 0, "max": length}}
    return ColumnSchema("history", [USER, Tags.CATEGORICAL, Tags.SEQUENCE], "int64", properties=properties)


def _number(name: str, tag: Tag, low: float | None = None, high: float | None = None) -> ColumnSchema:
    properties = {} if low is None else {"domain": {"min": low, "max": high}}
    return ColumnSchema(name, [tag, Tags.CONTINUOUS], "float32", properties=properties)


def _binary(name: str) -> ColumnSchema:
    domain = {"min": 0, "max": 1}
    return ColumnSchema(name, [Tags.TARGET, Tags.BINARY_CLASSIFICATION], "int64", properties={"domain": domain})


def _stars(name: str) -> ColumnSchema:
    domain = {"min": 1, "max": 5}
    return ColumnSchema(name, [Tags.TARGET, Tags.REGRESSION], "float32", properties={"domain": domain})


def _shop(users: int, items: int) -> Schema:
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, users),
            _category("user_age_group", USER, 8),
            _category("user_country", USER, 20),
            _category("user_device", USER, 4),
            _category("user_favourite_category", USER, 30),
            _number("user_income", USER),
            _ids("item_id", Tags.ITEM_ID, items),
            _category("item_category", ITEM, 30),
            _category("item_shop", ITEM, 50),
            _category("item_brand", ITEM, 100),
            _number("item_price", ITEM),
            _binary("click"),
            _binary("conversion"),
        ]
    )


def _music(users: int, tracks: int) -> Schema:
    track = _ids("item_id", Tags.ITEM_ID, tracks)
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, users),
            _category("user_country", USER, 20),
            _category("user_age_group", USER, 8),
            _several("user_genres", USER, 25, 1, 4),
            _history(track, 20),
            track,
            _category("item_artist", ITEM, 300),
            _several("item_genres", ITEM, 25, 1, 3),
            _number("item_tempo", ITEM, 60, 180),
            _binary("click"),
            _binary("like"),
        ]
    )


def _social(users: int, posts: int) -> Schema:
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, users),
            _category("user_city", USER, 50),
            _category("user_age_group", USER, 8),
            _several("user_interests", USER, 60, 1, 5),
            _ids("item_id", Tags.ITEM_ID, posts),
            _category("item_author", ITEM, 200),
            _category("item_language", ITEM, 10),
            _several("item_hashtags", ITEM, 120, 1, 5),
            _binary("click"),
            _binary("share"),
        ]
    )


def _films(users: int, films: int) -> Schema:
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, users),
            _category("user_gender", USER, 2),
            _category("user_age", USER, 7),
            _category("user_occupation", USER, 21),
            _ids("item_id", Tags.ITEM_ID, films),
            _several("item_genres", ITEM, 18, 1, 4),
            _number("item_year", ITEM, 1920, 2000),
            _stars("rating"),
            _binary("rating_binary"),
        ]
    )


def _small() -> Schema:
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, 200),
            _category("user_group", USER, 10),
            _number("user_age", USER),
            _ids("item_id", Tags.ITEM_ID, 100),
            _category("item_category", ITEM, 10),
            _several("item_words", ITEM, 40, 1, 4),
            _number("item_price", ITEM),
            _binary("click"),
        ]
    )


def _small_sequences() -> Schema:
    item = _ids("item_id", Tags.ITEM_ID, 100)
    return Schema(
        [
            _ids("user_id", Tags.USER_ID, 400),
            _category("user_group", USER, 10),
            _history(item, 10),
            item,
            _category("item_category", ITEM, 10),
        ]
    )


WORLDS = {
    "e-commerce": _shop(1_001, 1_001),
    "e-commerce-large": _shop(100_001, 100_001),
    "movielens-100k": _films(943, 1_682),
    "movielens-1m": _films(6_040, 3_706),
    "music-streaming": _music(2_000, 5_000),
    "sequence-testing": _small_sequences(),
    "social": _social(3_000, 2_000),
    "testing": _small(),
}
