"""Schema: what each column means, by tags, types and domains."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Union, overload

import numpy as np
import pyarrow as pa

from twotower.errors import unknown
from twotower.tags import TARGETS, Tag, Tags, TagSet, several_tags

DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bool", "string"),
)
PYTHON_NAMES: dict[Any, str] = {int: "int64", float: "float64", bool: "bool", str: "string"}
ARROW_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "large_string": "string",
    "str": "string",
}

__all__ = ["ColumnSchema", "Domain", "Schema", "Tag", "TagSet", "Tags", "schema_from_arrow"]


@dataclass(frozen=True)
class Domain:
    """The smallest and the largest value, both included; columns of one `name` share their ids."""

    min: float
    max: float
    name: str | None = None

    def __post_init__(self) -> None:
        if self.max < self.min:
            raise ValueError(f"a domain must not end before it starts: min={self.min}, max={self.max}.")

    @property
    def is_bounded(self) -> bool:
        """True when both ends are finite."""
        return bool(np.isfinite(self.min) and np.isfinite(self.max))


@dataclass(frozen=True)
class ColumnSchema:
    """One column: its name, what it means and how it is stored.

    Args:
        name: of the column.
        tags: what it means.
        dtype: a name ("int64", "float32", "bool", "string"), or a NumPy, PyTorch, Python or Arrow type; None if unknown.
        is_list: each row holds a list.
        is_ragged: the lists differ in length.
        dims: the shape as ((0, None), (min, max), ...), the batch first; in place of the two flags.
        properties: anything JSON can hold; "domain" {"min", "max", "name"} and "value_count" {"min", "max"} are read.

    Raises:
        ValueError: tags that exclude each other, an unknown dtype, or flags, counts and dims that disagree.

    Example:
        >>> item = ColumnSchema("item_id", tags=[Tags.ITEM_ID], dtype="int64",
        ...                     properties={"domain": {"min": 0, "max": 99}})
        >>> item.cardinality, item.is_list
        (100, False)
    """

    name: str
    tags: Any = ()
    dtype: Any = None
    is_list: bool | None = None
    is_ragged: bool | None = None
    dims: tuple[tuple[int, int | None], ...] | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            tags = self.tags if isinstance(self.tags, TagSet) else TagSet(self.tags)
        except ValueError as error:
            raise ValueError(f"column {self.name!r}: {error}") from error
        given = _lengths(self)
        keep = object.__setattr__
        keep(self, "tags", tags)
        keep(self, "dtype", dtype_name(self.dtype, self.name))
        keep(self, "properties", dict(self.properties))
        keep(self, "is_list", bool(self.is_list or self.is_ragged) if given is None else True)
        keep(self, "is_ragged", bool(self.is_list if self.is_ragged is None else self.is_ragged))
        if given is not None:
            keep(self, "is_ragged", given[0] != given[1])
        if self.dims is not None:
            keep(self, "dims", tuple((low, high) for low, high in self.dims))
        self.int_domain, self.float_domain  # noqa: B018  (a wrong domain fails here, not at its first use)

    def __hash__(self) -> int:
        return hash((self.name, self.tags, self.dtype, self.is_list, self.is_ragged, self.dims))

    @property
    def value_count(self) -> Domain | None:
        """The smallest and largest length of a row's list, if known."""
        lengths = _lengths(self)
        return None if lengths is None else Domain(lengths[0], np.inf if lengths[1] is None else lengths[1])

    @property
    def int_domain(self) -> Domain | None:
        """The domain of an integer column; also when the dtype is unknown and both ends are whole numbers."""
        domain = self._domain()
        if domain is None or (self.dtype is not None and "int" not in self.dtype):
            return None
        whole = all(float(end).is_integer() for end in (domain.min, domain.max))
        return Domain(int(domain.min), int(domain.max), domain.name) if whole else None

    @property
    def float_domain(self) -> Domain | None:
        """The domain of a float column."""
        return self._domain() if self.dtype is not None and "float" in self.dtype else None

    @property
    def cardinality(self) -> int:
        """The number of ids: the domain's max + 1."""
        domain = self.int_domain
        if domain is None:
            raise ValueError(
                f"column {self.name!r} has no integer domain, so its number of ids is unknown. Encode it with Preprocessor, "
                f'or say it: properties={{"domain": {{"min": 0, "max": <largest id>}}}}.'
            )
        return int(domain.max) + 1

    def with_name(self, name: str) -> "ColumnSchema":
        """A copy with another name."""
        return replace(self, name=name)

    def with_tags(self, tags: Tag | Iterable[Tag]) -> "ColumnSchema":
        """A copy with more tags; they win over old ones that exclude them."""
        return replace(self, tags=self.tags.override(tags))

    def with_properties(self, properties: Mapping[str, Any]) -> "ColumnSchema":
        """A copy with more properties; they replace old ones of the same key."""
        if not isinstance(properties, Mapping):
            raise TypeError(f"properties must be a dict, got {type(properties).__name__}.")
        return replace(self, properties={**self.properties, **properties})

    def with_dtype(self, dtype: Any, is_list: bool | None = None, is_ragged: bool | None = None) -> "ColumnSchema":
        """A copy with another type; flags that are None stay."""
        kept_list = self.is_list if is_list is None else is_list
        return replace(
            self, dtype=dtype, is_list=kept_list, is_ragged=self.is_ragged if is_ragged is None else is_ragged
        )

    def with_shape(self, dims: tuple[tuple[int, int | None], ...]) -> "ColumnSchema":
        """A copy with another shape."""
        properties = {key: value for key, value in self.properties.items() if key != "value_count"}
        return replace(self, dims=dims, is_list=None, is_ragged=None, properties=properties)

    def _domain(self) -> Domain | None:
        domain = self.properties.get("domain")
        if not domain or domain.get("min") is None or domain.get("max") is None:
            return None
        try:
            return Domain(domain["min"], domain["max"], domain.get("name"))
        except ValueError as error:
            raise ValueError(f"column {self.name!r}: {error}") from error


class Schema:
    """An immutable, ordered set of columns.

    Args:
        columns: ColumnSchemas, or names alone.

    Example:
        >>> schema = Schema([ColumnSchema("user_id", tags=[Tags.USER_ID]), ColumnSchema("price", tags=[Tags.ITEM])])
        >>> schema.select_by_tag(Tags.ITEM).column_names, (schema - schema.select_by_tag(Tags.ITEM)).column_names
        (['price'], ['user_id'])
    """

    def __init__(self, columns: Iterable[ColumnSchema | str] | Mapping[str, ColumnSchema] = ()) -> None:
        given = list(columns.values() if isinstance(columns, Mapping) else columns)
        if isinstance(columns, str) or not all(isinstance(c, (ColumnSchema, str)) for c in given):
            raise TypeError(f"a Schema is made from a list of ColumnSchema or names, got {columns!r}.")
        made = [ColumnSchema(c) if isinstance(c, str) else c for c in given]
        self._columns = {c.name: c for c in made}
        if len(self._columns) < len(made):
            raise ValueError(f"a Schema needs different column names, got {[c.name for c in made]}.")

    @property
    def column_names(self) -> list[str]:
        """The names, in order."""
        return list(self._columns)

    @property
    def first(self) -> ColumnSchema:
        """The first column; ValueError when there is none."""
        if not self._columns:
            raise ValueError("the schema has no columns, so it has no first one; the selection before found nothing.")
        return next(iter(self._columns.values()))

    @property
    def targets(self) -> "Schema":
        """The columns that are something to predict."""
        return self.select_by_tag(TARGETS)

    def excluding_targets(self) -> "Schema":
        """The columns that are no target."""
        return self.excluding_by_tag(TARGETS)

    def select_by_tag(self, tags: Tag | Iterable[Tag], pred_fn: Callable[..., bool] = any) -> "Schema":
        """The columns with any of the tags, or with `pred_fn=all` all of them. A compound tag needs both of its own."""
        wanted = several_tags(tags)
        return Schema([c for c in self if pred_fn(tag in c.tags for tag in wanted)])

    def excluding_by_tag(self, tags: Tag | Iterable[Tag], pred_fn: Callable[..., bool] = any) -> "Schema":
        """The other columns."""
        found = self.select_by_tag(tags, pred_fn)
        return Schema([c for c in self if c.name not in found])

    def select_by_name(self, names: str | Iterable[str]) -> "Schema":
        """The named columns, in the order of the names; ValueError for a name that is not there."""
        return Schema([self[name] for name in several_tags(names)])

    def excluding_by_name(self, names: str | Iterable[str]) -> "Schema":
        """The other columns; ValueError for a name that is not there."""
        left_out = self.select_by_name(names)
        return Schema([c for c in self if c.name not in left_out])

    remove_by_tag = excluding_by_tag
    without = excluding_by_name
    remove_col = excluding_by_name

    def get(self, name: str, default: ColumnSchema | None = None) -> ColumnSchema | None:
        """The column, or the default."""
        return self._columns.get(name, default)

    @overload
    def __getitem__(self, name: str) -> ColumnSchema: ...
    @overload
    def __getitem__(self, name: list[str]) -> "Schema": ...
    def __getitem__(self, name: str | list[str]) -> Union[ColumnSchema, "Schema"]:
        if isinstance(name, list):
            return self.select_by_name(name)
        if name not in self._columns:
            raise ValueError(unknown("column", name, self._columns))
        return self._columns[name]

    def __iter__(self) -> Iterator[ColumnSchema]:
        return iter(self._columns.values())

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __add__(self, other: "Schema") -> "Schema":
        """Union; on a column of both, the right side wins, and its tags are added over the left side's."""
        joined = dict(self._columns)
        for c in other:
            mine = joined.get(c.name)
            joined[c.name] = c if mine is None else replace(c, tags=mine.tags.override(c.tags))
        return Schema(joined)

    def __sub__(self, other: "Schema") -> "Schema":
        return Schema([c for c in self if c.name not in other])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self._columns == other._columns

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        rows = [("name", "tags", "dtype", "domain", "list"), *(_row(c) for c in self)]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(c)) + "</tr>" for c in self)
        head = "".join(f"<th>{name}</th>" for name in ("name", "tags", "dtype", "domain", "list"))
        return f"<table><tr>{head}</tr>{rows}</table>"


def create_categorical_column(
    name: str,
    num_items: int,
    dtype: Any = "int64",
    domain_name: str | None = None,
    tags: Tag | Iterable[Tag] = (),
    properties: Mapping[str, Any] | None = None,
    min_value_count: int | None = None,
    max_value_count: int | None = None,
) -> ColumnSchema:
    """A categorical column with ids 0 to `num_items`, Merlin's helper of that name."""
    domain = {"min": 0, "max": num_items} | ({"name": domain_name} if domain_name else {})
    counts = {"value_count": {"min": min_value_count or 0, "max": max_value_count}} if max_value_count else {}
    given = {**(properties or {}), "domain": domain, **counts}
    return ColumnSchema(name, [*several_tags(tags), Tags.CATEGORICAL], dtype, properties=given)


def create_continuous_column(
    name: str,
    dtype: Any = "float32",
    tags: Tag | Iterable[Tag] = (),
    properties: Mapping[str, Any] | None = None,
    min_value: float | None = None,
    max_value: float | None = None,
) -> ColumnSchema:
    """A continuous column, Merlin's helper of that name."""
    bounded = min_value is not None and max_value is not None
    domain = {"domain": {"min": min_value, "max": max_value}} if bounded else {}
    return ColumnSchema(
        name, [*several_tags(tags), Tags.CONTINUOUS], dtype, properties={**(properties or {}), **domain}
    )


def schema_from_arrow(arrow: pa.Schema) -> Schema:
    """Names, types and list shapes of an Arrow table; no tags, no domains."""
    return Schema([_column_from_arrow(field) for field in arrow])


def _column_from_arrow(field: pa.Field) -> ColumnSchema:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        return ColumnSchema(field.name, dtype=_arrow_name(kind.value_type), dims=((0, None), (size, size)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ColumnSchema(field.name, dtype=_arrow_name(kind.value_type), is_list=True, is_ragged=True)
    return ColumnSchema(field.name, dtype=_arrow_name(kind))


def _arrow_name(kind: pa.DataType) -> str | None:
    # dates, decimals and structs can pass through a Dataset, but have no type that a tower could read
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    name = ARROW_NAMES.get(str(kind), str(kind))
    return name if name in DTYPES else None


def dtype_name(dtype: Any, column: str) -> str | None:
    """The name of a type given in any of the common ways; ValueError with the choices."""
    if dtype is None:
        return None
    if dtype in PYTHON_NAMES:
        return PYTHON_NAMES[dtype]
    text = dtype if isinstance(dtype, str) else _library_name(dtype)
    text = ARROW_NAMES.get(text, text)
    if text not in DTYPES:
        raise ValueError(f"column {column!r}: {unknown('dtype', text, DTYPES)}")
    return text


def _library_name(dtype: Any) -> str:
    if isinstance(dtype, pa.DataType):
        return str(dtype)
    text = str(dtype).removeprefix("torch.")
    return text if text in DTYPES else str(np.dtype(dtype))


def _lengths(c: ColumnSchema) -> tuple[int, int | None] | None:
    """Smallest and largest length of the lists, from dims or else value_count; checks that all agree."""
    counts = c.properties.get("value_count")
    given = None if not counts else (int(counts.get("min") or 0), int(counts["max"]) if counts.get("max") else None)
    if c.dims is not None and len(c.dims) > 1:
        given = (c.dims[1][0], c.dims[1][1])
    scalar = c.dims is not None and len(c.dims) == 1
    ragged = None if given is None else given[0] != given[1]
    wrong = (
        (c.is_list is False and (bool(c.is_ragged) or given is not None))
        or (scalar and (bool(c.is_list) or bool(c.is_ragged) or given is not None))
        or (ragged is not None and c.is_ragged is not None and c.is_ragged != ragged)
    )
    if wrong:
        raise ValueError(
            f"column {c.name!r}: is_list={c.is_list}, is_ragged={c.is_ragged}, dims={c.dims} and value_count={counts} "
            "disagree. Give only one of them."
        )
    return given


def _row(c: ColumnSchema) -> tuple[str, str, str, str, str]:
    domain = c.int_domain or c.float_domain
    span = "" if domain is None else f"{domain.min} to {domain.max}" + (f" ({domain.name})" if domain.name else "")
    lists = "ragged" if c.is_ragged else "fixed" if c.is_list else ""
    tags = ", ".join(tag.value if isinstance(tag, Tags) else tag for tag in c.tags)
    return c.name, tags, c.dtype or "", span, lists
