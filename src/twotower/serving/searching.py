"""Items by the words of their texts, whatever their case and accents."""

from collections.abc import Sequence

import polars as pl

from twotower.serving.items import Items, RawId

# letters that are no letter with an accent, as people type them without
LIKE = {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"}
BREAK = "\n"  # between the texts of an item, so that no words reach from one into the next
MOST_WORDS = 16  # of a query


def folded(text: pl.Expr) -> pl.Expr:
    """Words in small letters without accents, a space before each and no other signs."""
    plain = (
        text.str.normalize("NFKD")
        .str.to_lowercase()
        .str.replace_many(list(LIKE), list(LIKE.values()))
        .str.replace_all(r"\p{M}+", "")
        .str.replace_all(r"[^\p{L}\p{N}]+", " ")
        .str.strip_chars()
    )
    return pl.lit(" ") + plain


class ItemSearch:
    """Finds items by id and by the words of their texts. Made once; a search reads every text once for each word asked.

    Args:
        items: of a Retriever.
        title: the column whose words count more; "" for none.

    Example:
        >>> films = pl.DataFrame({"id": [7, 8, 9], "title": ["Amélie (2001)", "The Melody", "Melancholia"]})
        >>> ItemSearch(Items(films, "id"), "title").find("MEL")
        [9, 8, 7]
    """

    def __init__(self, items: Items, title: str) -> None:
        self.items = items
        self.texts = [name for name in text_columns(items.table) if name not in (title, items.id_name)]
        table = items.table.lazy()
        missing = pl.lit(None, dtype=pl.String)
        wanted = {
            "title": folded(pl.col(title).cast(pl.String)) if title else missing,
            # an id as it is, but for case: its signs are part of it
            "id": pl.col(items.id_name).cast(pl.String).str.to_lowercase(),
        }
        others = [folded(_joined(name, items.table.schema[name])) for name in self.texts]
        wanted["others"] = pl.concat_str(others, separator=BREAK, ignore_nulls=True) if others else missing
        made = table.select(fold.alias(name) for name, fold in wanted.items())
        self._folded = (
            made.with_row_index("row").with_columns(long=pl.col("title").str.len_bytes().fill_null(0)).collect()
        )

    def find(self, text: str, limit: int = 20) -> list[RawId]:
        """The ids of items that have the text as id, or all of its words in their texts, the best first.

        First comes the item of that id; then items whose title begins with the text; whose id does; with a title in which each
        word begins one; with texts that do; and last those that hold the words anywhere. Among alike, shorter titles come first.

        Args:
            text: words, each from its beginning or from its middle.
            limit: how many items.
        """
        asked = text.strip().lower()
        words = fold_text(asked).split()[:MOST_WORDS]
        if not asked:
            return []
        first = self._first(asked, words)
        found = first if len(first) >= limit else self._all(asked, words)
        best = found.bottom_k(limit, by=["rank", "long", "row"]).sort("rank", "long", "row")
        return self.items.table[self.items.id_name].gather(best["row"]).to_list()

    def _first(self, asked: str, words: Sequence[str]) -> pl.DataFrame:
        """Ranks 0 and 1, which need no search within the texts: of a short and frequent word they are enough."""
        exact = pl.col("id") == asked
        return self._folded.select("row", "long", rank=pl.when(exact).then(0).when(_begins(words)).then(1)).drop_nulls()

    def _all(self, asked: str, words: Sequence[str]) -> pl.DataFrame:
        title, ids, others = pl.col("title"), pl.col("id"), pl.col("others")
        anywhere = [_holds(title, word) | _holds(others, word) for word in words] or [pl.lit(False)]
        begun = [_holds(title, f" {word}") for word in words] or [pl.lit(False)]
        within = [_holds(title, f" {word}") | _holds(others, f" {word}") for word in words] or [pl.lit(False)]
        return self._folded.filter(pl.all_horizontal(anywhere) | ids.str.starts_with(asked)).select(
            "row",
            "long",
            rank=pl.when(ids == asked).then(0)
            .when(_begins(words)).then(1)
            .when(ids.str.starts_with(asked)).then(2)
            .when(pl.all_horizontal(begun)).then(3)
            .when(pl.all_horizontal(within)).then(4)
            .otherwise(5),
        )  # fmt: skip


def _begins(words: Sequence[str]) -> pl.Expr:
    return pl.col("title").str.starts_with(" " + " ".join(words)).fill_null(False) & bool(words)


def fold_text(text: str) -> str:
    """A text as `folded` makes it."""
    return str(pl.select(folded(pl.lit(text))).item())


def text_columns(table: pl.DataFrame) -> list[str]:
    """The columns that hold words, or lists of them."""
    return [name for name, kind in table.schema.items() if _is_text(kind.inner if isinstance(kind, pl.List) else kind)]


def _is_text(kind: object) -> bool:
    return kind in (pl.String, pl.Categorical, pl.Enum)


def _joined(name: str, kind: object) -> pl.Expr:
    if isinstance(kind, pl.List):
        return pl.col(name).cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)
    return pl.col(name).cast(pl.String)


def _holds(text: pl.Expr, part: str) -> pl.Expr:
    return text.str.contains(part, literal=True).fill_null(False)
