"""What Prometheus is told. Counts side effects as they are announced, and asks pools when asked."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from blockd.domain.effects import SideEffects
from blockd.domain.pool import PoolTrouble
from blockd.domain.pool_state import PoolState
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
            "Size and use of a pool; what: size, used, metadata_size, metadata_used, free,"
            " group_free, addable.",
            ["storage_class", "pool", "what"],
            registry=self._registry,
        )
        self._pool_full_s = Gauge(
            "blockd_pool_full_seconds",
            "Until a pool is full at the rate of the last ten minutes, all extensions to come"
            " included; +Inf when it does not fill; what: data, metadata (without extensions).",
            ["storage_class", "pool", "what"],
            registry=self._registry,
        )
        self._pool_extension = Gauge(
            "blockd_pool_extension_works",
            "1 if the next extension of a pool would work, else 0: /host/v1/pools says why.",
            ["storage_class", "pool"],
            registry=self._registry,
        )
        self._pool_trouble = Gauge(
            "blockd_pool_trouble",
            "1 for the trouble that a pool is in, 0 for all others.",
            ["storage_class", "pool", "trouble"],
            registry=self._registry,
        )
        self._extensions = Counter(
            "blockd_pool_extensions_total",
            "Extensions of pools, by class; outcome: done, failed.",
            ["storage_class", "outcome"],
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

    def count_extension(self, storage_class: str, outcome: str) -> None:
        """A pool of this class was extended (`done`), or could not be (`failed`)."""
        self._extensions.labels(storage_class, outcome).inc()

    def render(self, pools: list[PoolState], under_way: int, copies: list[CopyState]) -> bytes:
        """The text exposition, with the state of this moment."""
        self._under_way.set(under_way)
        for copy in copies:
            written = None if copy.written_at is None else parse_timestamp(copy.written_at)
            self._copy_written_s.labels(copy.storage_class).set(
                0.0 if written is None else written.timestamp()
            )
            self._copy_behind_s.labels(copy.storage_class).set(copy.behind_s)
        for state in pools:
            self._set_pool(state)
        return generate_latest(self._registry)

    def _set_pool(self, state: PoolState) -> None:
        pool = state.use
        labels = pool.storage_class, pool.name
        for what, value in (
            ("size", pool.size_bytes),
            ("used", pool.used_bytes),
            ("metadata_size", pool.metadata_size_bytes),
            ("metadata_used", pool.metadata_used_bytes),
            ("free", pool.free_bytes),
            ("group_free", pool.group_free_bytes),
            ("addable", None if pool.group_free_bytes is None else state.addable_bytes),
        ):
            if value is not None:  # thin: what is not used is promised many times
                self._pool_bytes.labels(*labels, what).set(value)
        for what, full_in_s in (
            ("data", state.full_in_s),
            ("metadata", state.metadata_full_in_s),
        ):
            self._pool_full_s.labels(*labels, what).set(
                math.inf if full_in_s is None else full_in_s
            )
        self._pool_extension.labels(*labels).set(not state.obstacle)
        for trouble in PoolTrouble:
            self._pool_trouble.labels(*labels, trouble.value).set(pool.trouble is trouble)


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
