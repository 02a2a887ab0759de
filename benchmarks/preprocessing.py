"""What it costs to learn vocabularies and encode raw Parquet: user ids, items jointly with a history, a category, a number.

    python benchmarks/preprocessing.py --rows 1000000

Fits and writes encoded Parquet with twotower.Preprocessor from the files, and from a DuckDB relation on them; then ten times
the rows. Seconds of wall-clock time on all cores, and the process's peak memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import twotower as tt
from twotower import Tags


def write(folder: Path, rows: int, file_rows: int = 1_000_000) -> None:
    """Files of a million rows in row groups of 131,072; Zipf-like ids, items as text, histories of about 10."""
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, file_rows)):
        size = min(file_rows, rows - start)
        offsets = np.r_[0, rng.integers(5, 16, size).cumsum()].astype(np.int32)
        columns = {
            "user_id": pa.array((rng.pareto(0.8, size) * 1000).astype(np.int64) % 2_000_000),
            "item_id": _items(rng, size),
            "history": pa.ListArray.from_arrays(offsets, _items(rng, int(offsets[-1]))),
            "device": pa.array(rng.choice(["phone", "tablet", "desktop", "tv"], size)),
            "price": pa.array(rng.lognormal(2, 1, size)),
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=131_072)


def _items(rng: np.random.Generator, size: int) -> pa.Array:
    ids = (rng.pareto(0.8, size) * 1000).astype(np.int64) % 500_000
    return pc.binary_join_element_wise("item", pa.array(ids).cast(pa.string()), "-")


def encode(folder: Path, engine: str) -> dict[str, float]:
    """Fit, then write the encoded rows."""
    source: object = folder / "raw"
    if engine == "duckdb":
        import duckdb

        source = duckdb.sql(f"select * from '{folder}/raw/*.parquet'")
    columns = {
        "user_id": tt.Categorical(Tags.USER_ID, min_count=2),
        "item_id": tt.Categorical(Tags.ITEM_ID, min_count=2),
        "history": tt.Categorical(Tags.USER, share="item_id"),
        "device": tt.Categorical(Tags.USER),
        "price": tt.Numeric(Tags.ITEM, scale="log"),
    }
    start = time.perf_counter()
    preprocessor = tt.Preprocessor(columns).fit(source)
    fitted = time.perf_counter()
    preprocessor.transform_to_parquet(source, folder / f"encoded-{engine}")
    done = time.perf_counter()
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return {
        "fit": fitted - start,
        "encode": done - fitted,
        "peak_mb": peak,
        "items": len(preprocessor.vocabulary("item_id")),
    }


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--encode", nargs=2, help="folder and engine: encode here")
    a = p.parse_args()
    if a.encode:
        print(json.dumps(encode(Path(a.encode[0]), a.encode[1])))
        sys.exit()
    print("| rows | from | fit, s | encode and write, s | items | peak MB |\n|---|---|---|---|---|---|")
    for rows in (a.rows, 10 * a.rows):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "raw").mkdir()
            write(Path(folder) / "raw", rows)
            for engine in ("files", "duckdb"):
                command = [sys.executable, __file__, "--encode", folder, engine]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                line = json.loads(done.stdout)
                times = f"{line['fit']:.1f} | {line['encode']:.1f}"
                print(f"| {rows:,} | {engine} | {times} | {line['items']:,} | {line['peak_mb']:,.0f} |", flush=True)
