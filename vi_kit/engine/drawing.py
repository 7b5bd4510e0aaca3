"""How a latent site gets its value: its estimator is chosen, checked in a dry run, and expanded; worlds and
alternatives are put on axes of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from array_api_compat import array_namespace, device

from vi_kit.base.layouts import Closed
from vi_kit.base.named import PLATE, SLOT, WORLD, Array, Axis, Named, from_layout
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site, Term, label_of
from vi_kit.engine.run import Run
from vi_kit.engine.select import Choice
from vi_kit.estimators import (
    Analytic,
    Expansion,
)
from vi_kit.estimators.base import estimator_of
from vi_kit.estimators.expansions import checked, other_number
from vi_kit.language.programs import Statement


def draw(run: Run, statement: Statement, role: str, summed: str = "") -> tuple[Array, Site]:
    """Offer a latent site to its estimator.

    Args:
        statement: where it is sampled.
        role: of the program.
        summed: the rule by which it is summed out of the density of its program, if it is.

    Returns:
        The value for the program, and the site.
    """
    site, choice = open_site(run, statement, role, summed=summed)
    dist = statement.dist
    plain = run.plain_value(site, dist, choice)
    if plain is not None:
        return plain, site
    if choice.is_closed:
        return _moments(run, site, dist), site
    expansion = expanded(run, site, dist)
    if expansion.is_worlds and run.backend.maps_values:
        expansion = replace(expansion, value=whole(expansion.value, dist))
    claim(run, site, expansion)
    return placed(run, site, expansion, len(dist.event_shape)), site


def draw_apart(
    run: Run, statement: Statement, role: str, constants: frozenset[Site]
) -> tuple[Array, Site]:
    """Like `draw`, of a site that an algorithm draws, with the log density of its value."""
    value, site = draw(run, statement, role)
    log_prob = statement.dist.log_prob(value)
    what = f"{role} site {statement.name!r}"
    site.log_q = run.term(
        log_prob, statement.axes, what, constants=constants, own=site, counts=False
    )
    run.note_density(site, statement.dist, log_prob)
    return value, site


def expanded(run: Run, site: Site, dist: Distribution) -> Expansion:
    """What the estimator of a site makes, looked over."""
    if site.label not in run.salts:
        return checked(run.backend, site, dist, estimator_of(site).expand(dist))
    with run.backend.salted(dist, run.salts[site.label]):
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
        run.claim_slots(site, made)


def placed(run: Run, site: Site, expansion: Expansion, event_ndim: int) -> Array:
    """The value of a site for the program, with worlds and alternatives along their axes."""
    if expansion.is_worlds:
        return run.backend.track(_worlds(run, site, expansion, event_ndim), site)
    upstream: frozenset[Site] = frozenset()
    if run.plan.num_slots > 1 or expansion.log_noise is not None:  # it is not free
        upstream = upstream_of(run, site, expansion.value)
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
        value = _alternatives(run, site, expansion, event_ndim, upstream)
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
    plain = run.plain_value(site, dist, choice, inside=True)
    if plain is not None:
        return plain, site
    if not site.tracked and dist.has_rsample and site.label not in run.salts:
        return None, site
    value = expanded(run, site, dist).value
    return (run.backend.track(value, site) if site.tracked else value), site


def open_site(
    run: Run, statement: Statement, role: str, inside: bool = False, summed: str = ""
) -> tuple[Site, Choice]:
    """Choose the estimator of a site."""
    axes = tuple(sorted(statement.axes, key=lambda a: a.key, reverse=True))
    name, dist = statement.name, statement.dist

    def why() -> str:
        if role.removesuffix(" proposal") != "guide":
            return f"a draw from the {role}"
        if undeclared(run, axes, dist):
            return "a batch dim is in no plate"
        return "inside control flow" if inside else ""

    own = label_of(name, role, run.variant, bool(summed))
    if summed:
        choice = run.plan.selection.summed(own, dist, summed)
    elif statement.algorithm is not None:
        given = statement.algorithm.estimator
        choice = run.plan.selection.of_algorithm(own, dist, (*axes, *run.apart), given)
    else:
        choice = run.plan.selection.choose(
            name, own, dist, (*axes, *run.apart), statement.infer, why, run.variant
        )
    site = Site(
        name,
        run.num_sites,
        axes,
        choice.acting,
        choice.layout,
        role,
        run.variant,
        summed=bool(summed),
    )
    run.num_sites += 1
    run.sites.append(site)
    run.by_order[site.order] = run.opened = site
    run.open(site, statement, choice)
    return site, choice


def _moments(run: Run, site: Site, dist: Distribution) -> Array:
    """The value of a site by its moments, and what it falls back on."""
    if isinstance(site.layout, Closed):
        return by_moments(run, site, dist, None)
    sample = expanded(run, site, dist).value
    upstream = upstream_of(run, site, sample) if run.plan.num_slots > 1 else frozenset[Site]()
    sample = _aligned_slots(run, sample, len(dist.event_shape), upstream)
    sample = run.backend.track(sample, site) if site.tracked else sample
    return by_moments(run, site, dist, sample)


def by_moments(run: Run, site: Site, dist: Distribution, sample: Array | None) -> Array:
    """The value of a site of which moments are carried, and where it is a sample."""
    moments = Analytic().expand(dist).moments
    assert moments is not None
    return run.backend.random(moments, site, sample)


def upstream_of(run: Run, site: Site, value: Array) -> frozenset[Site]:
    """The sites on which the value of a site depends."""
    return run.backend.upstream(run, value, ("site", site.order, site.name))


def undeclared(run: Run, axes: Iterable[Axis], dist: Distribution) -> list[int]:
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
    upstream = upstream_of(run, site, weights) | upstream_of(run, site, value)
    weights = _aligned_slots(run, weights, 0, upstream)
    what, known = f"site {site.name!r}", upstream | {site}
    site.weights = run.term(weights, site.axes, what, own=site, counts=False, known=known)
    if expansion.first_is_drawn:
        order = array_namespace(weights).arange(size, device=device(weights))
        site.chosen = Term(Named(order == 0, (site.world,)))
    return _aligned_slots(run, value, event_ndim, upstream)


def _alternatives(
    run: Run, site: Site, expansion: Expansion, event_ndim: int, upstream: Iterable[Site]
) -> Array:
    """Put the drawn value and its alternatives along the slot axis."""
    assert expansion.alternatives is not None
    if run.backend.maps_values:
        return run.backend.alternatives(expansion.value, expansion.alternatives, site)
    n, own = run.plan.num_slots, run.slots[site]
    value = _padded(run, _aligned_slots(run, expansion.value, event_ndim, upstream), event_ndim)
    xp = array_namespace(value)
    dim = value.ndim + run.slot_dim - event_ndim
    others = _first_slot(run, expansion.alternatives, event_ndim, lead=1)
    others = xp.reshape(
        others, (len(own), *(1,) * (value.ndim - others.ndim + 1), *others.shape[1:])
    )
    others = xp.moveaxis(xp.squeeze(others, axis=dim + 1), 0, dim)

    def part(start: int, stop: int) -> Array:
        if value.shape[dim] > 1:
            return value[(slice(None),) * dim + (slice(start, stop),)]
        return _repeated(value, dim, stop - start)

    pieces = [part(0, own.start), others]
    if n > own.stop:
        pieces.append(part(own.stop, n))
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
    if len(batch) >= -dim:  # one of size one is there, which another site before had
        at = values.ndim - event_ndim + dim
        own = values[(slice(None),) * at + (0,)]
        return array_namespace(values).moveaxis(own, 0, at - 1)
    ones = (1,) * (-dim - 1 - len(batch))
    return array_namespace(values).reshape(values, (values.shape[0], *ones, *values.shape[1:]))


def whole(values: Array, dist: Distribution) -> Array:
    """Values in front, each with all batch dims of a distribution."""
    values = _spread(values, -1 - len(dist.batch_shape), len(dist.event_shape))
    shape = (values.shape[0], *dist.batch_shape, *dist.event_shape)
    return array_namespace(values).broadcast_to(values, shape)


def _repeated(base: Array, dim: int, times: int) -> Array:
    shape = list(base.shape)
    shape[dim] = times
    return array_namespace(base).broadcast_to(base, tuple(shape))
