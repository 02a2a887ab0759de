"""Item frequencies estimated from the stream of batches, in constant memory."""

import torch
from torch import Tensor

from twotower.errors import explain_options
from twotower.samplers.frequency import Frequency


class StreamingFrequency(Frequency):
    """The probability that an item is in a batch, from the number of steps between its occurrences.

    Algorithms 2 and 3 of Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations",
    RecSys 2019: two arrays over hash buckets hold the step of the last occurrence, A, and the estimated gap, B. When an
    item occurs at step t, B <- (1 - alpha) B + alpha (t - A) and A <- t in its bucket; with m hashes, p = 1 / max_i B_i.
    An item that repeats in a batch, and two items in one bucket, count once in a step: p is the probability that a batch
    holds the item, so that the in-batch sampler counts each of a batch's items once, however many rows it has. It follows
    a distribution that changes, and needs neither the data beforehand nor memory for each item; a finite data set is
    better counted.

    An id that never occurred has the initial estimate. Until items have occurred a few times, the estimates are mostly what
    they started from.

    Args:
        num_buckets: in all; each hash has num_buckets // num_hashes of its own.
        num_hashes: m. More make collisions rarer to matter, for the same memory.
        learning_rate: alpha. Larger follows a change sooner, with more noise.
        initial_gap: B before anything was seen, in steps.
        seed: of the hash functions.

    Raises:
        ValueError: fewer buckets than hashes, or a learning rate outside (0, 1].

    Example:
        >>> frequency = StreamingFrequency(learning_rate=0.5)
        >>> for step in range(20):
        ...     frequency.observe(torch.tensor([7, 7]) if step % 4 == 3 else torch.tensor([8]))
        >>> round(frequency.log_expected_count(torch.tensor([7]), rows=2).exp().item(), 1)
        0.1
    """

    counts_batches = True
    multipliers: Tensor
    last: Tensor
    gap: Tensor
    step: Tensor

    @explain_options
    def __init__(
        self,
        num_buckets: int = 2**20,
        num_hashes: int = 2,
        learning_rate: float = 0.01,
        initial_gap: float = 100.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= num_hashes <= num_buckets or not 0 < learning_rate <= 1 or initial_gap < 1:
            raise ValueError(
                f"StreamingFrequency needs num_buckets >= num_hashes >= 1, 0 < learning_rate <= 1 and initial_gap >= 1; got "
                f"{num_buckets} buckets, {num_hashes} hashes, rate {learning_rate} and gap {initial_gap}."
            )
        self.num_buckets = num_buckets
        self.num_hashes = num_hashes
        self.learning_rate = learning_rate
        self.initial_gap = initial_gap
        self.seed = seed
        each = num_buckets // num_hashes
        generator = torch.Generator().manual_seed(seed)
        # odd multipliers for a multiply-shift hash; int64 products wrap, on purpose
        odd = torch.randint(2**61, 2**62, (num_hashes, 1), generator=generator) * 2 + 1
        self.register_buffer("multipliers", odd)
        self.register_buffer("last", torch.zeros(num_hashes * each, dtype=torch.int64))
        self.register_buffer("gap", torch.full((num_hashes * each,), initial_gap, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def adapt(self, ids: Tensor) -> None:
        """Nothing: the estimate comes from the batches."""

    @torch.no_grad()
    def observe(self, ids: Tensor) -> None:
        """One step with a batch of ids (B,)."""
        self.step += 1
        hit = self._buckets(ids).unique()
        self.gap[hit] = self.gap[hit].lerp((self.step - self.last[hit]).to(self.gap.dtype), self.learning_rate)
        self.last[hit] = self.step

    def log_expected_count(self, ids: Tensor, rows: int) -> Tensor:
        """(M,) float64 log p, p the probability of being in a batch of the size that was observed; `rows` has no effect."""
        return -self.gap[self._buckets(ids)].amax(0).log()

    def _buckets(self, ids: Tensor) -> Tensor:
        """(m, M) the bucket of each id under each hash."""
        each = self.num_buckets // self.num_hashes
        mixed = ids[None, :] * self.multipliers
        mixed = (mixed ^ (mixed >> 29)) * self.multipliers
        start = torch.arange(self.num_hashes, device=ids.device)[:, None] * each
        return torch.remainder(mixed >> 20, each) + start
