"""What the correction does, where the truth is known: `python benchmarks/sampling_bias.py`, about four minutes.

Users and items belong to four clubs. Nine events of ten stay within the user's club, where the items' shares fall as
1 / rank: the first item of a club has 32 % of the events. The corrected softmax should learn just that.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.worlds import clubs, towers

import twotower as tt


def share_of_first_item(batch_size: int, epochs: int, correction: bool | str) -> float:
    """The probability that the model gives the first item of a club, mean over the four clubs."""
    train = clubs(rows=8000, seed=3)
    torch.manual_seed(0)
    model = tt.TwoTowerModelV2(*towers(train), logq_sampling_correction=correction)
    model.compile(learning_rate=0.003 if batch_size < 64 else 0.01)
    model.fit(train, epochs=epochs, batch_size=batch_size, verbose=False)
    users = torch.arange(4)
    with torch.no_grad():
        query = model.query({"user_id": users, "user_height": users / 60})
        p = torch.softmax(query @ model.candidate(model.catalog.features).T, dim=1)
    return sum(p[club, model.catalog.ids == club].item() for club in range(4)) / 4


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("truth 0.316")
    for batch_size, epochs in ((8, 8), (32, 12), (256, 30)):
        logq, corrected, plain = (share_of_first_item(batch_size, epochs, c) for c in ("logq", "corrected", False))
        expected = batch_size * 0.925 / 4 / 2.929
        print(f"batch {batch_size:3d}, first item expected {expected:5.2f} times:", end=" ")
        print(f"logq {logq:.3f}, corrected {corrected:.3f}, plain {plain:.3f}", flush=True)
