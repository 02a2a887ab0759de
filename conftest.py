"""Before anything is imported: check the shapes that the annotations promise, in every test run."""

import os

from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")

NAMES = (
    "baselines", "blocks", "candidates", "distinct", "encoder", "evaluation", "exposure", "indexes", "logits", "losses", "metrics",
    "optimizers", "outputs",
)  # fmt: skip
SHAPED = [f"twotower.{name}" for name in NAMES]
install_import_hook(SHAPED, "tests.checked")

import pytest  # noqa: E402
import torch  # noqa: E402

import twotower as tt  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _names_in_doctests(doctest_namespace: dict[str, object]) -> None:
    doctest_namespace |= {name: getattr(tt, name) for name in tt.__all__} | {"torch": torch, "tt": tt}
