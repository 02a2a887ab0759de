"""How well item frequencies are estimated from a stream: the simulation of Yi et al., RecSys 2019; about a minute.

1000 items, batches of 128 without replacement by weights i ** 2; after step 10,000 the order of the weights is turned round.
5000 buckets in all, A = 0, B = 100. The error is sum_i |p^_i - p_i| / (2 * 128), p_i the true probability of being in a batch.

    python benchmarks/frequency.py
"""

import torch

import twotower as tt

ITEMS, BATCH, SWITCH = 1000, 128, 10_000
ASKED = (2000, 5000, 10_000, 12_000, 20_000)


def batches(weights: torch.Tensor, generator: torch.Generator, number: int) -> torch.Tensor:
    """(number, BATCH) distinct items in every row: those with the smallest exponential keys."""
    keys = torch.empty(number, ITEMS, dtype=torch.float64).exponential_(generator=generator) / weights
    return keys.topk(BATCH, largest=False).indices


def shares(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(ITEMS,) how often each item is in a batch, by 40,000 draws."""
    counts = sum(torch.bincount(batches(weights, generator, 1000).flatten(), minlength=ITEMS) for _ in range(40))
    return counts / 40_000


def errors(hashes: int, rate: float, truth: tuple[torch.Tensor, torch.Tensor], weights: torch.Tensor) -> list[float]:
    """The error at each of the steps asked for."""
    generator = torch.Generator().manual_seed(1)
    frequency = tt.StreamingFrequency(5000, hashes, rate, initial_gap=100, seed=3)
    found = []
    for first in range(0, ASKED[-1], 1000):
        after = first >= SWITCH
        for ids in batches(weights.flip(0) if after else weights, generator, 1000):
            frequency.observe(ids)
        if first + 1000 in ASKED:
            p = frequency.log_expected_count(torch.arange(ITEMS), BATCH).exp()
            found.append(float((p - truth[after]).abs().sum() / (2 * BATCH)))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    weights = torch.arange(1, ITEMS + 1, dtype=torch.float64) ** 2
    generator = torch.Generator().manual_seed(0)
    before = shares(weights, generator)
    truth = (before, before.flip(0))
    print("| hashes | alpha |", " | ".join(f"t={step}" for step in ASKED), "|\n|---|---|" + "---|" * len(ASKED))
    for hashes, rate in ((1, 0.01), (2, 0.01), (4, 0.01), (1, 0.1)):
        print(f"| {hashes} | {rate} |", " | ".join(f"{e:.3f}" for e in errors(hashes, rate, truth, weights)), "|")
