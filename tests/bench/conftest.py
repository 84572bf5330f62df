"""Benchmarks here are not to say how fast anything is: nothing settles, and no garbage is collected between rounds."""

from types import SimpleNamespace

import pytest

from ccnet_cli.bench import meter


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed runs at once; a collection takes longer than all the rest, with the objects of all tests."""
    monkeypatch.setattr(meter, "gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr(meter.Meter, "settle", lambda self, call: call())
