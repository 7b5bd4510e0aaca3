"""Alternatives are evaluated apart in small programs too, where that does not pay."""

from __future__ import annotations

import pytest

import vi_kit.pyro.broadcasting as broadcasting


@pytest.fixture(autouse=True)
def alternatives_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcasting, "SAVED_BY_STATEMENT", float("-inf"))
