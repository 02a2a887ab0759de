"""How a server is run: what a client may ask for, and who may."""

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Args:
        body_bytes: larger bodies are refused with 413.
        k: the most items of one question.
        questions: in one body.
        results: items that the questions of one body may ask for together; a single question may ask for k.
        list_length: of exclude, only, history, every list in a query, and every list of a filter.
        depth: of lists and objects inside each other in a query or filter.
        timeout: seconds, after which 504 is answered.
        body_timeout: seconds for a client to send its body, then 408.
        search: items that GET /items gives at most.
    """

    body_bytes: int = 1_000_000
    k: int = 1000
    questions: int = 256
    results: int = 20_000
    list_length: int = 10_000
    depth: int = 4
    timeout: float = 10.0
    body_timeout: float = 10.0
    search: int = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be more than 0 and finite, got {value}.")


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Args:
        limits: of requests.
        threads: that answer; each works on a batch of its own.
        max_batch: questions answered together.
        max_wait: seconds that an idle thread waits for more.
        max_queue: questions that may wait; more are answered 503.
        token: what "Authorization: Bearer" must bring, or Basic as the password, for all but health; None for nothing.
        hosts: the names, without ports, by which the server may be called while there is no token; None for any.
        watch: seconds between looks at manifest.json; 0 for none.
        explorer: whether /explore is there.
        access_log: whether every request is a line of JSON on standard error.
    """

    limits: Limits = field(default_factory=Limits)
    threads: int = 1
    max_batch: int = 64
    max_wait: float = 0.0
    max_queue: int = 1024
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] | None = None
    watch: float = 1.0
    explorer: bool = True
    access_log: bool = False

    def __post_init__(self) -> None:
        if self.limits.questions > self.max_queue:
            raise ValueError(
                f"a body may have {self.limits.questions} questions, but only {self.max_queue} may wait: such a body would never "
                "be answered. Raise max_queue, or lower the questions."
            )
        if self.token is not None and (len(self.token) < 8 or not all("!" <= sign <= "~" for sign in self.token)):
            raise ValueError("a token needs at least 8 ASCII characters without spaces or control characters.")
