"""How a latent site gets its value: its estimator is chosen, checked in a dry run, and expanded; worlds and
alternatives are put on axes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from array_api_compat import array_namespace, device

from vi_kit.base.demands import ClosedForm, Continuous, ContinuousBetween, Polynomial
from vi_kit.base.errors import EstimatorError, Refusal, message
from vi_kit.base.layouts import Alternatives, Closed, Gradient, Single, Worlds, is_support
from vi_kit.base.named import PLATE, SLOT, WORLD, Array, Axis, Named, from_layout
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site, Term, label
from vi_kit.engine.plan import Replan, Row
from vi_kit.engine.run import Run
from vi_kit.engine.select import Choice
from vi_kit.estimators import (
    Analytic,
    Enumerate,
    Estimator,
    Expansion,
    MeasureValued,
    Reparam,
    Score,
)
from vi_kit.estimators.base import estimator_of
from vi_kit.estimators.expansions import checked, other_number
from vi_kit.language.programs import Statement

ALTERNATIVES: tuple[Estimator, ...] = (Reparam(), Enumerate(), MeasureValued(), Score())
"""What an error about a site suggests, in this order, as far as they can handle it."""


def draw(run: Run, statement: Statement, role: str) -> tuple[Array, Site]:
    """Offer a latent site to its estimator.

    Args:
        statement: where it is sampled.
        role: of the program.

    Returns:
        The value for the program, and the site.
    """
    site, choice = open_site(run, statement, role)
    dist = statement.dist
    if run.findings is not None:
        return _try(run, site, dist, choice), site
    if isinstance(choice.estimator.layout(dist), Closed):
        return _moments(run, site, dist), site
    expansion = expanded(run, site, dist)
    if expansion.is_worlds and run.backend.maps_values:
        expansion = replace(expansion, value=_whole(expansion.value, dist))
    claim(run, site, expansion)
    return placed(run, site, expansion, len(dist.event_shape)), site


def expanded(run: Run, site: Site, dist: Distribution) -> Expansion:
    """What the estimator of a site makes, looked over."""
    return checked(run.backend, site, dist, estimator_of(site).expand(dist))


def claim(run: Run, site: Site, expansion: Expansion) -> None:
    """Give a site the axes that its expansion needs."""
    site.has_path = expansion.has_path
    made = 0 if expansion.alternatives is None else expansion.alternatives.shape[0]
    if made != run.plan.slots_of.get(site.label, made):
        raise other_number(site, made, run.plan.slots_of[site.label])
    in_front = expansion.alternatives if made else expansion.control
    if expansion.is_worlds:
        in_front = expansion.value
        site.world = Axis(WORLD, site.order, f"worlds of {site.name}", in_front.shape[0])
        if not run.backend.maps_values:
            run.place(site.world)
    if in_front is not None:
        site.slots = Axis(SLOT, site.order, f"slots of {site.name}", in_front.shape[0])
    if expansion.alternatives is not None:
        run.slots[site] = range(run.next_slot, run.next_slot + made)
        run.next_slot += made
        if run.next_slot > run.plan.num_slots:
            raise Replan


def placed(run: Run, site: Site, expansion: Expansion, event_ndim: int) -> Array:
    """The value of a site for the program, with worlds and alternatives along their axes."""
    if expansion.is_worlds:
        return run.backend.track(_worlds(run, site, expansion, event_ndim), site)
    upstream: frozenset[Site] = frozenset()
    if run.plan.num_slots > 1 or expansion.log_noise is not None:  # it is not free
        upstream = _upstream(run, site, expansion.value)
    if expansion.log_noise is not None:
        log_noise = _aligned_slots(run, expansion.log_noise, 0, upstream)
        what = f"noise of site {site.name!r}"
        site.log_noise = run.term(
            log_noise, site.axes, what, own=site, counts=False, known=upstream
        )
    if expansion.coefficients is not None:
        named = _along_slots(run, site, expansion.coefficients, upstream)
        site.coefficients = Term(named)
    if expansion.control is not None:
        site.control = Term(_along_slots(run, site, expansion.control, upstream))
    if expansion.alternatives is not None:
        value = _alternatives(run, site, expansion, event_ndim)
    else:
        value = _aligned_slots(run, expansion.value, event_ndim, upstream)
    return run.backend.track(value, site) if site.tracked else value


def draw_inside(
    run: Run, statement: Statement, role: str, again: Site | None
) -> tuple[Array | None, Site]:
    """Like `draw`, inside the control flow of a library: only single draws are possible there.

    Args:
        statement: where it is sampled.
        role: of the program.
        again: the site, if the body of the control flow is traced once more.

    Returns:
        The value, or `None` for the library's own reparameterised one; and the site.
    """
    site, choice, dist = again, None, statement.dist
    if site is None:
        site, choice = open_site(run, statement, role, inside=True)
    if run.findings is not None:
        choice = choice or run.findings.choices[site.label]
        return _try(run, site, dist, choice, inside=True), site
    if not site.tracked and dist.has_rsample:
        return None, site
    value = expanded(run, site, dist).value
    return (run.backend.track(value, site) if site.tracked else value), site


def open_site(
    run: Run, statement: Statement, role: str, inside: bool = False
) -> tuple[Site, Choice]:
    """Choose the estimator of a site."""
    axes = tuple(sorted(statement.axes, key=lambda a: a.key, reverse=True))
    name, dist = statement.name, statement.dist
    why = "inside control flow" if inside else ""
    if role != "guide":
        why = f"a draw from the {role}"
    elif _undeclared(run, axes, dist):
        why = "a batch dim is in no plate"
    choice = run.plan.selection.choose(
        name,
        label(name, role, run.variant),
        dist,
        (*axes, *run.apart),
        statement.infer,
        why,
        run.variant,
    )
    site = Site(name, run.num_sites, axes, choice.acting, choice.layout, role, run.variant)
    run.num_sites += 1
    run.sites.append(site)
    run.by_order[site.order] = run.opened = site
    if run.findings is not None:
        run.findings.ignored.update(ignored_hints(name, statement.infer))
        if statement.infer.get("is_auxiliary"):
            run.findings.auxiliary.add(site)
    else:
        if run.plan.selection.resolved.get(site.label) is not choice:  # the structure changes
            reason = _reason_against(run, site, dist, choice.estimator)
            if reason:
                raise EstimatorError(_refusal(run, site, dist, choice, reason))
        if site.tracked and not run.plan.tracked:
            raise Replan
    return site, choice


def ignored_hints(name: str, infer: Mapping[str, Any]) -> dict[str, None]:
    """What is said once of annotations for other losses, which mean nothing here."""
    hints = []
    if infer.get("baseline"):
        hints.append(("baseline", "vi.Score(baseline)"))
    if infer.get("enumerate") and infer.get("num_samples"):
        hints.append(("num_samples", "vi.WithoutReplacement(k), or num_samples of Loss"))
    if infer.get("kl") == "analytic":
        hints.append(("kl", "vi.Analytic(fallback=vi.Reparam()) at the site"))
    return {
        f"site {name!r}: infer={{{hint!r}: ...}} has no effect on this loss; instead of it: {instead}": None
        for hint, instead in hints
    }


def _reason_against(run: Run, site: Site, dist: Distribution, estimator: Estimator) -> str | None:
    unmet = estimator_of(site).unmet_need((*site.axes, *run.apart))
    return estimator.reason_against(dist) or unmet


def _refusal(
    run: Run, site: Site, dist: Distribution, choice: Choice, reason: str, inside: bool = False
) -> str:
    """The text of the error about a site that its estimator cannot handle."""
    name = type(choice.estimator).__name__
    others = [e for e in ALTERNATIVES if e.reason_against(dist) is None]
    if inside:
        others = [e for e in others if isinstance(e.layout(dist), Single)]
    others = [type(e).__name__ for e in others if type(e).__name__ != name] or [name]
    expected = " or ".join(f"{other}()" for other in others)
    fix = f'estimators={{"{site.name}": vi.{others[0]}()}}'
    if isinstance(reason, Refusal):
        expected, fix = reason.expected or expected, reason.fix or fix
    return message(
        f"site {site.name!r}: {name}() {reason}",
        got=f"{choice.estimator!r}, from {choice.rule}",
        expected=expected,
        fix=fix,
    )


def _try(run: Run, site: Site, dist: Distribution, choice: Choice, inside: bool = False) -> Array:
    """Dry run: check the choice, note it, and sample plainly."""
    findings, estimator = run.findings, choice.estimator
    layout, demand = estimator.layout(dist), estimator.demand(dist)
    num_slots = layout.num if isinstance(layout, Alternatives) else 0
    is_closed = isinstance(layout, Closed)
    assert findings is not None
    reason = _reason_against(run, site, dist, estimator)
    if reason is None and inside and is_closed:
        reason = "needs to see what is done with the value, which a scan or cond does not show"
    if reason is None and layout.size + num_slots > 1:
        if inside:
            reason = "needs several values at once, which a scan or cond cannot hold"
        elif _undeclared(run, site.axes, dist):
            reason = "needs each of its batch dims in a plate, or made event dims by .to_event"
    if reason is None and inside and estimator.gradient is Gradient.PART:
        reason = "needs the density of its noise, which a scan or cond does not hand out"
    if reason and choice.rule == "default" and num_slots:
        findings.sampled[site.label] = reason  # a single draw will do
    elif reason:
        text = _refusal(run, site, dist, choice, reason, inside)
        findings.problem(text, of_estimator=True)
    else:
        findings.slots_of[site.label] = num_slots
        findings.num_slots += num_slots
        findings.sizes[site] = layout.size
        if site.tracked or findings.sizes[site] > 1 or num_slots:
            findings.tells_apart(site.axes)
        findings.has_worlds |= isinstance(layout, Worlds)
        if isinstance(demand, Polynomial | ContinuousBetween):
            findings.degrees[site.label] = demand
        if isinstance(demand, ClosedForm):
            findings.analytic.add(site.label)
        elements = dist.elementary() if num_slots and dist.has_rsample else None
        has_path = elements is not None and elements.push_has_params
        on_path = isinstance(estimator_of(site).demand(dist), Continuous)
        if (on_path or has_path) and dist.name != "Delta":
            findings.pathwise.add(site.label)
        if dist.is_continuous and dist.name != "Delta" and not estimator.biased:
            findings.continuous.add(site.label)
        if layout.size > 1 or num_slots > 0:
            findings.all_at_once.add(site)
    findings.choices[site.label] = choice
    findings.names.add(site.name)
    plates = ", ".join(a.name for a in site.axes if a.kind == PLATE)
    event = f" {tuple(dist.event_shape)}" if dist.event_shape else ""
    findings.rows[site.label] = Row(
        site.label, dist.name + event, plates or "-", repr(estimator), choice.rule, choice.why
    )
    if run.analysis is not None and is_closed:
        return by_moments(run, site, dist, run.backend.untracked(dist.sample()))
    if run.probe is not None:
        return run.probe.value(site, dist, estimator)
    pathwise = estimator.gradient is Gradient.PATH and not reason
    try:
        value = dist.rsample() if pathwise and dist.has_rsample else dist.sample()
    except NotImplementedError:
        findings.problem(
            message(
                f"{site.role} site {site.name!r}: one cannot draw from {dist.name}",
                got=f"{dist.name}, which has no sampler",
                expected=f"a {site.role} that can be simulated",
                fix="an objective that draws from the guide only, or another distribution",
            ),
            of_estimator=False,
        )
        findings.raise_if_any()
        raise
    findings.above[site] = _upstream(run, site, value)
    followed = site.tracked or is_closed or site in findings.auxiliary
    if pathwise and not followed:
        return value
    if is_support(layout):
        value = run.backend.untracked(value)
    return run.backend.track(value, site)


def _moments(run: Run, site: Site, dist: Distribution) -> Array:
    """The value of a site by its moments, and what it falls back on."""
    if isinstance(site.layout, Closed):
        return by_moments(run, site, dist, None)
    sample = expanded(run, site, dist).value
    upstream = _upstream(run, site, sample) if run.plan.num_slots > 1 else frozenset[Site]()
    sample = _aligned_slots(run, sample, len(dist.event_shape), upstream)
    sample = run.backend.track(sample, site) if site.tracked else sample
    return by_moments(run, site, dist, sample)


def by_moments(run: Run, site: Site, dist: Distribution, sample: Array | None) -> Array:
    """The value of a site of which moments are carried, and where it is a sample."""
    moments = Analytic().expand(dist).moments
    assert moments is not None
    return run.backend.random(moments, site, sample)


def _upstream(run: Run, site: Site, value: Array) -> frozenset[Site]:
    """The sites on which the value of a site depends."""
    return run.backend.upstream(run, value, ("site", site.order, site.name))


def _undeclared(run: Run, axes: Iterable[Axis], dist: Distribution) -> list[int]:
    """Batch dims of a distribution that are in no plate."""
    known = {-d for d in run.dims.values()} | {a.order for a in axes if a.kind == PLATE}
    sizes = reversed(dist.batch_shape)
    return [d for d, size in enumerate(sizes, 1) if size > 1 and d not in known]


def _worlds(run: Run, site: Site, expansion: Expansion, event_ndim: int) -> Array:
    """Put the worlds of a site along an axis of their own."""
    assert site.world is not None
    size, value, weights = site.world.size, expansion.value, expansion.weights
    if run.backend.maps_values:
        value = run.backend.worlds(value, site)
        weights = None if weights is None else run.backend.worlds(weights, site)
    else:
        dim = run.dims[site.world]
        value = _spread(value, dim, event_ndim)
        weights = None if weights is None else _spread(weights, dim, 0)
    if weights is None:
        return value
    upstream = _upstream(run, site, weights) | _upstream(run, site, value)
    weights = _aligned_slots(run, weights, 0, upstream)
    what, known = f"site {site.name!r}", upstream | {site}
    site.weights = run.term(weights, site.axes, what, own=site, counts=False, known=known)
    if expansion.first_is_drawn:
        order = array_namespace(weights).arange(size, device=device(weights))
        site.chosen = Term(Named(order == 0, (site.world,)))
    return _aligned_slots(run, value, event_ndim, upstream)


def _alternatives(run: Run, site: Site, expansion: Expansion, event_ndim: int) -> Array:
    """Put the drawn value and its alternatives along the slot axis."""
    assert expansion.alternatives is not None
    if run.backend.maps_values:
        return run.backend.alternatives(expansion.value, expansion.alternatives, site)
    n, own = run.plan.num_slots, run.slots[site]
    value = _padded(run, expansion.value, event_ndim)
    xp = array_namespace(value)
    dim = value.ndim + run.slot_dim - event_ndim
    others = _first_slot(run, expansion.alternatives, event_ndim, lead=1)
    others = xp.reshape(
        others, (len(own), *(1,) * (value.ndim - others.ndim + 1), *others.shape[1:])
    )
    others = xp.moveaxis(xp.squeeze(others, axis=dim + 1), 0, dim)
    base = value[(slice(None),) * dim + (slice(0, 1),)]
    pieces = [value[(slice(None),) * dim + (slice(0, own.start),)]] if value.shape[dim] > 1 else []
    if not pieces:
        pieces.append(_repeated(base, dim, own.start))
    pieces.append(others)
    if n > own.stop:
        pieces.append(_repeated(base, dim, n - own.stop))
    return xp.concat(pieces, axis=dim)


def _along_slots(run: Run, site: Site, array: Array, upstream: Iterable[Site]) -> Named:
    """An array with one value for each slot of a site in front of the batch dims."""
    assert site.slots is not None
    if run.plan.num_slots > 1 and not run.backend.maps_values:
        array = _first_slot(run, array, 0, lead=1)
    array = run.backend.untracked(array)
    layout = run.layout(site.axes, upstream, f"site {site.name!r}")
    layout[-array.ndim] = site.slots
    return from_layout(array, layout, (*site.axes, site.slots))


def _aligned_slots(run: Run, value: Array, event_ndim: int, upstream: Iterable[Site]) -> Array:
    """Where a drawn value is drawn once per slot, keep the draw of slot 0 wherever nothing upstream
    of it differs from slot 0."""
    n = run.plan.num_slots
    if n == 1 or run.backend.maps_values:
        return value
    dim = value.ndim + run.slot_dim - event_ndim
    if dim < 0 or value.shape[dim] == 1:
        return value
    own = {i for site, slots in run.slots.items() if site in upstream for i in slots}
    xp = array_namespace(value)
    differs = xp.asarray([i in own for i in range(n)], device=device(value))
    differs = xp.reshape(differs, (n, *(1,) * (value.ndim - dim - 1)))
    return xp.where(differs, value, value[(slice(None),) * dim + (slice(0, 1),)])


def _padded(run: Run, value: Array, event_ndim: int) -> Array:
    need = -run.slot_dim + event_ndim
    if value.ndim >= need:
        return value
    shape = (1,) * (need - value.ndim) + tuple(value.shape)
    return array_namespace(value).reshape(value, shape)


def _first_slot(run: Run, array: Array, event_ndim: int, lead: int) -> Array:
    """Values in slot 0, with a dim of size one kept; `lead` dims in front are not batch dims."""
    dim = array.ndim + run.slot_dim - event_ndim
    if dim < lead:
        if event_ndim == 0:
            return array
        pad = (1,) * (lead - dim)
        return array_namespace(array).reshape(
            array, (*array.shape[:lead], *pad, *array.shape[lead:])
        )
    return array[(slice(None),) * dim + (slice(0, 1),)]


def _spread(values: Array, dim: int, event_ndim: int) -> Array:
    """Values whose dim in front is brought to `dim`, counted from the right of the batch dims."""
    batch = tuple(values.shape)[1 : values.ndim - event_ndim]
    ones = (1,) * (-dim - 1 - len(batch))
    return array_namespace(values).reshape(values, (values.shape[0], *ones, *values.shape[1:]))


def _whole(values: Array, dist: Distribution) -> Array:
    """Values in front, each with all batch dims of a distribution."""
    values = _spread(values, -1 - len(dist.batch_shape), len(dist.event_shape))
    shape = (values.shape[0], *dist.batch_shape, *dist.event_shape)
    return array_namespace(values).broadcast_to(values, shape)


def _repeated(base: Array, dim: int, times: int) -> Array:
    shape = list(base.shape)
    shape[dim] = times
    return array_namespace(base).broadcast_to(base, tuple(shape))
