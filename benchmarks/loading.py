"""How fast batches come from Parquet: nine columns (2 ids, 4 categories, 2 numbers, a list of about 10 ids), batches of 8,192.

    python benchmarks/loading.py --rows 2000000

One thread and the stream's reader; rows a second of wall-clock time and of CPU time of the process, and its peak memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import twotower as tt


def write(folder: Path, rows: int, file_rows: int = 1_000_000) -> None:
    """Files of a million rows in row groups of 131,072."""
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, rows, file_rows)):
        size = min(file_rows, rows - start)
        columns = {
            "user_id": pa.array(rng.integers(0, 2_000_000, size, dtype=np.int32)),
            "item_id": pa.array(rng.integers(0, 500_000, size, dtype=np.int32)),
        }
        columns |= {f"c{n}": pa.array(rng.integers(0, 1000, size, dtype=np.int32)) for n in range(4)}
        columns |= {f"x{n}": pa.array(rng.standard_normal(size, dtype=np.float32)) for n in range(2)}
        offsets = np.r_[0, rng.integers(5, 16, size).cumsum()].astype(np.int32)
        items = pa.array(rng.integers(0, 500_000, offsets[-1], dtype=np.int32))
        columns["history"] = pa.ListArray.from_arrays(offsets, items)
        pq.write_table(pa.table(columns), folder / f"{number}.parquet", row_group_size=131_072, compression="snappy")


def read(folder: Path, in_memory: bool) -> dict[str, float]:
    """Two epochs; the second one's rates, without the start."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    loader = tt.Loader(tt.Dataset(folder), 8192, in_memory=in_memory)
    best: dict[str, float] = {}
    for _ in range(3):
        wall, cpu, rows = time.perf_counter(), time.process_time(), 0
        for batch in loader:
            rows += len(batch["user_id"])
        found = {"wall": rows / (time.perf_counter() - wall), "cpu": rows / (time.process_time() - cpu)}
        best = {name: max(value, best.get(name, 0)) for name, value in found.items()}
    lines = Path("/proc/self/status").read_text().splitlines()
    return best | {"peak_mb": next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rows", type=int, default=2_000_000)
    p.add_argument("--read", nargs=2, help="folder and stream or memory: read here")
    a = p.parse_args()
    if a.read:
        print(json.dumps(read(Path(a.read[0]), a.read[1] == "memory")))
        sys.exit()
    print("| rows | | M rows a second | M rows a CPU-second | peak MB |\n|---|---|---|---|---|")
    for rows in (a.rows, 10 * a.rows):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), rows)
            for how in ("stream", "memory") if rows == a.rows else ("stream",):
                command = [sys.executable, __file__, "--read", folder, how]
                done = subprocess.run(
                    command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
                )
                line = json.loads(done.stdout or f'{{"error": {done.stderr[-500:]!r}}}')
                print(
                    f"| {rows:,} | {how} | {line['wall'] / 1e6:.2f} | {line['cpu'] / 1e6:.2f} | {line['peak_mb']:,.0f} |",
                    flush=True,
                )
