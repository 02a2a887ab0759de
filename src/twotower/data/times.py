"""Times in any of the common ways, as whole seconds since 1970."""

import polars as pl

UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
LATEST = 10**11  # seconds: the year 5138; a larger number counts something finer
DATES = (1900_01_01, 2100_12_31)
ISO = (
    r"^(?<day>\d{4}-\d{2}-\d{2})(?:[T ](?<minute>\d{2}:\d{2})(?<second>:\d{2})?(?:[.,]\d+)?"
    r" ?(?<zone>Z|UTC|[+-]\d{2}:?\d{2})?)?$"
)


def seconds(times: pl.Series) -> pl.Series:
    """Whole seconds since 1970 in UTC, int64, rounded down.

    Args:
        times: numbers since 1970 in s, ms, us or ns, told apart by size: seconds are below 1e11 (the year 5138), each
            unit goes a thousand times further; dates and datetimes, those without a zone in UTC; or text in ISO 8601,
            such as "2024-01-31", "2024-01-31 10:00" or "2024-01-31T10:00:00.5+01:00".

    Raises:
        ValueError: nulls, other types, text that is no time, numbers of more than one unit, numbers such as 20240131.

    Example:
        >>> seconds(pl.Series("t", ["1970-01-02", "1970-01-02T01:00:00+01:00"])).to_list()
        [86400, 86400]
        >>> seconds(pl.Series("t", [978300760000, 978300761999])).to_list()
        [978300760, 978300761]
    """
    if times.null_count():
        raise ValueError(f"column {times.name!r} has {times.null_count()} times missing. Remove these rows before.")
    if times.dtype == pl.String:
        is_number = times.str.contains(r"^-?\d+(\.\d+)?$")
        if not is_number.all():
            return _from_text(times)
        times = times.cast(pl.Float64 if times.str.contains(".", literal=True).any() else pl.Int64)
    if times.dtype in (pl.Date, pl.Datetime):
        return times.cast(pl.Datetime("us", getattr(times.dtype, "time_zone", None))).dt.timestamp("us") // 10**6
    if times.dtype.is_numeric():
        return _from_numbers(times)
    raise ValueError(f"column {times.name!r} holds {times.dtype}, not times: expected numbers, datetimes or ISO text.")


def _from_numbers(times: pl.Series) -> pl.Series:
    if times.dtype.is_float() and not times.is_finite().all():
        raise ValueError(f"column {times.name!r} holds nan or infinite times. Remove these rows before.")
    low, high = float(times.min()), float(times.max())  # type: ignore[arg-type]
    if DATES[0] <= low and high <= DATES[1] and _are_dates(times):
        raise ValueError(
            f"column {times.name!r} looks like dates written as numbers, such as {times[0]}: expected seconds (or ms, us, ns) "
            "since 1970. Make them text such as '2024-01-31', or dates."
        )
    unit, other = _unit(high), _unit(low)
    if (low > 0 and unit != other) or (low == 0 and unit != "seconds"):
        raise ValueError(
            f"column {times.name!r} goes from {times.min()!r} to {times.max()!r}: the first would be {other} since 1970, the last "
            f"{unit}. Make all of them seconds, and remove zeros that stand for no time."
        )
    whole = times.cast(pl.Float64).floor().cast(pl.Int64) if times.dtype.is_float() else times.cast(pl.Int64)
    return whole // UNITS[unit]


def _unit(time: float) -> str:
    for name, size in UNITS.items():
        if abs(time) < LATEST * size:
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
    zone = pl.when(pl.col("zone").str.contains(r"^[+-]")).then(pl.col("zone").str.replace(":", ""))
    ahead = (zone.str.slice(1, 2).cast(pl.Int64) * 3600 + zone.str.slice(3, 2).cast(pl.Int64) * 60) * pl.when(
        zone.str.starts_with("-")
    ).then(-1).otherwise(1)
    made = parts.select((clock.dt.timestamp("us") // 10**6 - ahead.fill_null(0)).alias(times.name)).to_series()
    if made.null_count():
        row = made.is_null().arg_true()[0]
        raise ValueError(
            f"column {times.name!r} holds {times[row]!r} in row {row}, and {made.null_count() - 1} more that are no times: "
            "expected ISO 8601 such as '2024-01-31 10:00:00' or '2024-01-31T10:00:00+01:00', or numbers."
        )
    return made
