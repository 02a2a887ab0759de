"""Tags: what a column means."""

from collections.abc import Iterable, Iterator
from enum import Enum


class Tags(str, Enum):
    """What a column is. USER_ID, ITEM_ID, SESSION_ID and TEXT_TOKENIZED stand for two tags each."""

    CATEGORICAL = "categorical"
    CONTINUOUS = "continuous"
    LIST = "list"
    SEQUENCE = "sequence"
    TEXT = "text"
    TOKENIZED = "tokenized"
    TIME = "time"
    EMBEDDING = "embedding"

    ID = "id"
    USER = "user"
    ITEM = "item"
    SESSION = "session"
    CONTEXT = "context"

    TARGET = "target"
    REGRESSION = "regression"
    CLASSIFICATION = "classification"
    BINARY = "binary"
    MULTI_CLASS = "multi_class"

    USER_ID = "user_id"
    ITEM_ID = "item_id"
    SESSION_ID = "session_id"
    TEXT_TOKENIZED = "text_tokenized"
    BINARY_CLASSIFICATION = "binary_classification"
    MULTI_CLASS_CLASSIFICATION = "multi_class_classification"


Tag = Tags | str
ATOMS: dict[Tag, frozenset[Tag]] = {
    Tags.USER_ID: frozenset({Tags.USER, Tags.ID}),
    Tags.ITEM_ID: frozenset({Tags.ITEM, Tags.ID}),
    Tags.SESSION_ID: frozenset({Tags.SESSION, Tags.ID}),
    Tags.TEXT_TOKENIZED: frozenset({Tags.TEXT, Tags.TOKENIZED}),
}
COLLISIONS: dict[Tag, frozenset[Tag]] = {
    Tags.CATEGORICAL: frozenset({Tags.CONTINUOUS, Tags.EMBEDDING}),
    Tags.CONTINUOUS: frozenset({Tags.CATEGORICAL, Tags.EMBEDDING, Tags.ID}),
    Tags.EMBEDDING: frozenset({Tags.CONTINUOUS, Tags.CATEGORICAL, Tags.ID}),
    Tags.ID: frozenset({Tags.CONTINUOUS, Tags.EMBEDDING}),
}
TARGETS = (
    Tags.TARGET,
    Tags.REGRESSION,
    Tags.CLASSIFICATION,
    Tags.BINARY,
    Tags.BINARY_CLASSIFICATION,
    Tags.MULTI_CLASS,
    Tags.MULTI_CLASS_CLASSIFICATION,
)


class TagSet:
    """An immutable set of tags; strings that equal a member of Tags become it, others are kept.

    Args:
        tags: one tag or several; compound ones fall apart into their two.

    Raises:
        ValueError: two tags that exclude each other, such as CATEGORICAL and CONTINUOUS.

    Example:
        >>> tags = TagSet([Tags.USER_ID, "premium"])
        >>> tags, Tags.USER_ID in tags, Tags.ITEM_ID in tags
        (TagSet(['id', 'premium', 'user']), True, False)
    """

    __slots__ = ("_tags",)

    def __init__(self, tags: Tag | Iterable[Tag] | None = None) -> None:
        self._tags = frozenset(atom for tag in several_tags(tags) for atom in _atoms(tag))
        for tag in self:
            clash = COLLISIONS.get(tag, frozenset()) & self._tags
            if clash:
                raise ValueError(f"tags {_text(tag)!r} and {_text(sorted(clash, key=_text)[0])!r} exclude each other.")

    def __contains__(self, tag: object) -> bool:
        return isinstance(tag, str) and _atoms(tag) <= self._tags

    def __iter__(self) -> Iterator[Tag]:
        return iter(sorted(self._tags, key=_text))

    def __len__(self) -> int:
        return len(self._tags)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (TagSet, list, tuple, set, frozenset)) and self._tags == TagSet(other)._tags

    def __hash__(self) -> int:
        return hash(self._tags)

    def __add__(self, tags: Tag | Iterable[Tag]) -> "TagSet":
        return TagSet([*self, *several_tags(tags)])

    def __sub__(self, tags: Tag | Iterable[Tag]) -> "TagSet":
        return TagSet(self._tags - TagSet(tags)._tags)

    def override(self, tags: Tag | Iterable[Tag]) -> "TagSet":
        """Add tags and drop the old ones that exclude them."""
        new = TagSet(tags)
        beaten = {clash for tag in new for clash in COLLISIONS.get(tag, frozenset())}
        return TagSet([*(self._tags - beaten), *new])

    def __repr__(self) -> str:
        return f"TagSet({[_text(tag) for tag in self]})"


def several_tags(tags: Tag | Iterable[Tag] | None) -> list[Tag]:
    """One tag or several as a list."""
    return [] if tags is None else [tags] if isinstance(tags, str) else list(tags)


def _atoms(tag: Tag) -> frozenset[Tag]:
    try:
        member: Tag = Tags(tag.lower())
    except ValueError:
        member = tag
    return ATOMS.get(member, frozenset({member}))


def _text(tag: Tag) -> str:
    return tag.value if isinstance(tag, Tags) else tag
