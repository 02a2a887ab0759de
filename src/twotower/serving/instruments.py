"""What the server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ROUTES = ("recommend", "similar", "items", "health", "v2", "metrics", "reload", "schema", "explore")


class Instruments:
    """Counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter(
            "twotower_requests", "Requests by route and status.", ["route", "status"], registry=own
        )
        self._seconds = Histogram(
            "twotower_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, registry=own
        )
        self.batch_size = Histogram("twotower_batch_size", "Questions answered together.", buckets=SIZES, registry=own)
        self.batch_seconds = Histogram("twotower_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=own)
        self.dropped = Counter("twotower_dropped", "Questions left unanswered, by reason.", ["reason"], registry=own)
        self.reloads = Counter(
            "twotower_reloads", "Bundles that came, by what became of them.", ["result"], registry=own
        )
        self.bundle = Info("twotower_bundle", "The bundle that is served.", registry=own)
        self.items = Gauge("twotower_items", "Items in the bundle.", registry=own)
        self.ready = Gauge("twotower_ready", "1 if requests are welcome.", registry=own)
        self.stale = Gauge("twotower_bundle_refused", "1 if a newer bundle was refused.", registry=own)
        self.queue = Gauge("twotower_queue", "Questions that wait.", registry=own)
        self._labelled: dict[tuple[str, int], Callable[[], None]] = {}
        self._observed = {route: self._seconds.labels(route).observe for route in (*ROUTES, "info", "other")}
        for reason in ("full", "timeout", "gone"):
            self.dropped.labels(reason)
        for result in ("served", "refused"):
            self.reloads.labels(result)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One request was answered."""
        first = path[1:].partition("/")[0]
        route = first if first in ROUTES else "other" if first else "info"
        count = self._labelled.get((route, status))
        if count is None:
            count = self._labelled[route, status] = self._requests.labels(route, status).inc
        count()
        self._observed[route](seconds)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
