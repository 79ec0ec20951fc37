"""What Prometheus is told. Counts side effects as they are announced, and asks pools when asked."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from blockd.domain.effects import SideEffects
from blockd.domain.pool import PoolUse
from blockd.domain.units import parse_timestamp
from blockd.service.catalog_copies import CopyState

_QUEUE_BUCKETS_S = (0.001, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)


class Metrics:
    """One registry per daemon, so that tests can run several."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lvm = Counter(
            "blockd_lvm_processes_total",
            "LVM processes started, by command.",
            ["command"],
            registry=self._registry,
        )
        self._effects = Counter(
            "blockd_side_effects_total",
            "Catalog commits, device-mapper changes and links, by kind.",
            ["kind"],
            registry=self._registry,
        )
        self._losses = Counter(
            "blockd_snapshots_lost_total",
            "Snapshots whose store overflowed, by class: their bytes are gone.",
            ["storage_class"],
            registry=self._registry,
        )
        self.queue_wait_s = Histogram(
            "blockd_vg_queue_wait_seconds",
            "How long a change waited for its turn in the volume group.",
            buckets=_QUEUE_BUCKETS_S,
            registry=self._registry,
        )
        self._under_way = Gauge(
            "blockd_operations", "Operations that wait or run.", registry=self._registry
        )
        self._pool_bytes = Gauge(
            "blockd_pool_bytes",
            "Size and use of a pool; what: size, used, metadata_size, metadata_used, free.",
            ["storage_class", "pool", "what"],
            registry=self._registry,
        )

        self._copy_behind_s = Gauge(
            "blockd_catalog_copy_behind_seconds",
            "How long the catalog has had changes that its copy with a class's disks lacks.",
            ["storage_class"],
            registry=self._registry,
        )
        self._copy_written_s = Gauge(
            "blockd_catalog_copy_written_timestamp_seconds",
            "When the copy of the catalog with a class's disks was written; 0: there is none.",
            ["storage_class"],
            registry=self._registry,
        )

    def count(self, effect: str) -> None:
        """One side effect began."""
        kind, _, command = effect.partition(" ")
        if kind == "lvm":
            self._lvm.labels(command).inc()
        else:
            self._effects.labels(kind).inc()

    def count_loss(self, storage_class: str) -> None:
        """A snapshot of this class was lost."""
        self._losses.labels(storage_class).inc()

    def render(self, pools: list[PoolUse], under_way: int, copies: list[CopyState]) -> bytes:
        """The text exposition, with the state of this moment."""
        self._under_way.set(under_way)
        for copy in copies:
            written = None if copy.written_at is None else parse_timestamp(copy.written_at)
            self._copy_written_s.labels(copy.storage_class).set(
                0.0 if written is None else written.timestamp()
            )
            self._copy_behind_s.labels(copy.storage_class).set(copy.behind_s)
        for pool in pools:
            for what, value in (
                ("size", pool.size_bytes),
                ("used", pool.used_bytes),
                ("metadata_size", pool.metadata_size_bytes),
                ("metadata_used", pool.metadata_used_bytes),
                ("free", pool.free_bytes),
            ):
                if value is None:
                    continue  # thin: what is not used is promised many times
                self._pool_bytes.labels(pool.storage_class, pool.name, what).set(value)
        return generate_latest(self._registry)


class CountedEffects(SideEffects):
    """Counts, and passes on to another listener."""

    def __init__(self, metrics: Metrics, listener: SideEffects) -> None:
        self._metrics, self._listener = metrics, listener

    def before(self, name: str) -> None:
        self._metrics.count(name)
        self._listener.before(name)

    def started(self, name: str) -> None:
        self._listener.started(name)

    def after(self, name: str) -> None:
        self._listener.after(name)
