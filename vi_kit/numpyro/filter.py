"""Particle filters in NumPyro's `scan`: the bodies of model and proposal in one, with the resampling before them.

All particles take the scan together, inside the map over their copies; a copy sees the others by `all_gather`. The
statements of the proposal's body stand for all steps, as in any scan, and so does the one site that says which
ancestors are taken. What the particles at the end descend from is traced back by a second scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import lax
from numpyro import handlers
from numpyro.distributions import Categorical

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import Axis
from vi_kit.costs.terms import Site
from vi_kit.engine.density import LogDensity
from vi_kit.engine.particles import LOWEST, normalised
from vi_kit.engine.statements import Conditioned, Stop
from vi_kit.language.programs import Draw, Program, Resampling, Statement, ancestor_of
from vi_kit.numpyro.scan import ScanAtDraw

ALGORITHM = "_vi_kit_algorithm"
"""Notes in the annotations of a site what draws it."""

Opened = Callable[[Program, Draw], ScanAtDraw]


@dataclass(eq=False, kw_only=True)
class Filtering(Conditioned):
    """Runs a proposal whose next site is in a scan up to the end of that scan, and the model's scan with it.

    Attributes:
        axis: of the particles.
        how: they are resampled.
        opened: finds the scan of a program at a draw that samples what the draw lacks.
        model: whose scan goes with the proposal's.
        weight: of the particle before the first step (nats).
        first: what the first particle is, if it is not drawn.
        own: what the draw that is given has become by resampling.
        statements: of the model's body.
        ancestor: the site that says which are taken.
        ancestors: in each step.
        log_weights: in each step (nats).
        is_reversed: whether the last step is taken first.
        inner: the sites of the proposal's body, and that of the ancestors.
        step: the number of the one whose body is being run, along the values of all.
    """

    axis: Axis
    how: Resampling
    opened: Opened
    model: Program
    weight: Any
    first: Draw | None = None
    own: dict[str, Any] = field(default_factory=dict)
    statements: frozenset[str] = frozenset()
    ancestor: str = ""
    ancestors: Any = None
    log_weights: Any = None
    is_reversed: bool = False
    inner: set[str] = field(default_factory=set)
    step: Any = None

    # What a handler asks

    def stops_at(self, name: str, is_auxiliary: bool) -> bool:
        """See `Simulation.stops_at`: at all that is sampled neither before nor in the scan."""
        return name not in self.draw

    def wants(self, name: str) -> bool:
        """See `Simulation.wants`."""
        return name in self.inner

    def latent_inside(self, statement: Statement) -> Any:
        """See `Simulation.latent_inside`."""
        how = statement.infer.get(ALGORITHM)
        if how is not None:
            statement = replace(statement, algorithm=how, infer={})
        value = super().latent_inside(statement)
        if self.first is None:
            return value
        value = statement.dist.rsample() if value is None else value
        kept = 0 if how is not None else self.first.replayed(statement.name)[self.step]
        return jnp.where(self.number == 0, kept, value)

    def record(self, made: LogDensity) -> None:
        """See `Simulation.record`: nothing is drawn of the first particle, if that is given."""
        if self.first is not None:
            made = made._replace(plain=jnp.where(self.number == 0, 0.0, made.plain))
        super().record(made)

    @property
    def constants(self) -> frozenset[Site]:
        """See `Simulation.constants`."""
        return super().constants | (frozenset() if self.first is None else self.first.constants)

    # The scan

    @property
    def number(self) -> Any:
        """Which particle it is; in a dry run one that is drawn."""
        return (
            jnp.asarray(1) if self.run.is_dry else self.run.number(self.axis, jnp.zeros(())).array
        )

    def result_of(self, handler: Any, scan: Any, args: Any, kwargs: Any, stack: list[Any]) -> Any:
        """What NumPyro's scan returns.

        Args:
            handler: of the proposal.
            scan: as NumPyro runs it.
            args: of the scan.
            kwargs: of the scan, but for what follows.
            stack: values for sites of its body, as handlers around it put them there.
        """
        if self.log_weights is not None:
            raise Stop
        inside = partial(handler.inside, is_reversed=args[4])
        replayed = partial(handler.replayed, is_reversed=args[4])
        ours = ScanAtDraw(handler, scan, args, kwargs, stack, replayed)
        if not ours.open:
            return ours.plain()
        theirs = self.opened(self.model, self.draw)
        self._check(ours, theirs)
        self.statements = frozenset(a.name for a in theirs.around.values())
        ancestor = ancestor_of(next(iter(theirs.open)))
        self.ancestor = handler.prefix + ancestor
        outer = {n: a.name for n, a in theirs.around.items()}

        def step(state: Any, xs: Any) -> Any:
            number, of_q, of_p, own, log_weight = state
            logits, left = self._resampled(number, log_weight)
            self.step = theirs.length - 1 - number if theirs.reverse else number
            among: Any = Categorical(logits=logits)
            index: Any = numpyro.sample(ancestor, among, infer={ALGORITHM: self.how})
            of_q, of_p, own = self._taken((of_q, of_p, own), index)
            here, (x_q, x_p), body = theirs, xs, ours.fn
            if own:  # on which the bodies may depend, and what they scan over
                draw = replace(self.draw, by_name=own)
                here, there = self.opened(self.model, draw), self.opened(self.program, draw)
                x_q, x_p = (
                    jax.tree.map(lambda x, s=s: s.at(x, number), s.xs) for s in (there, here)
                )
                body = there.fn
            with handlers.trace() as trace:
                of_q, _ = body(of_q, x_q)
            sites = {handler.prefix + n: m for n, m in trace.items() if m["type"] == "sample"}
            log_q = sum(_total(handler.density(m)) for m in sites.values())
            key = jax.random.fold_in(here.start[1], number)
            of_p, _, met = here.body(
                number, key, of_p, x_p, lambda s: sites[outer[s.name]]["value"]
            )
            for m in met:
                _refuse_minibatch(m.name, m.axes)
            log_p = sum(jnp.sum(m.scale * m.log_prob) for m in met)
            log_weight = left(index) + log_p - log_q
            return (number + 1, of_q, of_p, own, log_weight), (index, log_weight)

        weight = jnp.asarray(self.weight, jnp.result_type(float))
        start = (jnp.asarray(0), args[1], theirs.init, dict(self.draw.by_name), weight)
        last, (trace, ys) = scan(
            step,
            start,
            (ours.xs, theirs.xs),
            ours.length,
            ours.reverse,
            substitute_stack=[*stack, ("substitute", inside)],
            **kwargs,
        )
        number, key, (_, of_q, _, self.own, _) = last
        self.ancestors, self.log_weights = ys
        self.inner = {handler.prefix + name for name in trace.trace}
        self.is_reversed = ours.reverse
        return (number, key, of_q), (trace, ours.ys)

    def _check(self, ours: ScanAtDraw, theirs: ScanAtDraw) -> None:
        """Refuse scans that cannot be taken together."""
        steps = [(s.length, s.reverse) for s in (ours, theirs)]
        if steps[0] != steps[1]:
            parts = (
                f"{who} {length} steps{', the last first' * is_reversed}"
                for who, (length, is_reversed) in zip(("proposal", "model"), steps, strict=True)
            )
            raise _refused(
                "the scans of model and proposal do not take the same steps",
                got="; ".join(parts),
                expected="one scan in each, over the same steps",
                fix="the same length and direction in both",
            )
        names = [sorted(s.around[n].name for n in s.open) for s in (ours, theirs)]
        if names[0] != names[1]:
            raise _refused(
                "the scans of model and proposal do not have the same latent sites",
                got=f"proposal {names[0]}, model {names[1]}",
                expected="the model's latent sites in the proposal's scan, and no others",
                fix="the same sample statements in both bodies, those with enumerate marks among them, and no"
                " vi.marginal; or vi.SIR(proposal, num_particles)",
            )
        masked = sorted(a.name for a in ours.around.values() if a.masks or a.scale is not None)
        if masked:
            raise _refused(
                f"proposal sites {masked} have a mask or a scale around their scan",
                got="draws of which the density is not all counted",
                expected="a proposal without",
                fix="the mask or the scale around the model's scan only, or inside the bodies",
            )

    def _gathered(self, tree: Any) -> Any:
        """What all particles have, in front."""
        size, name = self.axis.size, self.axis.name
        if self.run.is_dry:  # there is one
            return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), tree)
        return jax.tree.map(lambda x: lax.all_gather(x, name), tree)

    def _taken(self, tree: Any, index: Any) -> Any:
        """What the particle of a number has."""
        return jax.tree.map(lambda x: x[index], self._gathered(tree))

    def _resampled(self, number: Any, log_weight: Any) -> Any:
        """The logits of the ancestor of a particle, and what it still weighs then (nats)."""
        size, is_later = self.axis.size, number > 0
        log_weights, backend = self._gathered(log_weight), self.run.backend
        logits, is_few = normalised(backend, log_weights, self.how, lax.stop_gradient)
        is_due = is_later if is_few is None else is_later & is_few

        def left(index: Any) -> Any:
            kept = jnp.where(is_later, logits[index] + math.log(size), log_weight)
            return jnp.where(is_due, 0.0, kept)

        own = jnp.where(jnp.arange(size) == self.number, 0.0, LOWEST)
        held = lax.stop_gradient(logits) if self.how.held else logits
        return jnp.where(is_due, held, own), left

    def descent(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values of all steps: those of which the particle at the end descends."""

        def back(index: Any, x: Any) -> Any:
            values, ancestor = self._taken(x, index)
            return ancestor, values

        xs = (values, self.ancestors)
        return lax.scan(back, self.number, xs, reverse=not self.is_reversed)[1]


def _total(made: LogDensity) -> Any:
    """The log density of a statement in one step."""
    _refuse_minibatch(made.name, made.axes)
    return jnp.sum(made.density)


def _refuse_minibatch(name: str, axes: tuple[Axis, ...]) -> None:
    plates = sorted(a.name for a in axes if a.scale != 1.0)
    if plates:
        raise _refused(
            f"site {name!r} is in a scan and in a minibatch of plates {plates}",
            got="weights of particles that would stand for the whole data",
            expected="plates of all data inside a scan",
            fix="plates without subsample_size, or a Python loop over the steps",
        )


def _refused(headline: str, **parts: str) -> ObjectiveError:
    return ObjectiveError(message(f"SMC: {headline}", **parts))
