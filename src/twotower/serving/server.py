"""The server process: uvicorn, its signals, and a stop that loses no answer."""

import asyncio
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn

from twotower.serving.app import make_app
from twotower.serving.front import Front
from twotower.serving.live import Live
from twotower.serving.problems import Problem
from twotower.serving.protocol import BoundedProtocol
from twotower.serving.service import Service
from twotower.serving.settings import Settings

log = logging.getLogger("twotower.serve")


class Server(uvicorn.Server):
    """Stops in two steps on SIGTERM: first it is not ready and closes each connection with its next answer, then it goes.

    Args:
        config: uvicorn's.
        front: the application.
        service: inside it.
        drain: seconds between the steps, in which load balancers learn of it.
        connections: that are answered at a time.
    """

    def __init__(self, config: uvicorn.Config, front: Front, service: Service, drain: float, connections: int) -> None:
        super().__init__(config)
        self.front, self.service, self.drain = front, service, drain
        front.connections, front.most = self.server_state.connections, connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and SIGHUP reloads."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.started:
            return
        address, port = self.servers[0].sockets[0].getsockname()[:2]
        log.info(
            "listening on http://%s:%d; /schema lists the routes", f"[{address}]" if ":" in address else address, port
        )
        if os.name == "posix":
            self._loop.add_signal_handler(signal.SIGHUP, self._reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM drains first; a second signal, or Ctrl-C, does not wait."""
        if sig != signal.SIGTERM or self.service.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self.service.draining = self.front.draining = True
        log.info("stopping in %g s; answers go on until then", self.drain)
        self._loop.call_soon_threadsafe(self._loop.call_later, self.drain, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    def _reload(self) -> None:
        async def reload() -> None:
            try:
                await self.service.reload(force=True)
            except Problem:  # the log says why
                return

        self._task = asyncio.ensure_future(reload())


def serve(
    live: Live,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain: float = 1.0,
    grace: float = 30.0,
    connections: int = 2048,
) -> None:
    """Serve until a signal comes.

    Args:
        live: the bundle; load it before, so that a broken one is told of at once.
        settings: limits, threads, token.
        host, port: where to listen.
        drain: seconds between SIGTERM and the end of listening.
        grace: seconds that requests may take after that.
        connections: open at a time; while there are more, all but health is answered 503.

    Raises:
        OSError: the port is taken.
    """
    allow_files(2 * connections)
    front, service = make_app(live, settings)
    config = uvicorn.Config(
        front,  # type: ignore[arg-type]
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        http=BoundedProtocol,
        ws="none",
        timeout_graceful_shutdown=int(grace),
        timeout_keep_alive=75,
    )
    Server(config, front, service, drain, connections).run()


def allow_files(count: int) -> None:
    """Let this process open so many files and connections, as far as the system lets it; usual are 1024."""
    if os.name == "posix":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
