"""What the measures of health cost: their CPU seconds within fit, on the workload of benchmarks/training.py.

python benchmarks/health.py                     # 200 steps of 8,192 rows, tables of a million rows, one thread, fp32
python benchmarks/health.py --workload w2       # ids only
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import training

from twotower.training.checkup import Checkup
from twotower.training.watch import HealthWatch


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same function; adds the CPU seconds of every call."""

    def call(*given: Any, **named: Any) -> Any:
        start = time.process_time()
        result = function(*given, **named)
        spent.append(time.process_time() - start)
        return result

    return call


def main() -> None:
    """Train once with the parts of the callback timed."""
    parser = training.parser()
    parser.set_defaults(precision="fp32", steps=200)
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured: list[float] = []
    gradients: list[float] = []
    every_step: list[float] = []
    HealthWatch._measure = timed(HealthWatch._measure, measured)  # type: ignore[method-assign]
    Checkup.gradients = timed(Checkup.gradients, gradients)  # type: ignore[method-assign]
    HealthWatch.on_before_backward = timed(HealthWatch.on_before_backward, every_step)  # type: ignore[method-assign]
    step = statistics.median(np.diff(training.library(a).ticks)[a.warmup - 1 :].tolist())
    health = sum(measured) + sum(gradients) + sum(every_step)
    steps = a.warmup + a.steps
    print(f"a step: {1e3 * step:.0f} ms; of it looking at the loss: {1e3 * statistics.median(every_step):.3f} ms")
    print("measurements (first and last with lists):", ", ".join(f"{1e3 * s:.0f} ms" for s in measured))
    print("gradient norms:", ", ".join(f"{1e3 * s:.1f} ms" for s in gradients))
    print(f"all together {health:.2f} s, {100 * health / (steps * step):.2f} % of {steps} steps without it")


if __name__ == "__main__":
    main()
