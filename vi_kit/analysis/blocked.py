"""What has no closed form: which operation, where, and the error about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vi_kit.analysis.factors import Library, Value, value_of_site
from vi_kit.analysis.parts import NoRuleError, SiteKey
from vi_kit.base.errors import AnalyticError, message
from vi_kit.base.named import Array


@dataclass(frozen=True)
class Blocked:
    """What had no closed form.

    Attributes:
        operation: that had no rule.
        reason: why.
        line: of the program, if it is known.
        sites: on which the value depends.
        term: of which it is a part.
        other: the name of an estimator that the first of these sites may have.
    """

    operation: str
    reason: str
    line: str
    sites: frozenset[SiteKey]
    term: str = ""
    other: str = "Reparam"

    def __str__(self) -> str:
        where = f" at {self.line}" if self.line else ""
        return f"{self.operation}{where}: {self.reason}"

    @staticmethod
    def among(values: Sequence[Value | Blocked]) -> Blocked | None:
        """The first of some operands that had no closed form, with the sites of all."""
        first = next((v for v in values if isinstance(v, Blocked)), None)
        return first and replace(first, sites=sites_of(values))

    def error(self) -> AnalyticError:
        return analytic_error([self])


def settled(value: Value | Blocked, sample: Callable[[], Array] | None, is_closed: bool) -> Array:
    """What a term is: its expectation if it has a closed form, else what it is for the values that were drawn.

    Raises:
        AnalyticError: it has neither.
    """
    if sample is not None and not is_closed:
        return sample()
    if isinstance(value, Blocked):
        raise value.error()
    return value.full_mean


def analytic_error(found: Iterable[Blocked]) -> AnalyticError:
    """The error about values that have no closed form."""
    texts = []
    for blocked in found:
        names = sorted(label.split(" (")[0] for _, label in blocked.sites)
        where = f"site {names[0]!r}" if len(names) == 1 else f"sites {names}"
        texts.append(
            message(
                f"{where}: Analytic() has no closed form for {blocked}",
                got=blocked.term or "a value that depends on random ones",
                expected="sums, products with constants, linear layers; squares, products of independent sites, exp of"
                " Normal values, powers and logs of Gamma values; then only sums and products with constants",
                fix=f'estimators={{"{names[0]}": vi.Analytic(fallback=vi.{blocked.other}())}}, or vi.{blocked.other}()',
            )
        )
    return AnalyticError("\n".join(texts))


def sites_of(values: Sequence[Value | Blocked]) -> frozenset[SiteKey]:
    return frozenset[SiteKey]().union(*(v.sites for v in values))


def started(
    kind: str,
    arrays: Sequence[Any],
    site: SiteKey,
    library: Library,
    frames: Iterable[tuple[str, int, str]],
) -> Value | Blocked:
    """The value of a site, or why it has none. See `vi_kit.analysis.factors.value_of_site`."""
    above = [x for x in arrays if isinstance(x, Value | Blocked)]
    sites = sites_of(above) | {site}
    blocked = Blocked.among(above)
    if blocked is not None:
        return replace(blocked, sites=sites)
    try:
        return value_of_site(kind, arrays, site, library)
    except NoRuleError as error:
        return Blocked("sample", str(error), line_of_program(frames), sites)


PACKAGE = os.path.join(Path(__file__).resolve().parents[1], "")


def line_of_program(frames: Iterable[tuple[str, int, str]]) -> str:
    """The first of some frames, innermost first, that is neither of a library nor of vi_kit."""
    for path, line, function in frames:
        if "site-packages" not in path and not path.startswith((PACKAGE, "<")):
            return f"{os.path.basename(path)}:{line} ({function})"
    return ""


@dataclass(eq=False)
class Once:
    """A function that is called once at most."""

    fn: Callable[[], Any]
    result: Any = None
    is_done: bool = False

    def __call__(self) -> Any:
        if not self.is_done:
            self.result, self.is_done = self.fn(), True
        return self.result
