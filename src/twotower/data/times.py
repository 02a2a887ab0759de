"""Times in any of the common ways: as moments in UTC, and as whole seconds since 1970."""

import datetime

import polars as pl

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # how many of them a second has
SPELLED = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
FINER = 10**11  # numbers of a unit from which on, where no unit is said, the next finer one is meant: 5138 in seconds
EARLIEST, LATEST = 1900, 2200  # years that a log may hold; others come from a wrong unit
BOUNDS = tuple(
    datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc).timestamp() for year in (EARLIEST, LATEST + 1)
)
ISO = (
    r"^(?<day>\d{4}-\d{2}-\d{2})(?:[T ](?<minute>\d{2}:\d{2})(?:(?<second>:[0-5]\d)(?:[.,](?<fraction>\d+))?)?"
    r" ?(?<zone>Z|UTC|[+-](?:0\d|1[0-8])(?::?[0-5]\d)?)?)?$"
)


def moments(times: pl.Series, unit: str) -> pl.Series:
    """Moments in UTC, each by its own value, whatever stands in the other rows; null stays null.

    Args:
        times: dates and datetimes, those without a zone in UTC; text in ISO 8601, such as "2024-01-31", "2024-01-31 10:00" or
            "2024-01-31T10:00:00.5+01:00", of all these kinds in one column; or whole numbers since 1970.
        unit: of whole numbers: "s", "ms", "us" or "ns".

    Raises:
        ValueError: another type, a text that is no time, or a year outside 1900 to 2200.

    Example:
        >>> moments(pl.Series(["1970-01-02", "1970-01-02T01:00:00+01:00", None]), "s").dt.epoch("s").to_list()
        [86400, 86400, None]
    """
    kind = times.dtype
    if kind.is_integer() or kind == pl.Null:
        _check_years(times, times.cast(pl.Float64) / UNITS[unit], f", read in {unit!r},")
        whole = times.cast(pl.Int64)
        microseconds = whole * (10**6 // UNITS[unit]) if UNITS[unit] <= 10**6 else whole // 1000
        return microseconds.cast(pl.Datetime("us", "UTC"))
    if kind == pl.String or kind in (pl.Categorical, pl.Enum):
        made = _from_text(times.cast(pl.String))
    elif kind == pl.Date:
        made = times.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    elif isinstance(kind, pl.Datetime):
        zoned = times.dt.replace_time_zone("UTC") if kind.time_zone is None else times.dt.convert_time_zone("UTC")
        made = zoned.cast(pl.Datetime("us", "UTC"))
    else:
        raise ValueError(
            f"column {times.name!r} holds {kind}, not times: expected dates, datetimes, ISO 8601 text or whole numbers since 1970."
        )
    _check_years(times, made.dt.epoch("us") / 10**6, "")
    return made


def seconds(times: pl.Series) -> pl.Series:
    """Whole seconds since 1970 in UTC, int64, rounded down.

    Args:
        times: numbers since 1970 in s, ms, us or ns, told apart by size: seconds are below 1e11 (the year 5138), each
            unit goes a thousand times further; or dates, datetimes and ISO 8601 text, as in `moments`.

    Raises:
        ValueError: nulls, numbers of more than one unit, numbers such as 20240131, or as in `moments`.

    Example:
        >>> seconds(pl.Series("t", ["1970-01-02", "1970-01-02T01:00:00+01:00"])).to_list()
        [86400, 86400]
        >>> seconds(pl.Series("t", [978300760000, 978300761999])).to_list()
        [978300760, 978300761]
    """
    if times.null_count():
        raise ValueError(f"column {times.name!r} has {times.null_count()} times missing. Remove these rows before.")
    if times.dtype == pl.String and times.str.contains(r"^-?\d{1,18}(\.\d+)?$").all():
        times = times.cast(pl.Float64 if times.str.contains(".", literal=True).any() else pl.Int64)
    if times.dtype.is_numeric() and len(times):
        return _from_numbers(times)
    return moments(times, "s").dt.epoch("us") // 10**6


def _from_numbers(times: pl.Series) -> pl.Series:
    if times.dtype.is_float() and not times.is_finite().all():
        raise ValueError(f"column {times.name!r} holds nan or infinite times. Remove these rows before.")
    low, high = float(times.min()), float(times.max())  # type: ignore[arg-type]
    if low >= EARLIEST * 10**4 and high < (LATEST + 1) * 10**4 and _are_dates(times):
        raise ValueError(
            f"column {times.name!r} looks like dates written as numbers, such as {times[0]}: expected seconds (or ms, us, ns) "
            "since 1970. Make them text such as '2024-01-31', or dates."
        )
    unit, other = _unit(high), _unit(low)
    if (low > 0 and unit != other) or (low == 0 and unit != "s"):
        raise ValueError(
            f"column {times.name!r} goes from {times.min()!r} to {times.max()!r}: the first would be {SPELLED[other]} since 1970, "
            f"the last {SPELLED[unit]}. Make all of them seconds, and remove zeros that stand for no time."
        )
    _check_years(times, times.cast(pl.Float64) / UNITS[unit], f", read in {unit!r} by its size,")
    whole = times.cast(pl.Float64).floor().cast(pl.Int64) if times.dtype.is_float() else times.cast(pl.Int64)
    return whole // UNITS[unit]


def _unit(time: float) -> str:
    for name, size in UNITS.items():
        if abs(time) < FINER * size:
            return name
    raise ValueError(f"{time:.3g} is no time since 1970 in s, ms, us or ns.")


def _are_dates(times: pl.Series) -> bool:
    if not times.dtype.is_integer():
        return False
    return not times.cast(pl.String).str.to_date("%Y%m%d", strict=False).null_count()


def _from_text(times: pl.Series) -> pl.Series:
    parts = times.str.strip_chars().str.extract_groups(ISO).struct.unnest()
    clock = pl.concat_str(
        "day", pl.lit(" "), pl.col("minute").fill_null("00:00"), pl.col("second").fill_null(":00")
    ).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False)
    fraction = pl.col("fraction").fill_null("0").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64)
    zone = pl.when(pl.col("zone").str.contains(r"^[+-]")).then(
        pl.col("zone").str.replace(":", "").str.pad_end(5, "0")  # +02 is +0200
    )
    ahead = (zone.str.slice(1, 2).cast(pl.Int64) * 3600 + zone.str.slice(3, 2).cast(pl.Int64) * 60) * pl.when(
        zone.str.starts_with("-")
    ).then(-1).otherwise(1)
    moment = clock.dt.epoch("us") + fraction - ahead.fill_null(0) * 10**6
    made = parts.select(moment.cast(pl.Datetime("us", "UTC")).alias(times.name)).to_series()
    wrong = made.is_null() & times.is_not_null()
    if wrong.any():
        row = wrong.arg_true()[0]
        raise ValueError(
            f"column {times.name!r} holds {times[row]!r} in row {row}, and {wrong.sum() - 1} more that are no times: "
            "expected ISO 8601 such as '2024-01-31', '2024-01-31 10:00:00' or '2024-01-31T10:00:00+01:00'."
        )
    return made


def _check_years(times: pl.Series, since: pl.Series, how: str) -> None:
    """ValueError where seconds since 1970 are outside the years of a log."""
    known = since.to_numpy()  # nan for null, which is neither before nor after
    wrong = (known < BOUNDS[0]) | (known >= BOUNDS[1])
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"column {times.name!r} holds {times[row]!r} in row {row}{how} which is outside the years {EARLIEST} to {LATEST}, and "
            f"{wrong.sum() - 1} more: is another unit meant ({', '.join(UNITS)}), or does it stand for no time? Make that null."
        )
