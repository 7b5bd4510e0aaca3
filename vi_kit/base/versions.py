"""Which versions of other packages vi_kit has been run with, and what is said of others."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from vi_kit.base.errors import VersionError, message


@dataclass(frozen=True)
class Package:
    """What a part of vi_kit needs, as `pyproject.toml` declares it.

    Args:
        module: what it is imported as.
        lowest: the lowest version that `make matrix` runs.
        below: the first minor version after the newest that it runs.
    """

    module: str
    lowest: str
    below: str


NEEDED: Mapping[str, Mapping[str, Package]] = {
    "pyro": {
        "torch": Package("torch", "2.13", "2.14"),
        "pyro-ppl": Package("pyro", "1.9", "1.10"),
    },
    "numpyro": {
        "jax": Package("jax", "0.7", "0.13"),
        "numpyro": Package("numpyro", "0.20", "0.23"),
        "optax": Package("optax", "0.2.4", "0.3"),
    },
}
"""By the extra that installs them."""


@contextmanager
def importing(extra: str) -> Iterator[None]:
    """Around the imports of a part of vi_kit: says once what is wrong with the packages that it needs.

    Args:
        extra: the part, a key of `NEEDED`.

    Raises:
        VersionError: a package is missing or too old, or too new to be imported.
    """
    found = {name: _version(name, package) for name, package in NEEDED[extra].items()}
    wrong = [name for name, version in found.items() if _is_missing_or_old(extra, name, version)]
    if wrong:
        raise VersionError(_text(extra, found, f"vi_kit.{extra} needs {_named(extra, wrong)}"))
    new = [name for name, version in found.items() if _is_new(extra, name, version)]
    try:
        yield
    except (ImportError, AttributeError) as error:
        if not new:
            raise
        headline = f"vi_kit.{extra} cannot be imported with a newer version than it has been run with: {error}"
        raise VersionError(_text(extra, found, headline)) from error
    if new:
        warnings.warn(
            _text(extra, found, f"vi_kit.{extra} has not been run with so new a version"),
            UserWarning,
            stacklevel=4,  # whoever imports it
        )


def _version(name: str, package: Package) -> str | None:
    """That which is installed; an empty one where only the module is there, and does not say."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return "" if importlib.util.find_spec(package.module) else None


def _is_missing_or_old(extra: str, name: str, version: str | None) -> bool:
    return version is None or bool(
        version and _numbers(version) < _numbers(NEEDED[extra][name].lowest)
    )


def _is_new(extra: str, name: str, version: str | None) -> bool:
    return bool(version) and _numbers(version or "") >= _numbers(NEEDED[extra][name].below)


def _numbers(version: str) -> tuple[int, ...]:
    """Of a version; what is made before or after it (`2.13.0+cpu`, `0.11.0.dev3`) counts as it."""
    released = re.match(r"v?(\d+(?:\.\d+)*)", version)
    numbers = [int(n) for n in released[1].split(".")] if released else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _text(extra: str, found: Mapping[str, str | None], headline: str) -> str:
    got = (
        f"{name} {version}" if version else f"no {name}"
        for name, version in found.items()
        if version != ""
    )
    return message(
        headline,
        got=", ".join(got),
        expected=_named(extra, found),
        fix=f'pip install --upgrade "vi-kit[{extra}]"',
    )


def _named(extra: str, names: Mapping[str, object] | list[str]) -> str:
    """Packages, with the versions that they may have."""
    ranges = (f"{n}>={NEEDED[extra][n].lowest},<{NEEDED[extra][n].below}" for n in names)
    return " and ".join(ranges)
