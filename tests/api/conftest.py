"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from tests.api.rig import V1, V1ALPHA1, Api, Rig, served
from tests.support.service import DRIVERS


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Hundreds of log lines would hide why a test failed; `capture_logs` sees them all the same."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


#: Modules whose tests run with either class as the default; the others look at what is common.
_WITH_BOTH = frozenset({"tests.api.test_resources"})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of such a module that has a rig: once with each class."""
    if metafunc.module.__name__ in _WITH_BOTH and "default_class" in metafunc.fixturenames:
        metafunc.parametrize("default_class", DRIVERS, indirect=True)


@pytest.fixture
def default_class(request: pytest.FixtureRequest) -> str:
    """Thin, unless a test is parametrized with both: see `pytest_generate_tests`."""
    return str(getattr(request, "param", "sbs"))


@pytest_asyncio.fixture
async def rig(tmp_path: Path, default_class: str) -> AsyncIterator[Rig]:
    """The API over the real service and sparse files."""
    async with served(tmp_path, default_class=default_class) as running:
        yield running


@pytest.fixture
def api(rig: Rig) -> Api:
    """The client alone, for tests that need no more."""
    return rig.api


@pytest.fixture(params=[V1, V1ALPHA1], ids=["v1", "v1alpha1"])
def prefix(request: pytest.FixtureRequest) -> str:
    """Both prefixes, in turn."""
    assert isinstance(request.param, str)
    return request.param
