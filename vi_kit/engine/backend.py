"""The seam between the engine and a library: one protocol, implemented once per library."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from vi_kit.base.context import Arrays
from vi_kit.base.named import Array, Axis, Named
from vi_kit.base.protocols import Distribution, Moments
from vi_kit.costs.terms import Site, Term
from vi_kit.language.programs import Draw, Program, Resampling, Start, Statement

R = TypeVar("R", contravariant=True)


class Backend(Arrays, Protocol[R]):
    """The running of programs, for one library; `R` is the class of runs."""

    replicates_broadcast: bool
    """Whether `replicated` can draw copies along a dim; else `map_copies` runs them apart."""

    structure_varies: bool
    """Whether a program may branch on the values that it draws, so that its sites differ from run to run."""

    def worlds(self, values: Array, site: Site) -> Array:
        """One of the values in front, as far as a program sees it."""
        ...

    def alternatives(self, value: Array, others: Array, site: Site) -> Array:
        """What was drawn, as far as a program sees it; the others are in front."""
        ...

    def session(self, run: R) -> AbstractContextManager[None]:
        """Everything that must be entered before an objective program is run."""
        ...

    def salted(self, dist: Distribution, salt: Any) -> AbstractContextManager[None]:
        """What is drawn inside, also by `dist`, has random numbers of its own, made of those that come next and of a
        number; what is drawn after does not depend on that."""
        ...

    def replicated(self, run: R, axis: Axis) -> AbstractContextManager[None]:
        """Every sample statement inside draws independent copies along `axis`."""
        ...

    def map_copies(
        self,
        run: R,
        once: Callable[[Any], list[Array]],
        axis: Axis,
        together: bool,
        chunk: int | None,
    ) -> list[Array] | None:
        """Call `once` for each copy along an axis, with its number and noise of its own; or once for all, and return
        its arrays with one more dim in front. If they are made `together`, they see each other. With `chunk` no more
        than what one call makes, or so many copies, are kept for the gradient: the rest is made again."""
        ...

    def merge_copies(self, kept: Mapping[Site, Site]) -> None:
        """Take note of which site stands for each site of the copies."""
        ...

    def track(self, value: Array, site: Site) -> Array:
        """Mark a value as depending on a site."""
        ...

    def random(self, moments: Moments, site: Site, sample: Array | None) -> Array:
        """A value of which the moments are known, and what it is where a sample is asked for."""
        ...

    def expectation(self, array: Array, key: Hashable) -> Array:
        """The expectation of a term over values that are random, or what it is for their samples, as the plan says.
        `key` names the term, as for `upstream`."""
        ...

    def upstream(self, run: R, value: Array, key: Hashable) -> frozenset[Site]:
        """The sites on which a value depends, as far as they are tracked. `key` names the value: the same
        in every run of a program."""
        ...

    def in_scope(self, run: R) -> Sequence[Site] | None:
        """The sites that the statement at which a program stands may see, by what the program declares of its chains;
        `None` if it declares nothing."""
        ...

    def params_of(self, role: str) -> dict[Hashable, str]:
        """Names of the parameters that the programs of a role (`"model"`, `"guide"`) used so far, by what
        tells them apart."""
        ...

    def spoilt_params(self) -> list[str]:
        """Names of parameters in use that are not numbers, as far as that can be known."""
        ...

    def simulate(self, run: R, program: Program) -> Draw: ...

    def conditioned(self, run: R, program: Program, draw: Draw, only: str = "") -> Draw: ...

    def log_density(self, run: R, program: Program, draw: Draw) -> Any: ...

    def advanced(
        self, run: R, program: Program, draw: Draw, before: frozenset[str]
    ) -> tuple[Any, str]:
        """See `Session.advanced`."""
        ...

    def filtered(
        self,
        run: R,
        program: Program,
        target: Program,
        given: Draw,
        axis: Axis,
        how: Resampling,
        weight: Array,
        first: Draw | None,
    ) -> tuple[Draw, Array | None, frozenset[str]]:
        """See `Session.filtered`; the log weights in all steps, `None` if the program does not sample there."""
        ...

    def draw_apart(
        self, run: R, statement: Statement, role: str, constants: frozenset[Site]
    ) -> tuple[Array, Site]:
        """The value of a site that an algorithm draws, and the site; `constants` are those whose values are."""
        ...

    def categorical(self, logits: Array) -> Distribution:
        """A Categorical of shape `logits.shape[:-1]`."""
        ...

    def brought(self, run: R, make: Callable[[], Array], event_ndim: int) -> Array:
        """A value that is made of several replicates and given to a program as one of each."""
        ...

    def unbounded(self, run: R, program: Program, draw: Draw, *, finds: bool) -> Draw:
        """See `vi_kit.engine.unbounded.Unbounded`."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """Programs that are run inside are not of the objective: nothing is noted of them."""
        ...

    def parameters(
        self, run: R, program: Program, starts: Mapping[str, Start], like: Array
    ) -> dict[str, Array]:
        """The values of parameters that belong to a program though it does not declare them.

        Args:
            run: the run.
            program: to which they belong.
            starts: by name.
            like: an array of the dtype and on the device that they get where nothing is kept of them.
        """
        ...

    def one_value(self, value: Any) -> Array | None:
        """A value of a draw as one array; `None` if that has no place for several."""
        ...

    def with_worlds(self, run: R, named: Named, event_ndim: int) -> Any:
        """A value of a draw, for programs, from an array with the worlds that they do not know of."""
        ...

    def evaluate(self, run: R, draw: Draw, fn: Callable[..., Array]) -> Term:
        """The term that a function of a draw makes."""
        ...

    def parameter(self, name: str, start: Array) -> Array:
        """A parameter of an estimator's own: `start` at first, and for good if there is nowhere to keep it."""
        ...
