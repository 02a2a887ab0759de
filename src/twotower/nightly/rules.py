"""The rules of a refresh: how it learns, and when it must not publish."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RefreshRules:
    """How a refresh learns, and what a new bundle must be like to take the live one's place.

    Args:
        held_out: the share of the fresh rows, the latest ones, that live and new are judged by; they are learnt the next time.
        epochs: passes over the rows that are learnt.
        rate: the learning rate, as a share of the config's.
        replay: how many old rows are learnt again, against forgetting, as a share of the new ones.
        margin: how much worse the new bundle may be, as a share of the live one's figure: it is published if the lower end of the
            interval of new - live is above -margin * live.
        trust: the least that the live bundle must still know of the fresh rows, as a share of what it knew of the rows before:
            how much better than by chance it tells a person's own item from another's of the same rows. Less is taken for damaged
            data.
        personal: the least difference between the lists of two people, as a share of that of the live lists.
        most_lost: the share of the live items that may be gone.
        seed: of the order of rows and of what is replayed.

    Raises:
        ValueError: a number out of its range.
    """

    held_out: float = 0.2
    epochs: int = 1
    rate: float = 1.0
    replay: float = 0.25
    margin: float = 0.1
    trust: float = 0.5
    personal: float = 0.5
    most_lost: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "held_out": 0 < self.held_out < 1,
            "epochs": self.epochs >= 1,
            "rate": self.rate > 0,
            "replay": self.replay >= 0,
            "margin": self.margin >= 0,
            "trust": 0 <= self.trust <= 1,
            "personal": 0 <= self.personal <= 1,
            "most_lost": 0 <= self.most_lost <= 1,
            "seed": self.seed >= 0,
        }
        wrong = [name for name, right in ranges.items() if not right]
        if wrong:
            raise ValueError(
                f"{wrong[0]} is {getattr(self, wrong[0])}; expected held_out between 0 and 1, epochs >= 1, rate > 0, replay, "
                "margin and seed >= 0, and trust, personal and most_lost from 0 to 1."
            )
