"""Whether what `Estimator.expand` hands back is what its site needs: everything there, in the right shape, and in the
support."""

from __future__ import annotations

from dataclasses import replace

from array_api_compat import array_namespace

from vi_kit.base.context import Arrays
from vi_kit.base.errors import EstimatorError, message
from vi_kit.base.layouts import Worlds
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.estimators.base import Expansion


def checked(backend: Arrays, site: Site, dist: Distribution, expansion: Expansion) -> Expansion:
    """Refuse an expansion that would be broadcast, ignored or taken for another one.

    Estimators of one's own only: those of vi_kit have tests. Whether values lie in the support is asked as far as they
    are known. While a program is traced, as all are that have several values at once in NumPyro, they are not:
    coefficients of alternatives outside are then not a number, and so is the gradient; of a value outside it depends on
    what its log density is there.

    Returns:
        The expansion.

    Raises:
        EstimatorError: something is not there, has another shape, or lies outside the support.
    """
    if type(site.estimator).__module__.startswith("vi_kit."):
        return expansion
    e, batch, event = expansion, tuple(dist.batch_shape), tuple(dist.event_shape)
    if e.is_worlds:  # in which dims may be one or left out, where all elements have the same
        _check_shape(site, "value", e.value, "num", batch, event, whole=False)
        made, said = e.value.shape[0], site.layout.size
        if made != said:
            raise other_number(site, made, said)
    else:
        _check_shape(site, "value", e.value, "", batch, event)
    if e.weights is not None:
        _check_shape(site, "weights", e.weights, "num", batch, (), whole=False)
        _check_count(site, "weights", e.weights, "worlds", e.value)
    if e.alternatives is not None:
        _check_shape(site, "alternatives", e.alternatives, "num", batch, event)
        xp = array_namespace(e.value)
        # whole numbers may have alternatives between them
        between = xp.result_type(e.value, e.alternatives)
        e = replace(e, value=xp.astype(e.value, between, copy=False))
    if e.coefficients is not None:
        if e.alternatives is None:
            raise _lacks(site, "alternatives", "coefficients without alternatives")
        _check_shape(site, "coefficients", e.coefficients, "num", batch, ())
        _check_count(site, "coefficients", e.coefficients, "alternatives", e.alternatives)
    if e.log_noise is not None:
        _check_shape(site, "log_noise", e.log_noise, "", batch, ())
    if site.layout.leaves_support:
        return e
    for what, values in (("value", e.value), ("alternatives", e.alternatives)):
        inside = None if values is None else dist.contains(values)
        if inside is None:
            continue
        if not backend.may_hold(inside):
            raise EstimatorError(
                message(
                    f"site {site.name!r}: {_name(site)}.expand makes values outside the support of {dist.name}",
                    got=f"{what} not all in {dist.support_name}",
                    expected="values that the distribution can have",
                    fix="leaves_support=True in what layout returns, if the cost is meant to be evaluated outside",
                )
            )
        if what == "alternatives" and e.coefficients is not None:
            xp = array_namespace(e.coefficients)
            one = xp.where(xp.all(inside), xp.ones_like(e.coefficients), xp.nan)
            e = replace(e, coefficients=e.coefficients * one)  # and their gradient
    return e


def other_number(site: Site, made: int, said: int) -> EstimatorError:
    """The error about an estimator that makes another number of values than it said it would."""
    name = type(site.estimator).__name__
    what = "worlds" if isinstance(site.layout, Worlds) else "alternatives"
    return EstimatorError(
        message(
            f"site {site.name!r}: {name}.expand and {name}.layout disagree",
            got=f"{made} {what}",
            expected=f"{said}, which is what layout says",
            fix=f"say in layout how many {what} expand makes",
        )
    )


def _check_shape(
    site: Site,
    what: str,
    array: Array,
    count: str,
    batch: tuple[int, ...],
    event: tuple[int, ...],
    *,
    whole: bool = True,
) -> None:
    """Compare a shape; `count` is the name of a dim in front, of any size."""
    lead, found, full = (count,) * bool(count), tuple(array.shape), (*batch, *event)
    own = found[len(lead) :]
    fits = own == full and len(found) == len(lead) + len(full)
    if not whole and len(found) >= len(lead) + len(event):
        of_batch = own[: len(own) - len(event)]
        pairs = zip(of_batch[::-1], batch[::-1], strict=False)
        fits = own[len(of_batch) :] == event and len(of_batch) <= len(batch)
        fits = fits and all(n in (1, m) for n, m in pairs)
    if not fits:
        raise EstimatorError(
            message(
                f"site {site.name!r}: {_name(site)}.expand gives {what} of a wrong shape",
                got=f"shape {found}",
                expected=f"shape ({', '.join(map(str, (*lead, *full)))}{',' * (len(lead + full) == 1)})",
                fix=f"the shapes that vi.Expansion names; here dist.batch_shape is {batch}, dist.event_shape {event}",
            )
        )


def _check_count(site: Site, what: str, array: Array, others: str, theirs: Array) -> None:
    if array.shape[0] != theirs.shape[0]:
        raise EstimatorError(
            message(
                f"site {site.name!r}: {_name(site)}.expand gives {what} of a wrong shape",
                got=f"{array.shape[0]} {what}, {theirs.shape[0]} {others}",
                expected=f"one for each of the {others}",
                fix="the shapes that vi.Expansion names",
            )
        )


def _lacks(site: Site, what: str, got: str) -> EstimatorError:
    return EstimatorError(
        message(
            f"site {site.name!r}: {_name(site)}.expand gives no {what}",
            got=got,
            expected=f"vi.Expansion(..., {what}=...)",
            fix=f"return {what} from {_name(site)}.expand",
        )
    )


def _name(site: Site) -> str:
    return type(site.estimator).__name__
