"""The one place that wires everything, in order of dependency, and takes it down again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from blockd.api.app import make_app
from blockd.api.server import serve_tcp, serve_unix, tls_context
from blockd.api.tokens import read_tokens
from blockd.catalog import open_catalog
from blockd.config import Config
from blockd.daemon.classes import make_pools, open_classes
from blockd.daemon.groups import open_groups
from blockd.daemon.guests import open_guests
from blockd.daemon.lost_catalog import recover_catalog, secure_catalog
from blockd.daemon.verbs import Told, open_images, open_service
from blockd.domain.effects import SideEffects
from blockd.host.group import Group
from blockd.host.notify import inherited_socket, notify
from blockd.metrics import CountedEffects, Metrics
from blockd.service import Service
from blockd.service.catalog_copies import CatalogCopies

log = structlog.get_logger()


async def run(config: Config, listener: SideEffects | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        listener: is told each side effect (the crash tests').

    Raises:
        StartError: something is missing; one line says what.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics()
    effects = CountedEffects(metrics, listener or SideEffects())
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        groups = await enter(open_groups(config, effects))
        await secure_catalog(config, groups)
        catalog = await enter(open_catalog(config.catalog.path, effects))
        classes = await enter(open_classes(config, catalog, groups, effects, metrics))
        copies = await enter(CatalogCopies(catalog, classes, effects))
        images = await enter(open_images(config, effects))
        guests = await enter(open_guests(config))
        service = await enter(
            open_service(
                config,
                catalog,
                classes,
                images,
                guests,
                Told(metrics.count_loss, metrics.count_extension, copies.try_again),
                copies.states,
                effects,
            )
        )

        async def page_of_metrics() -> bytes:
            health = await service.host.health()
            return metrics.render(health.pools, health.queued, health.catalog_copies)

        await enter(_serve(config, service, page_of_metrics))
        log.info("ready", zone=config.host.zone, classes=list(config.classes))
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")


@asynccontextmanager
async def _serve(
    config: Config, service: Service, metrics: Callable[[], Awaitable[bytes]]
) -> AsyncIterator[None]:
    group = Group(config.api.group)
    app = make_app(service, metrics, lambda peer: group.admits(peer.uid, peer.gid))
    given = inherited_socket()
    path = config.api.socket
    if given is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    where: Path | int = path if given is None else given.detach()
    stop_s = config.daemon.stop_timeout
    async with AsyncExitStack() as stack:
        if config.tcp is not None:
            host, _, port = config.tcp.listen.rpartition(":")
            tls = tls_context(config.tcp.certificate, config.tcp.key)
            by_token = make_app(service, metrics, lambda _: False, read_tokens(config.tcp.tokens))
            listening = serve_tcp(by_token, host, int(port), tls, close_within_s=stop_s)
            await stack.enter_async_context(listening)
        await stack.enter_async_context(
            serve_unix(app, where, gid=group.gid, close_within_s=stop_s)
        )
        yield


__all__ = [
    "make_pools",
    "open_classes",
    "open_guests",
    "open_images",
    "open_service",
    "recover_catalog",
    "run",
]
