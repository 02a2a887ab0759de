"""Text tables: columns between separators, all read as text."""

import gzip
import io

import polars as pl

INNER = "\x1f"  # ASCII's own separator of units stands in for separators of several characters


def read_delimited(data: bytes, where: str, separator: str, *, header: bool, quoted: bool = True) -> pl.DataFrame:
    """All columns as text, empty fields null.

    Args:
        data: the file's bytes, UTF-8 or else Latin-1, maybe gzipped.
        where: the file's name, for errors.
        separator: between columns, one character or several.
        header: the first line names the columns; otherwise they are "0", "1", ...
        quoted: double quotes hold fields together.

    Raises:
        ValueError: lines with more columns than the first, or an empty file.

    Example:
        >>> read_delimited(b"1::Amelie", "movies.dat", "::", header=False).rows()
        [('1', 'Amelie')]
    """
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    data = _as_utf8(data)
    if len(separator) > 1:
        if INNER.encode() in data:
            raise ValueError(f"{where} holds the character 0x1f, so that its separator {separator!r} cannot be read.")
        data, separator = data.replace(separator.encode(), INNER.encode()), INNER
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            has_header=header,
            separator=separator,
            quote_char='"' if quoted else None,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{where} cannot be read as a table with separator {separator!r}: {error}. Is the separator right, and has "
            "every line the same number of columns?"
        ) from error
    return frame if header else frame.rename({name: str(place) for place, name in enumerate(frame.columns)})


def _as_utf8(data: bytes) -> bytes:
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1").encode()
    return data
