"""Annealed importance sampling: posteriors by Markov chains whose auxiliary values reverse chains integrate out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from array_api_compat import array_namespace, device

from vi_kit.base.errors import EstimatorError, ObjectiveError, message, whole_number
from vi_kit.base.layouts import Gradient, Single
from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.energy import LIBRARIES
from vi_kit.language.kernels import Arrays, Bridge, Kernel, Langevin, Numbers, Slopes, State
from vi_kit.language.marginal import refuse_varied
from vi_kit.language.normalize import check_proposal, proposal_of
from vi_kit.language.programs import (
    Draw,
    Program,
    Start,
    draw_of,
    log_density_of,
    session,
)

LEARNED = ("step_size", "betas", "damping")
"""What may be learned."""


@dataclass(frozen=True)
class AIS:
    r"""Annealed importance sampling, with a schedule that is learned.

    From a draw $u_0$ of the proposal K Markov steps lead through bridging densities $\pi_k \propto q^{1 - \beta_k}
    p^{\beta_k}$, without acceptance; the auxiliary values are integrated out by reverse steps. With the draw $u_K$ its
    density is estimated by $p(u_K) / w$, where $\log w = \log p(u_K) - \log q(u_0) + \sum_k \log B_k(u_{k-1} \mid u_k)
    - \log F_k(u_k \mid u_{k-1})$, so that $E[w]$ is the evidence and `vi.elbo()` gives $E[\log w]$. At values that
    something else has drawn the reverse chain starts from them, and the mean of the estimate is the density. Of a draw
    of its own, also of one that is held, the chain that made it is kept (as the noise of the reverse chain), so that
    `vi.eubo`, `vi.wake_sleep`, and any objective that goes by densities are those of draws and auxiliary values
    together.

    The chain moves in coordinates without bounds (the library's `biject_to` for the proposal's supports). Sites of the
    proposal need single reparameterised draws; finite sites of the model are summed out (`marginalize`). All gradients
    are exact: they go through those of the target's log density, so that K steps take K + 1 gradients of model and
    proposal (with L leapfrog steps each, K L + 1), and their derivatives. A bound is taken per element of the plates
    that all terms share. In NumPyro the steps are one `lax.scan`; sites in a `scan` of the
    programs are moved as a whole.

    Args:
        proposal: a program with the model's sites; autoguides are such. A posterior or a marginal is not; around a
            chain `SIR(vi.normalize(model, AIS(...)), num_particles)` may stand.
        num_steps: K, at least 1.
        kernel: `Langevin(step_size)` or `Hamiltonian(step_size, num_leapfrog, damping)`.
        betas: the powers, K numbers that do not fall, in [0, 1]. Left out, they are learned, from evenly spaced ones
            $k / (K + 1)$ on; with numbers they are fixed.
        learn: which of `"step_size"`, `"betas"` and `"damping"` are parameters, named `ais.step_size`, `ais.damping`
            and `ais.increments` (of the betas, the last one up to 1); all of them by default, or `False`.
        prefix: in the place of `ais`, for several schedules in one program.

    Raises:
        EstimatorError: at the first step, if a site of the proposal is discrete or is not reparameterised.
        ObjectiveError: a support without a bijection, a minibatch with sites outside its plate, a scale or mask around
            a site of the proposal.

    Example:
        >>> import vi_kit as vi
        >>> # guide = vi.normalize(model, vi.AIS(mean_field, num_steps=8, kernel=vi.Langevin(step_size=0.05)))
        >>> # SVI(model, guide, optimizer, Loss(vi.elbo()))

    References:
        Neal 2001, Annealed Importance Sampling. Thin et al. 2021, Monte Carlo Variational Auto-Encoders. Geffner and
        Domke 2021, MCMC Variational Inference via Uncorrected Hamiltonian Annealing. Doucet et al. 2022, Score-Based
        Diffusion meets Annealed Importance Sampling.
    """

    part: ClassVar[str] = "proposal"
    draws_one: ClassVar[bool] = True

    proposal: Callable[..., Any]
    num_steps: int
    kernel: Kernel = field(default_factory=Langevin)
    betas: tuple[float, ...] | None = None
    learn: bool | tuple[str, ...] = True
    prefix: str = "ais"

    def __post_init__(self) -> None:
        whole_number("AIS", "num_steps", self.num_steps)
        check_proposal(
            "AIS(guide, num_steps=8)",
            self.proposal,
            "and a chain needs the density of each sample statement",
        )
        if isinstance(self.kernel, type) or not callable(getattr(self.kernel, "step", None)):
            raise ObjectiveError(
                message(
                    "AIS: no kernel",
                    got=repr(self.kernel),
                    expected="vi.Langevin(step_size) or vi.Hamiltonian(step_size)",
                    fix="kernel=vi.Langevin(step_size=0.01)",
                )
            )
        sizes = self.kernel.step_size
        if isinstance(sizes, tuple) and len(sizes) != self.num_steps:
            raise ObjectiveError(
                message(
                    "AIS: as many step sizes as steps, or one for all",
                    got=f"{len(sizes)} of them, num_steps={self.num_steps}",
                    expected=f"{self.num_steps} or one number",
                    fix=f"step_size={sizes[0] if sizes else 0.01}",
                )
            )
        object.__setattr__(self, "betas", self._checked_betas())
        learn = self.learn
        learn = (
            learn
            if isinstance(learn, bool)
            else ((learn,) if isinstance(learn, str) else tuple(learn))
        )
        if not isinstance(learn, bool) and not set(learn) <= set(LEARNED):
            raise ObjectiveError(
                message(
                    "AIS: learn takes names of what is to be learned",
                    got=repr(learn),
                    expected=f"True, False, or some of {LEARNED}",
                    fix='learn=("step_size",)',
                )
            )
        fixed = {"betas": self.betas is not None, "damping": self.kernel.damping == 0.0}
        idle = [] if isinstance(learn, bool) else [name for name in learn if fixed.get(name)]
        if idle:
            raise ObjectiveError(
                message(
                    f"AIS: {', '.join(idle)} cannot be learned with these settings",
                    got=f"learn={learn!r}, kernel={self.kernel!r}, betas={self.betas!r}",
                    expected="betas without numbers, damping of a kernel that has some",
                    fix="leave out betas=(...); vi.Hamiltonian(step_size, damping=0.5)",
                )
            )
        object.__setattr__(self, "learn", learn)
        if not (isinstance(self.prefix, str) and self.prefix):
            raise ObjectiveError(
                message(
                    "AIS: the prefix is what the names of parameters begin with",
                    got=repr(self.prefix),
                    expected="a text",
                    fix='prefix="ais"',
                )
            )

    def _checked_betas(self) -> tuple[float, ...] | None:
        if self.betas is None:
            return None
        try:
            betas = tuple(map(float, self.betas))
        except (TypeError, ValueError):
            betas = ()
        is_rising = all(a <= b for a, b in zip((0.0, *betas), (*betas, 1.0), strict=True))
        if len(betas) != self.num_steps or not is_rising:
            raise ObjectiveError(
                message(
                    "AIS: betas are the powers of the target, one for each step",
                    got=repr(self.betas),
                    expected=f"{self.num_steps} numbers that do not fall, from 0 to 1",
                    fix="leave betas out, and they are learned",
                )
            )
        return betas

    def mapped(self, fn: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Self:
        return replace(self, proposal=fn(self.proposal))

    # The schedule

    def _starts(self) -> dict[str, Start]:
        """Of the parameters."""
        names = LEARNED if self.learn is True else self.learn or ()
        starts = {}
        if "step_size" in names:
            starts["step_size"] = Start(self.kernel.step_size, "positive")
        if "betas" in names and self.betas is None:
            even = (1.0 / (self.num_steps + 1),) * (self.num_steps + 1)
            starts["increments"] = Start(even, "simplex")
        if "damping" in names and self.kernel.damping > 0.0:
            starts["damping"] = Start(self.kernel.damping, "unit_interval")
        return {f"{self.prefix}.{name}": start for name, start in starts.items()}

    def declare(self) -> None:
        """Declare the parameters in a plain run, as NumPyro's SVI makes one to find them."""
        for name in LIBRARIES:
            if name in sys.modules:
                library = importlib.import_module(f"vi_kit.{name}.annealing")
                if library.is_running():
                    for parameter, start in self._starts().items():
                        library.declared(parameter, start)

    def schedule(self, program: Program, like: Array) -> tuple[Array, Array, Array]:
        """Betas, step sizes and dampings, one for each step."""
        xp, num = array_namespace(like), self.num_steps
        learned = session().parameters(program, self._starts(), like)

        def value(name: str, fixed: Numbers) -> Array:
            found = learned.get(f"{self.prefix}.{name}")
            if found is None:
                return xp.asarray(fixed, dtype=like.dtype, device=device(like))
            return xp.astype(found, like.dtype)

        if f"{self.prefix}.increments" in learned:
            betas = xp.cumulative_sum(value("increments", ()), axis=0)[:-1]
        else:
            even = tuple(k / (num + 1) for k in range(1, num + 1))
            betas = value("betas", self.betas or even)
        sizes = xp.broadcast_to(value("step_size", self.kernel.step_size), (num,))
        return betas, sizes, xp.broadcast_to(value("damping", self.kernel.damping), (num,))

    def _in_words(self, program: Program) -> str:
        steps = f"{self.num_steps} step{'s' * (self.num_steps > 1)} of {self.kernel!r}"
        num = self.num_steps * self.kernel.num_gradients + 1
        return (
            f"{program.role} by AIS: {steps}, {num} gradients of the log densities of model and proposal; learned:"
            f" {', '.join(self._starts()) or 'nothing'}"
        )

    # The chains

    def simulate(self, program: Program, model: Program) -> Draw:
        proposal = proposal_of(self, program)
        session().note_method(self._in_words(program))
        drawn = draw_of(proposal)
        refuse_varied(program, drawn)
        chain = _Chain(self, proposal, model, drawn.restricted(_moved_by(program, drawn)))
        last, noise = chain.run(chain.noise(), back=False)
        end = session().from_coordinates(proposal, last)
        density = chain.of_proposal(chain.start) + chain.of_maps(end) - chain.ratio
        return replace(end, program=program, density=density, drawn_with=noise)

    def at(self, program: Program, model: Program, draw: Draw) -> Cost:
        run, names = session(), draw.keys() - draw.data.keys()
        is_own = draw.program.fn is program.fn and draw.drawn_with is not None
        if is_own:
            names = {n for n in names if draw.details[n].dist.name != "Delta"}
        given = draw.restricted(names)
        if draw.held:
            values = {name: run.constant(value) for name, value in given.by_name.items()}
            given = replace(
                given, by_name=values, held=False, constants=frozenset(given.sites.values())
            )
        chain = _Chain(self, proposal_of(self, program), model, given)
        noise = draw.drawn_with if is_own else None
        noise = chain.noise() if noise is None else noise
        if is_own and draw.held:
            noise = noise.map(run.constant)
        first, _ = chain.run(noise, back=True)
        end = run.from_coordinates(chain.proposal, first)
        return chain.of_proposal(end) + chain.of_maps(chain.start) - chain.ratio


@dataclass(frozen=True, eq=False)
class Noise:
    """Standard Normal values from which a chain is made.

    Attributes:
        steps: of each site, in the order in which steps are taken along a dim in front.
        first: the momenta with which it starts.
    """

    steps: Arrays
    first: Arrays | None

    def map(self, fn: Callable[[Array], Array]) -> Noise:
        return Noise([*map(fn, self.steps)], self.first and [*map(fn, self.first)])

    def half_squares(self) -> Arrays:
        """Minus its log density for each element, but for a constant (nats)."""
        halves = [0.5 * array_namespace(x).sum(x * x, axis=0) for x in self.steps]
        if self.first is None:
            return halves
        return [h + 0.5 * m * m for h, m in zip(halves, self.first, strict=True)]


class _Chain:
    """The steps from a draw of a proposal to one of a target, or back.

    Args:
        algorithm: with kernel and schedule.
        proposal: with the sites.
        model: the target.
        draw: of the sites that move.

    Attributes:
        start: the draw in coordinates, and what others determine.
        ratio: once it has run, the log densities of the reverse steps less those of the steps (nats).
    """

    def __init__(self, algorithm: AIS, proposal: Program, model: Program, draw: Draw):
        run = session()
        self.algorithm, self.proposal, self.model = algorithm, proposal, model
        self.names = list(draw)
        self.start = run.coordinates(proposal, draw)
        self.ratio = Cost(())
        more = [n for n in self.start if n not in draw and not _is_delta(self.start, n)]
        if more:
            raise ObjectiveError(
                message(
                    f"{proposal.role} sites {more} are not in the draw at which its density is wanted",
                    got=f"values of {sorted(draw)}",
                    expected="values of all that the proposal draws",
                    fix="a proposal with the sites of the model only",
                )
            )
        self.moving = self.start.restricted(draw.keys())
        schedule = algorithm.schedule(proposal, self._values()[0])
        self.schedule = schedule

    def _values(self) -> Arrays:
        return [self.moving.by_name[name] for name in self.names]

    def noise(self) -> Noise:
        """New noise."""
        draw, num = session().backend.standard_normal, self.algorithm.num_steps
        first = None
        if self.algorithm.kernel.has_momenta:
            first = [draw(tuple(u.shape), u) for u in self._values()]
        return Noise([draw((num, *u.shape), u) for u in self._values()], first)

    def run(self, noise: Noise, *, back: bool) -> tuple[Draw, Noise]:
        """Take all steps.

        Args:
            noise: of which they are made.
            back: whether they are those of the reverse chain.

        Returns:
            Where the chain ends, in coordinates; and the noise by which a chain in the other direction leads back.
        """
        run, kernel = session(), self.algorithm.kernel
        schedule = [_flipped(x) if back else x for x in self.schedule]

        def step(carry: Any, x: Arrays) -> tuple[Any, Arrays]:
            beta, size, damping, *fresh = x
            bridge = Bridge(self.slopes_at, beta, size, damping)
            state, returned = kernel.step(bridge, State(*carry), fresh, back=back)
            return (state.at, state.momenta, state.slopes), returned

        start = (self._values(), noise.first, self.slopes_at(self._values()))
        xs = [*schedule, *noise.steps]
        xs = [x[:1] for x in xs] if run.is_dry else xs
        (at, momenta, _), returned = run.backend.loop(step, start, xs)
        other = Noise([*map(_flipped, returned)], momenta)
        sign = -1.0 if back else 1.0
        halves = zip(self.names, noise.half_squares(), other.half_squares(), strict=True)
        self.ratio = Cost(())
        for name, one, two in halves:
            what = f"chain of site {name!r}"
            self.ratio += run.of_elements(sign * (one - two), self.start.details[name], what)
        return replace(self.moving, by_name=dict(zip(self.names, at, strict=True))), other

    def slopes_at(self, values: Arrays) -> Slopes:
        """The derivatives of the log densities of proposal and target."""
        of_proposal, of_target = session().gradients(self._densities, values, 2)
        return list(of_proposal), list(of_target)

    def _densities(self, values: Arrays) -> tuple[Cost, Cost]:
        """The log densities of proposal and target by coordinates (nats)."""
        at = replace(self.moving, by_name=dict(zip(self.names, values, strict=True)))
        draw = session().from_coordinates(self.proposal, at)
        return self.of_proposal(draw), log_density_of(self.model, draw) - self.of_maps(draw)

    def of_proposal(self, draw: Draw) -> Cost:
        """The log density of the proposal by coordinates (nats)."""
        return Cost(t for t in draw.density.terms if not self._is_determined(t.statement))

    def of_maps(self, draw: Draw) -> Cost:
        """The log density by the values of its sites less that by coordinates, of any program (nats)."""
        terms = draw.density.terms
        determined = Cost(t for t in terms if self._is_determined(t.statement))
        return determined - Cost(t for t in terms if not t.statement)

    def _is_determined(self, name: str) -> bool:
        return name in self.start and name not in self.moving


def _flipped(array: Array) -> Array:
    return array_namespace(array).flip(array, axis=0)


def _is_delta(draw: Draw, name: str) -> bool:
    return draw.details[name].dist.name == "Delta"


def _moved_by(program: Program, draw: Draw) -> list[str]:
    """The sites of a draw of the proposal that a chain moves."""
    names = [name for name in draw if not _is_delta(draw, name)]
    discrete = [n for n in names if not draw.details[n].dist.is_continuous]
    if not names:
        raise EstimatorError(
            message(
                f"AIS: the {program.role} draws nothing that a chain could move",
                got=f"points at the sites of the proposal: {list(draw)}",
                expected="a proposal that draws continuous sites",
                fix="a guide with distributions, such as AutoNormal(model)",
            )
        )
    if discrete:
        raise EstimatorError(
            message(
                f"AIS: {program.role} sites {discrete} are discrete, and a chain moves along gradients",
                got=f"the sites of the proposal: {list(draw)}",
                expected="continuous sites",
                fix="finite sites in the model only, and summed out of it: Loss(..., marginalize=[...]) or vi.marginal",
            )
        )
    apart = [n for n in names if not _has_path(draw, n)]
    if apart:
        raise EstimatorError(
            message(
                f"AIS: {program.role} sites {apart} are not reparameterised, and a chain starts from one draw with a"
                " gradient",
                got=", ".join(
                    f"{type(draw.sites[n].estimator).__name__}() at {n!r}" for n in apart
                ),
                expected="Reparam(), which the default rule gives where no cost jumps; nor may a gradient jump here,"
                " as that of relu does",
                fix=f'estimators={{"{apart[0]}": vi.Reparam()}}; or vi.SIR(proposal, num_particles)',
            )
        )
    return names


def _has_path(draw: Draw, name: str) -> bool:
    site = draw.sites[name]
    return isinstance(site.layout, Single) and site.estimator.gradient is Gradient.PATH
