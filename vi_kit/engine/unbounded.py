"""Draws in coordinates without bounds: what a program makes of them, and of which its own draws are made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.named import Array
from vi_kit.engine.chains import one_per_element
from vi_kit.engine.density import LogDensity
from vi_kit.engine.statements import Conditioned
from vi_kit.language.programs import Draw, Statement


@dataclass(eq=False)
class Unbounded(Conditioned):
    """Gives a program the values that a draw has in coordinates without bounds, or finds the coordinates of values.

    Each site says itself, at the values before it, what its support is; so it may depend on these. What others
    determine (a Delta) is computed by the program.

    Attributes:
        finds: whether the draw has values, and its coordinates are wanted.
    """

    finds: bool = field(kw_only=True)

    def given(self, statement: Statement) -> Array:
        """The value of a site for the program. What is found, and the derivative of the map, is kept."""
        run, name, dist, value = self.run, statement.name, statement.dist, super().given(statement)
        if dist.name == "Delta":
            self.problem(
                f"{self.program.role} site {name!r}: a Delta, made of other sites, which cannot be told from its value",
                got="a density at values that another program has drawn",
                expected="a proposal that draws each site",
                fix="a distribution in the place of the Delta, such as vi.normalize with"
                " vi.SIR(proposal, num_particles) allows it too",
            )
            return value
        try:
            mapping = dist.coordinates()
        except NotImplementedError:
            self.problem(
                f"{self.program.role} site {name!r}: its values have no coordinates without bounds",
                got=f"{dist.name} on {dist.support_name}",
                expected="a support to which the library has a bijection (biject_to): real numbers, positive ones, an"
                " interval, a simplex",
                fix="another distribution for the site in the proposal",
            )
            return value
        xp = array_namespace(value)
        shape = tuple(dist.batch_shape)
        if self.finds:
            value = xp.broadcast_to(value, (*shape, *dist.event_shape))
            found = coordinates = value if mapping is None else mapping.inv(value)
        else:
            coordinates = value
            found = value = value if mapping is None else mapping(value)
        self.values[name], self.details[name] = found, statement
        if mapping is not None:
            array = one_per_element(run, self.slope(mapping, coordinates, value), statement)
            what = f"coordinates of site {name!r}"
            term = run.term(array, statement.axes, what, constants=self.constants, counts=False)
            self.terms.append(term)
        return value

    def slope(self, mapping: Any, coordinates: Array, value: Array) -> Array:
        """Of the map, by the elements of a site (nats)."""
        return mapping.log_abs_det_jacobian(coordinates, value)

    def record(self, made: LogDensity) -> None:
        """See `Simulation.record`. What hides a part of a site's density, or scales it, is refused."""
        if made.name in self.draw and made.number != 1.0:
            self.problem(
                f"{self.program.role} site {made.name!r}: its log density is scaled or masked",
                got="a handler or a mask around a site that a Markov chain moves",
                expected="scales and masks around what is observed only",
                fix="the handler around the observed statements, or vi.SIR(proposal, num_particles)",
            )
        super().record(made)

    def result(self) -> Draw:
        """The values of all sites, or their coordinates."""
        draw, given = super().result(), self.draw
        return replace(draw, sites={**draw.sites, **given.sites}, noise=given.noise)
