"""ToTarget: batches as pairs of features and targets, for a loop of one's own."""

from collections.abc import Mapping

from torch import Tensor

from twotower.data.batch import Batch, column
from twotower.data.ragged import Ragged
from twotower.errors import unknown
from twotower.schema import ColumnSchema, Schema
from twotower.tags import Tags

Targets = Tensor | Ragged | Batch


class ToTarget:
    """Splits a batch into (features, targets), the form of a training loop that looks for `x, y`.

    Models of this library need no such split: their outputs name the target's column, which stands in the batch.

    Args:
        schema: of the batches.
        targets: what becomes a target, besides the columns that the schema tags so already: names, tags, columns or Schemas.

    Attributes:
        schema: the given one with all targets tagged TARGET.

    Called with a batch, it gives the other columns of the schema as a dict, and the target: one column as it is, several as a
    dict. Columns outside the schema, such as weights, stay with the features.

    Raises:
        ValueError: an unknown column, a tag that no column has, or nothing that is a target.

    Example:
        >>> schema = Schema(["user", "item", "click"])
        >>> rows = Loader(Dataset({"user": [1], "item": [7], "click": [1]}), batch_size=1)
        >>> features, target = next(iter(rows.map(ToTarget(schema, "click"))))
        >>> list(features), target
        (['user', 'item'], tensor([1]))
    """

    def __init__(self, schema: Schema, *targets: str | Tags | ColumnSchema | Schema) -> None:
        added = Schema()
        for target in targets:
            added = added + _columns(schema, target)
        chosen = [c.name for c in schema if c.name in schema.targets or c.name in added]
        if not chosen:
            raise ValueError(
                f"there is no target: name one, as in ToTarget(schema, 'click'); the columns are {schema.column_names}."
            )
        self.names = tuple(chosen)
        self.schema = Schema([c.with_tags(Tags.TARGET) if c.name in chosen else c for c in schema])

    def __call__(self, batch: Mapping[str, Tensor | Ragged]) -> tuple[Batch, Targets]:
        """(features, targets) of a batch; ValueError if it lacks a target."""
        targets = {name: column(batch, name) for name in self.names}
        features = {name: values for name, values in batch.items() if name not in targets}
        return features, targets if len(targets) > 1 else targets[self.names[0]]


def _columns(schema: Schema, target: str | Tags | ColumnSchema | Schema) -> Schema:
    """The columns of a schema that a name, a tag, a column or a Schema means."""
    if isinstance(target, Schema):
        return schema.select_by_name(target.column_names)
    if isinstance(target, ColumnSchema):
        return schema.select_by_name(target.name)
    if target in schema and not isinstance(target, Tags):  # a tag equals the text of its name
        return schema.select_by_name(target)
    found = schema.select_by_tag(target)
    if not len(found):
        raise ValueError(unknown("column or tag", str(getattr(target, "value", target)), schema.column_names))
    return found
