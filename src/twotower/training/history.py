"""History: what fit logged, epoch by epoch."""

from collections.abc import Mapping
from dataclasses import dataclass

from twotower.health.record import Health


@dataclass(frozen=True)
class History:
    """The values of every epoch, by name.

    Args:
        history: name to one value for each epoch, such as {"loss": [5.2, 4.1], "val_recall_at_10": [.02, .05]}. A
            value that an epoch did not log is nan.
        health: the measurements of health in their order, those within epochs too.
    """

    history: Mapping[str, list[float]]
    health: tuple[Health, ...] = ()

    @property
    def epochs(self) -> int:
        """How many epochs ended."""
        return max((len(values) for values in self.history.values()), default=0)

    def last(self) -> dict[str, float]:
        """The values of the last epoch."""
        return {name: values[-1] for name, values in self.history.items()}
