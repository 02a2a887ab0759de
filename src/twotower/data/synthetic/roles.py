"""Which column of a schema plays which part in a made-up world."""

from dataclasses import dataclass

from twotower.schema import ColumnSchema, Schema
from twotower.tags import TARGETS, Tags

BINARY = (Tags.BINARY, Tags.BINARY_CLASSIFICATION)


@dataclass(frozen=True)
class Roles:
    """The columns of a schema by what they do.

    Args:
        user, item: the two id columns.
        user_features, item_features: functions of an id.
        history: earlier items of the user, in the order of time: a list of the item id's domain, or tagged ITEM_ID.
        time: the moment; a column "timestamp" outside the schema where it has none.
        targets: what to predict.
        context: columns of neither side.
    """

    user: ColumnSchema
    item: ColumnSchema
    user_features: Schema
    item_features: Schema
    history: str | None
    time: str
    targets: Schema
    context: Schema

    def level(self, target: str) -> int:
        """The place of a binary target in the funnel; ValueError for others."""
        names = [column.name for column in self.targets if is_binary(column)]
        if target not in names:
            raise ValueError(f"{target!r} is no binary target of this world: expected one of {names}.")
        return names.index(target)


def is_binary(target: ColumnSchema) -> bool:
    """A target of 0 and 1."""
    domain = target.int_domain
    return any(tag in target.tags for tag in BINARY) or (domain is not None and (domain.min, domain.max) == (0, 1))


def roles(schema: Schema) -> Roles:
    """Find the parts.

    Raises:
        ValueError: not exactly one user id and one item id, two histories, or a history of fixed length.
    """
    user, item = _only_id(schema, Tags.USER_ID), _only_id(schema, Tags.ITEM_ID)
    histories = [c for c in schema if c.is_list and _holds_items(c, item)]
    if len(histories) > 1 or any(not c.is_ragged or (c.value_count and c.value_count.min > 0) for c in histories):
        raise ValueError(
            f"a made-up world has one history at most, which is empty before a user's first event, got {histories}. Declare "
            'it with is_ragged=True, or properties={"value_count": {"min": 0, "max": 20}}.'
        )
    times = schema.select_by_tag(Tags.TIME).column_names
    if len(times) > 1:
        raise ValueError(f"a made-up world has one time, got the columns {times} tagged 'time'.")
    taken = [user.name, item.name, *times, *(c.name for c in histories)]
    features = schema.excluding_by_name(taken).excluding_by_tag(TARGETS)
    items = features.select_by_tag(Tags.ITEM)
    users = features.select_by_tag(Tags.USER) - items
    return Roles(
        user=user,
        item=item,
        user_features=users,
        item_features=items,
        history=histories[0].name if histories else None,
        time=times[0] if times else "timestamp",
        targets=schema.excluding_by_name(taken).select_by_tag(TARGETS),
        context=features - users - items,
    )


def _only_id(schema: Schema, tag: Tags) -> ColumnSchema:
    found = [c for c in schema.select_by_tag(tag) if not c.is_list]
    if len(found) != 1:
        raise ValueError(
            f"a made-up world needs one column tagged {tag.value!r}, found {[c.name for c in found]} among {schema.column_names}."
        )
    return found[0]


def _holds_items(column: ColumnSchema, item: ColumnSchema) -> bool:
    mine, theirs = column.int_domain, item.int_domain
    same = mine is not None and theirs is not None and mine.name is not None and mine.name == theirs.name
    return same or Tags.ITEM_ID in column.tags
