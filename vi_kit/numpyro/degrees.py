"""Which polynomials a JAX program computes: its jaxpr, read equation by equation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from numpyro.distributions import Independent, TransformedDistribution, biject_to
from numpyro.distributions.constraints import real
from numpyro.util import not_jax_tracer

import vi_kit
from vi_kit.analysis.degrees import (
    CONSTANT,
    GAPS,
    INVERSES,
    JUMPS,
    POLES,
    RULES,
    SIDES,
    TESTS,
    Cut,
    DegreeProbe,
    Degrees,
    Form,
    Rule,
    chosen,
    derive,
    logarithm,
    moved,
    parted,
    power,
    product,
    start,
    stepped,
    unknown,
)
from vi_kit.analysis.jumps import (
    HERE,
    NUM_DRAWS,
    Aside,
    JumpProbe,
    Jumps,
    Shifted,
    Snapshot,
    Sums,
    find_jumps,
    rounded,
    ways,
    weighted,
    with_cuts,
)
from vi_kit.engine.plan import Plan
from vi_kit.numpyro.distributions import NumPyroDistribution
from vi_kit.numpyro.interpreter import (
    Analysis,
    AnyJaxpr,
    Computation,
    Inside,
    bound,
    called,
    opened,
)
from vi_kit.numpyro.operations import rule_for


def degrees_found(
    plan: Plan, execute: Callable[[DegreeProbe], None]
) -> list[tuple[str, str, Form]]:
    """What the terms of a probe are, as `DegreeProbe.found` says it.

    Args:
        plan: says for which sites.
        execute: makes the dry run, which is traced.
    """
    labels, probes = list(plan.degrees), []

    def values(zeros: list[Any]) -> list[Any]:
        probe = DegreeProbe(dict(zip(labels, zeros, strict=True)))
        execute(probe)
        arrays = [jnp.asarray(value) for value in probe.values()]
        probes.append(probe.forget())
        return arrays

    closed = jax.make_jaxpr(values)([0.0] * len(labels))
    degrees = Reading().read(closed, [{label: start(plan.degrees[label])} for label in labels])
    return probes[-1].found(degrees)


def vi_kit_constant(value: Any) -> Any:
    """The value, of which it is not asked where it comes from."""
    return lax.stop_gradient(value)


constant = jax.jit(vi_kit_constant)

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""For what runs a few times only: to optimise it takes longer than that."""

NUM_TOGETHER = 64
"""At how many places a program is evaluated together."""

MAX_TOGETHER = 2**16
"""How many numbers such a program may make."""

OWN = tuple(f"{Path(str(module.__file__)).parent}/" for module in (vi_kit, numpyro.distributions))
"""Where the steps that operations take are known to choose between formulas for one function."""

KINKED_FILE = str(Path(numpyro.distributions.__file__).parent / "continuous.py")
"""Where densities are, some with a kink (Laplace), whose derivatives jump."""


def line(equation: Any) -> str:
    """The line of the program that an equation comes from, if it is known."""
    where = source_info_util.summarize(equation.source_info).split(" (")[0]
    return where.rsplit(":", 1)[0]


GRADIENT = "gradient of "
"""Before the line of an equation that comes from a derivative, which may jump where a function does not."""


def place(equation: Any, outside: str) -> str:
    """The line of the program that an equation comes from, or that of what it is in."""
    own = line(equation) or outside.removeprefix(GRADIENT)
    is_derived = "jvp(" in str(equation.source_info.name_stack) or outside.startswith(GRADIENT)
    is_smooth = own.startswith(OWN) and not own.startswith(KINKED_FILE)
    return GRADIENT + own if is_derived and not is_smooth else own


def is_trusted(equation: Any, where: str) -> bool:
    """Whether the steps that an equation takes choose between formulas for one function, or its derivative."""
    return where.startswith(OWN) or in_continuous(equation, where)


def is_stop(equation: Any, where: str) -> bool:
    """Whether a program says that a value has no derivative, or which one; JAX itself does so where others make up for
    it."""
    name = equation.primitive.name
    if where.startswith(OWN):
        return False
    body = called(equation)
    if name.startswith("custom_") and body is not None:
        return f"at {JAX}" not in opened(body)[0].debug_info.func_src_info
    if name != "stop_gradient":
        return False
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    outside = [i for i, frame in enumerate(frames) if frame.function_name == "stop_gradient"]
    callers = frames[outside[0] + 1 :] if outside else []  # none, where it is itself a branch
    return bool(outside) and not (callers and callers[0].file_name.startswith(JAX))


class Reading(Analysis[Degrees]):
    """Reads what the values of a jaxpr are in each site.

    Args:
        poles: whether it is asked where operations are infinite, or jump at values of their operands.
        parameters: labels of what `stop_gradient` holds.

    Attributes:
        where: the line of the program that is being read.
        cuts: the equations that take steps, by their identity.
        stops: those whose result has no derivative because the program says so.
        choices: those by which something constant chooses whether such results are seen: which operand does, and among
            how many; by their identity and that of all around them.
        around: these, and those that have one inside.
        chosen: what may not be seen.
    """

    max_rounds = 8
    """Then the degree is taken to grow with every iteration."""

    def __init__(self, poles: bool = False, parameters: Collection[str] = ()) -> None:
        super().__init__()
        self.poles, self.parameters = poles, frozenset(parameters)
        self.where = ""
        self.cuts: dict[int, Cut] = {}
        self.stops: dict[int, Cut] = {}
        self.choices: dict[Inside, tuple[int, int]] = {}
        self.around: set[Inside] = set()
        self.chosen: set[Cut] = set()

    def constant(self, value: Any) -> Degrees:
        return {}

    def equation(self, equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
        if not any(operands):
            return [{} for _ in equation.outvars]
        outside, self.where = self.where, place(equation, self.where)
        made, choice = super().equation(equation, operands), chosen_among(equation, operands)
        cuts = {cut for of in made for form in of.values() for cut in form.cuts}
        if choice and cuts:
            self.choices[self.inside] = choice
            self.chosen |= cuts
            self.around.update(self.inside[: i + 1] for i in range(len(self.inside)))
        if self.poles and is_stop(equation, self.where):
            name, number = equation.primitive.name.removesuffix("_call"), -1 - len(self.stops)
            cut = self.stops.setdefault(id(equation), Cut(Path(self.where).name, name, number))
            made = [parted(one, one, cut) for one in made]
        self.where = outside
        return made

    def transfer(self, equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
        name, params = equation.primitive.name, equation.params
        result = derive(name, _rule(equation), operands)
        made = [self._made(equation, operands, result, v.aval.dtype) for v in equation.outvars]
        keys = params["num_keys"] if name == "sort" else len(made)
        return [*made[:keys], *(self._reordered(equation, operands, x) for x in made[keys:])]

    def on_stop_gradient(self, equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
        return [{k: f for k, f in of.items() if k not in self.parameters} for of in operands]

    def _cut(self, equation: Any, name: str) -> Cut:
        known = self.cuts.get(id(equation))
        return Cut(Path(self.where).name, name, len(self.cuts) if known is None else known.key)

    def _reordered(self, equation: Any, operands: Sequence[Degrees], made: Degrees) -> Degrees:
        """What is laid out anew in the order of keys."""
        keys = derive("sort", moved, operands[: equation.params["num_keys"]])
        if not self.poles or self.where.startswith(OWN) or not keys:
            return made
        cut = self.cuts[id(equation)] = self._cut(equation, "sort")
        return parted({**keys, **made}, keys, cut)

    def _made(
        self, equation: Any, operands: Sequence[Degrees], result: Degrees, dtype: Any
    ) -> Degrees:
        """What an output is, which takes steps or not."""
        name, is_float = equation.primitive.name, jnp.issubdtype(dtype, jnp.inexact)
        cut = self._cut(equation, name)
        is_own = is_trusted(equation, self.where)
        if is_float and name not in JUMPS:
            if not self.poles or is_own or self.where.startswith(GRADIENT + KINKED_FILE):
                return result
            operand = pole(equation)
            of = result if name in SIDES else {} if operand is None else operands[operand]
            made = parted(result, of, cut)
        else:
            pairs = zip(equation.invars, operands, strict=True)
            of_floats = any(known and _is_float(atom) for atom, known in pairs)
            is_test = name in TESTS and not self.poles
            made = stepped(result, cut, is_test or not of_floats or is_own)
        if any(cut in form.cuts for form in made.values()):
            self.cuts[id(equation)] = cut
        return made

    def call(self, equation: Any, body: AnyJaxpr, operands: list[Degrees]) -> Sequence[Degrees]:
        """What a function made. Of JAX's own with a derivative of their own the name is told instead of that of an
        operation inside; these and some more are known to be continuous."""
        if equation.params.get("name") == vi_kit_constant.__name__:
            return [{} for _ in equation.outvars]
        is_custom = equation.primitive.name.startswith("custom_")
        own, is_jax = function_of_jax(body)
        if is_jax and own in SIDES and self.poles and not self.where.startswith(OWN):
            made = derive(own, moved, operands)
            of = operands[0] if own in INVERSES else made
            cut = self._cut(equation, own)
            if of:
                self.cuts[id(equation)] = cut
            return [
                parted(made, of, cut) if _is_float(v) else stepped(made, cut) if of else made
                for v in equation.outvars
            ]
        is_known = is_custom or own in continuous_functions(self.where)
        continuous = is_jax and own not in JUMPS and is_known
        if not (is_custom or continuous):
            return self.read(body, operands)
        if own == "xlogy":
            logs = derive("log", logarithm, operands[1:])
            return [derive(own, product, [operands[0], logs])]
        joined = derive(own, moved, operands)
        forms = [item for operand in operands for item in operand.items()]
        before = {label for label, form in forms if form.blocker}

        def outside(label: str, form: Form) -> Form:
            if form.is_continuous and continuous:
                return joined[label]
            return Form(blocker=own) if is_custom and form.blocker and label not in before else form

        return [
            {label: outside(label, form) for label, form in result.items()}
            for result in self.read(body, operands)
        ]

    def on_while(self, equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
        return self.transfer(equation, operands)

    def join(self, values: Sequence[Degrees]) -> Degrees:
        return derive("cond", moved, values)

    def steered(self, value: Degrees, by: Degrees) -> Degrees:
        return derive("cond", chosen, [by, value])

    def lost(self, equation: Any, operands: list[Degrees]) -> Sequence[Degrees]:
        labels = {label for operand in operands for label in operand}
        blocked = {label: Form(blocker=equation.primitive.name) for label in labels}
        return [blocked for _ in equation.outvars]


JAX = str(Path(jax.__file__).parent)

CONTINUOUS_FUNCTIONS = frozenset(
    "leaky_relu elu celu selu hard_tanh hard_sigmoid hard_silu relu6 squareplus slogdet det inv solve norm clip"
    " logsumexp".split()
)
"""Functions of JAX's that compare values and do not jump."""

KINKED = frozenset("leaky_relu elu celu selu hard_tanh hard_sigmoid hard_silu relu6 clip".split())
"""Those of them whose derivatives may jump."""


def continuous_functions(where: str) -> frozenset[str]:
    """Functions of JAX's that do not jump; their derivatives, if that is where they are."""
    return CONTINUOUS_FUNCTIONS - KINKED if where.startswith(GRADIENT) else CONTINUOUS_FUNCTIONS


def function_of_jax(body: AnyJaxpr) -> tuple[str, bool]:
    """The name of a function that is called, and whether it is one of JAX's."""
    info = opened(body)[0].debug_info
    return info.func_name, f"at {JAX}" in info.func_src_info


def in_continuous(equation: Any, where: str) -> bool:
    """Whether an equation is one of those that such a function of JAX's is made of."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    own = itertools.takewhile(lambda frame: frame.file_name.startswith(JAX), frames)
    return any(frame.function_name in continuous_functions(where) for frame in own)


def takes_steps(jaxpr: Jaxpr, where: str = "") -> bool:
    """Whether there is an operation that takes steps at all."""
    return any(_takes_steps(equation, place(equation, where)) for equation in jaxpr.eqns)


def _takes_steps(equation: Any, where: str) -> bool:
    name, params, body = equation.primitive.name, equation.params, called(equation)
    if is_trusted(equation, where):
        return False
    reorders = len(equation.outvars) > params.get("num_keys", len(equation.outvars))
    if name in JUMPS or reorders or is_stop(equation, where):
        return True
    if body is not None:
        own, is_jax = function_of_jax(body)
        if is_jax and own in SIDES:
            return True
        if is_jax and (name.startswith("custom_") or own in continuous_functions(where)):
            return own in JUMPS
        return takes_steps(opened(body)[0], where)
    inner = [*params.get("branches", ()), *(params[k] for k in ("jaxpr",) if k in params)]
    if inner:
        return any(takes_steps(opened(j)[0], where) for j in inner)
    if any(map(_is_float, equation.invars)) and not all(map(_is_float, equation.outvars)):
        return True
    operand = pole(equation)
    of_pole = [] if operand is None else [equation.invars[operand]]
    return name in SIDES or any(not isinstance(atom, Literal) for atom in of_pole)


def chosen_among(equation: Any, operands: Sequence[Degrees]) -> tuple[int, int] | None:
    """Which operand chooses that does not depend on the sites, and among how many. A factor that is zero does."""
    name = equation.primitive.name
    pairs = enumerate(zip(equation.invars, operands, strict=True))
    constant = [i for i, (atom, of) in pairs if not (of or isinstance(atom, Literal))]
    if name == "mul" and constant:
        return constant[0], 1
    sizes = {"cond": len(equation.params.get("branches", ())), "select_n": len(operands) - 1}
    return (0, sizes[name]) if name in sizes and 0 in constant else None


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def pole(equation: Any) -> int | None:
    """Which operand of an equation has a pole at zero."""
    name, params = equation.primitive.name, equation.params
    if name in ("pow", "integer_pow"):
        exponent = params["y"] if name == "integer_pow" else equation.invars[1]
        exponent = exponent.val if isinstance(exponent, Literal) else exponent
        known = isinstance(exponent, int | float | np.generic | np.ndarray)
        if not (known and float(exponent) < 0):
            return None
    return POLES.get(name)


def on_the_way(
    label: str, dist: NumPyroDistribution, t: jax.Array, held: Callable[[Any], Any] = lambda x: x
) -> Any:
    """A value on the way from a draw; of a transformed distribution it is its noise that moves.

    Args:
        label: of the site.
        dist: of the site.
        t: how far, and how far aside.
        held: makes constants of what support and transforms depend on, or does not.
    """
    del label
    fn: Any = dist.fn
    while isinstance(fn, Independent):
        fn = fn.base_dist
    transforms = fn.transforms if isinstance(fn, TransformedDistribution) else []
    fn = fn.base_dist if transforms else fn
    transforms, bijection = [held(x) for x in transforms], biject_to(held(fn.support))
    draws = fn.sample(dist.new_key(), (NUM_DRAWS,))
    one, *others = constant(bijection.inv(draws))
    steps = jnp.stack(others) - one
    step = jnp.sign(steps[0]) * jnp.sqrt(jnp.mean(steps**2, 0))
    directions = constant(jnp.stack([step, *steps[1:]]))
    value = bijection(one + jnp.tensordot(t.astype(one.dtype), directions, 1))
    dist.intermediates = []
    for transform in transforms:
        noise = value
        value, inner = transform.call_with_intermediates(noise)
        dist.intermediates.append([noise, inner])
    return value


def all_held(x: Any) -> Any:
    """A transform or a constraint whose parameters are constants, if one can get at them."""
    try:
        return jax.tree.map(constant, x)
    except Exception:  # it need not be a tree
        return x


def find_jumps_in(
    labels: Sequence[str],
    inputs: Sequence[Any],
    execute: Callable[[DegreeProbe, list[Any]], Any],
    number: int,
    trained: Mapping[int, tuple[str, Any]] | None = None,
    others: Sequence[Sequence[Any]] = (),
) -> Jumps:
    """Which terms jump in the values of sites.

    Args:
        labels: of the sites.
        inputs: numbers for what is not known while the step is traced.
        execute: makes a dry run with a probe, given these.
        number: of the values of other sites.
        trained: of inputs that belong to parameters, whose names and constraints. With them it is only asked for jumps
            where these say, in all values, also those that are held.
        others: other numbers for what is not known.
    """
    sources: list[str] = []
    own_value = functools.partial(on_the_way, held=all_held) if trained else on_the_way

    def values(ts: list[Any], inputs: list[Any]) -> list[Any]:
        zeros = dict(zip(labels, ts, strict=True))
        probe = JumpProbe(zeros, draw=own_value, cut=constant, number=number, holds=not trained)
        execute(probe, inputs)
        sources[:] = probe.sources()
        return [jnp.asarray(value) for value in probe.values()]

    start_of, rng = np.zeros(1 + len(HERE), jnp.result_type(float)), np.random.default_rng(0)
    closed = jax.make_jaxpr(values)([start_of] * len(labels), list(inputs))
    reading = Reading(poles=True)
    moving: list[Degrees] = [{label: start(None)} for label in labels]
    degrees = reading.read(closed, moving + [{}] * len(inputs))
    by_parameter: dict[Cut, list[str]] = {}
    if trained:
        names = {i: f"parameter {name}" for i, (name, _) in trained.items()}
        both = Reading(poles=True, parameters=names.values())
        given = [{names[i]: start(None)} if i in names else {} for i in range(len(inputs))]
        forms = [of for of in both.read(closed, [*moving, *given])]
        same = {both.cuts[i]: cut for i, cut in reading.cuts.items() if i in both.cuts}
        for i, (name, _) in trained.items():
            for cut in {c for of in forms for c in of.get(names[i], CONSTANT).cuts} & same.keys():
                if name not in by_parameter.setdefault(same[cut], []):
                    by_parameter[same[cut]].append(name)
        degrees = with_cuts(degrees, by_parameter.keys())
    if not any(form.cuts for of in degrees for form in of.values()):
        return Jumps()
    consts = [plausible(c, rng) for c in closed.consts]

    def run(
        place: Any, origin: Any, way: Any, consts: Any, inputs: Any, shifts: Mapping[int, Any]
    ) -> Any:
        base, moved = ([*t, *inputs] for t in (origin, place))
        for i in range(len(labels), len(base)):
            moved[i] = shifts.get(i - len(labels), base[i])
        evaluation = Evaluation(reading.cuts, along(way), reading.around)
        pairs = evaluation.read(closed.jaxpr, list(zip(base, moved, strict=True)), consts)
        terms = [x for _, x in pairs]
        results, gaps = (
            {(c.where, c.name, c.key): arrays for c, arrays in of.items()}
            for of in (evaluation.results, evaluation.gaps)
        )
        return results, gaps, terms

    def along(way: Any) -> dict[Inside, tuple[int, Any]]:
        pairs = zip(reading.choices.items(), way, strict=True)
        return {inside: (operand, index) for (inside, (operand, _)), index in pairs}

    def evaluated(place: Any, *given: Any) -> Any:
        if not any(cut.name in POLES for cut in reading.cuts.values()):
            return (*run(place, *given), {})
        (results, gaps, terms), (slopes, *_) = jax.jvp(
            lambda t: run(t, *given), (place,), (jnp.zeros_like(place).at[:, 0].set(1.0),)
        )
        reaches: dict[Any, Any] = {}
        for key in results:
            if key[1] in POLES:
                pairs = [*zip(results[key], slopes[key], strict=True)]
                results[key] = [jnp.sign(x) * jnp.sign(slope) for x, slope in pairs]
                reaches[key] = [x / jnp.abs(slope) for x, slope in pairs]
        return results, gaps, terms, reaches

    alone = compiled(evaluated)
    together = compiled(jax.vmap(evaluated, (0, *[None] * 5)))
    is_mapped = _size(closed.jaxpr) <= MAX_TOGETHER
    unknown = {cut: None for cut in reading.cuts.values()}

    def places(place: float, only: str | None = None, aside: Aside = HERE) -> np.ndarray:
        moved = [place if only in (None, label) else 0.0 for label in labels]
        return np.array([[x, *aside] for x in moved], start_of.dtype)

    def found_on(way: tuple[int, ...] | None, degrees: Sequence[Degrees]) -> Jumps:
        """With `Reading.choices` as a way says; without one, as the program makes them."""
        indices = (-1,) * len(reading.choices) if way is None else way

        def at(
            place: float,
            aside: Aside = HERE,
            shifts: Mapping[int, Any] = {},
            inputs: Sequence[Any] = inputs,
        ) -> Snapshot:
            return at_many([place], aside, shifts, inputs)[0]

        def at_many(
            several: Sequence[float],
            aside: Aside = HERE,
            shifts: Mapping[int, Any] = {},
            inputs: Sequence[Any] = inputs,
        ) -> list[Snapshot]:
            nonlocal is_mapped
            given = places(0.0), indices, consts, list(inputs), shifts
            moved = [places(place, aside=aside) for place in several]
            made: list[Snapshot] = []
            with jax.ensure_compile_time_eval():
                for i in range(0, len(moved), NUM_TOGETHER) if is_mapped else ():
                    batch = moved[i : i + NUM_TOGETHER]
                    filled = batch + batch[-1:] * (NUM_TOGETHER - len(batch))
                    try:
                        arrays = jax.tree.map(np.asarray, together(np.stack(filled), *given))
                    except NotImplementedError:  # an operation cannot be mapped
                        is_mapped = False
                        break
                    for j in range(len(batch)):
                        made.append(snapshot(jax.tree.map(lambda x, j=j: x[j], arrays)))
                for place in moved[len(made) :]:
                    made.append(snapshot(jax.tree.map(np.asarray, alone(place, *given))))
            return made

        def snapshot(made: Any) -> Snapshot:
            results, gaps, terms, reaches = made
            found, gaps, reaches = (
                {
                    Cut(*key): np.concatenate([np.ravel(x) for x in arrays])
                    for key, arrays in of.items()
                }
                for of in (results, gaps, reaches)
            )
            return Snapshot({**unknown, **found}, terms, gaps=gaps, reaches=reaches)

        def slopes(place: float, only: str | None) -> tuple[np.ndarray, Callable[[float], Sums]]:
            """By JAX, and by evaluations of the program that see the same held values."""
            start = places(place)
            with jax.ensure_compile_time_eval():
                by_site = np.asarray(derivatives(start, way, consts, list(inputs)))

            def sums(by: float) -> Sums:
                with jax.ensure_compile_time_eval():
                    moved = start + places(by, only)
                    terms = terms_at(moved, start, indices, consts, list(inputs), {})
                terms = [np.asarray(t) for t in terms]
                return np.array(weighted(terms, np.asarray)), rounded(terms)

            chosen = [only in (None, label) for label in labels]
            return by_site[:, chosen].sum(1), sums

        def shifted(inputs: Sequence[Any]) -> Shifted:
            def shifted(cut: Cut, place: float, name: str) -> np.ndarray | None:
                rng = np.random.default_rng(1)
                shifts = {
                    i: nearby(inputs[i], rng, constraint)
                    for i, (of, constraint) in (trained or {}).items()
                    if of == name
                }
                return at(place, shifts=shifts, inputs=inputs).results[cut]

            return shifted

        return find_jumps(
            sources,
            degrees,
            at,
            stops=stops,
            slopes=slopes,
            trained=by_parameter,
            shifted=shifted(inputs),
            others=[(functools.partial(at, inputs=row), shifted(row)) for row in others],
            at_many=at_many if is_mapped else None,
        )

    @compiled
    def terms_at(place: Any, origin: Any, *given: Any) -> Any:
        return run(place, origin, *given)[-1]

    @compiled
    def derivatives(place: Any, way: Any, consts: Any, inputs: Any) -> Any:
        def sums(place: Any) -> Any:
            arguments = [(x, x) for x in (*place, *jax.tree.leaves(inputs))]
            around = reading.around if way else ()
            evaluation = Evaluation({}, along(way) if way else None, around)
            terms = [x for x, _ in evaluation.read(closed.jaxpr, arguments, consts)]
            return jnp.stack(weighted(terms, jnp.asarray))

        return jax.jacrev(sums)(place)[..., 0]

    stops = frozenset(reading.stops.values())
    found = found_on(None, degrees)
    of_chosen = with_cuts(degrees, reading.chosen)
    for way in ways([size for _, size in reading.choices.values()]):
        if not found.of_all(labels):
            found = found.joined(found_on(way, of_chosen))
    return found


def _size(jaxpr: Jaxpr) -> int:
    """How many numbers a program makes."""
    made = (variable.aval for equation in jaxpr.eqns for variable in equation.outvars)
    return sum(int(np.prod(getattr(aval, "shape", ()))) for aval in made)


def plausible(
    leaf: Any, rng: np.random.Generator, constraint: Any = real, size: float = 1.0
) -> Any:
    """A number for what is not known while a program is traced, of a size; what is known stays."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    shape = leaf.shape if hasattr(leaf, "shape") else np.shape(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            return jax.random.split(jax.random.key(0), shape) if shape else jax.random.key(0)
    if is_known(leaf):
        return leaf
    if jnp.issubdtype(dtype, jnp.floating):
        values = size * rng.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1.0)
        if constraint is real:
            return values.astype(dtype)
        with jax.ensure_compile_time_eval():
            bijection = biject_to(constraint)
            free = jax.eval_shape(bijection.inv, jax.ShapeDtypeStruct(shape, dtype)).shape
            return bijection(jnp.asarray(size * rng.normal(size=free), dtype))
    return rng.integers(0, 2, shape).astype(dtype)


def is_known(leaf: Any) -> bool:
    """Whether the numbers of an array are known."""
    return not_jax_tracer(leaf) and not isinstance(leaf, jax.ShapeDtypeStruct)


def nearby(leaf: Any, rng: np.random.Generator, constraint: Any = real) -> Any:
    """A number near that of a parameter, so that it does not matter where it starts."""
    if not is_known(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return plausible(leaf, rng, constraint)
    with jax.ensure_compile_time_eval():
        free = leaf if constraint is real else biject_to(constraint).inv(leaf)
        free = np.asarray(free)
        noise = 0.05 * rng.normal(size=free.shape) * (1.0 + np.abs(free))
        moved = (free + noise).astype(free.dtype)
        return moved if constraint is real else biject_to(constraint)(moved)


def invented(fn: Any, value: Any, key: Any) -> Any:
    """What could have been observed; what was, if one cannot draw from the distribution."""
    try:
        drawn = fn.sample(key)
    except NotImplementedError:
        return value
    shape = jnp.broadcast_shapes(jnp.shape(drawn), jnp.shape(value))
    return constant(jnp.broadcast_to(drawn, shape).astype(jnp.result_type(value)))


Pair = tuple[Any, Any]
"""A value for the base, and moved; the same array twice where it does not depend on what moves."""


class Evaluation(Computation[Pair]):
    """Evaluates a jaxpr for two sets of inputs, the base and one that moves. What is constant keeps the value that the
    base gives to it.

    Args:
        cuts: the equations that take steps, by their identity.
        way: which operand of each of `Reading.choices` chooses, and what; below zero, what the program does.
        around: `Reading.around`.

    Attributes:
        results: of these equations.
        gaps: of those that compare, by how much their sides differ.
    """

    def __init__(
        self,
        cuts: Mapping[int, Cut],
        way: Mapping[Inside, tuple[int, Any]] | None = None,
        around: Collection[Inside] = (),
    ):
        super().__init__()
        self.cuts = cuts
        self.results: dict[Cut, list[Any]] = {}
        self.gaps: dict[Cut, list[Any]] = {}
        self.way = way or {}
        self.around = around

    def constant(self, value: Any) -> Pair:
        return value, value

    def equation(self, equation: Any, operands: list[Pair]) -> Sequence[Pair]:
        if self.inside in self.way:
            operands = self._turned(equation.primitive.name, operands)
        is_custom = equation.primitive.name.startswith("custom_")
        is_whole = self.inside not in self.around or is_custom
        if is_whole and all(x is y for x, y in operands):
            return [(x, x) for x in bound(equation, [x for x, _ in operands])]
        return super().equation(equation, operands)

    def _turned(self, name: str, operands: Sequence[Pair]) -> list[Pair]:
        """The operands, of which the constant one chooses as the way says."""
        which, index = self.way[self.inside]

        def turned(old: Any) -> Any:
            if name == "mul":
                return jnp.where((index >= 0) & jnp.all(old == 0), jnp.ones_like(old), old)
            return jnp.where(index < 0, old, jnp.asarray(index, old.dtype))

        base, moved = operands[which]
        new = turned(base)
        pair = new, new if moved is base else turned(moved)
        return [*operands[:which], pair, *operands[which + 1 :]]

    def transfer(self, equation: Any, operands: list[Pair]) -> Sequence[Pair]:
        name, params = equation.primitive.name, equation.params
        base, moved = (list(side) for side in zip(*operands, strict=True))
        made = bound(equation, moved)
        results = list(zip(bound(equation, base), made, strict=True))
        cut = self.cuts.get(id(equation))
        if cut is None:
            return results
        if name in GAPS:
            self.gaps.setdefault(cut, []).append(GAPS[name](*moved))
        if name == "while":
            made = [turns(params, moved)]
        elif name == "rem":
            made = [jnp.trunc(moved[0] / moved[1])]
        elif name in POLES:
            made = [moved[POLES[name]]]
        elif name in SIDES:
            made = [SIDES[name](*moved)]
        elif name == "sort":
            made = [jnp.argsort(moved[0], axis=params["dimension"])]
        elif name not in JUMPS:
            made = [x for x in made if not jnp.issubdtype(x.dtype, jnp.inexact)]
        self.results.setdefault(cut, []).extend(made)
        return results

    def call(self, equation: Any, body: AnyJaxpr, operands: list[Pair]) -> Sequence[Pair]:
        if equation.params.get("name") == vi_kit_constant.__name__:
            return [(base, base) for base, _ in operands]
        cut = self.cuts.get(id(equation))
        if cut is not None:
            sides = SIDES[cut.name](*(moved for _, moved in operands))
            self.results.setdefault(cut, []).append(sides)
        return self.read(body, operands)

    def on_stop_gradient(self, equation: Any, operands: list[Pair]) -> Sequence[Pair]:
        return operands

    def on_cond(self, equation: Any, operands: list[Pair]) -> Sequence[Pair]:
        """All branches are taken, and one is chosen."""
        (index, *rest), branches = operands, equation.params["branches"]
        made = [self.read(branch, rest) for branch in branches]

        def chosen_by(index: Any, results: Sequence[Any]) -> Any:
            index = jnp.clip(jnp.asarray(index, jnp.int32), 0, len(results) - 1)
            *others, last = results
            for i, result in reversed(list(enumerate(others))):
                last = jnp.where(index == i, result, last)
            return last

        return [
            tuple(map(chosen_by, index, zip(*pairs, strict=True)))
            for pairs in zip(*made, strict=True)
        ]

    def step(self, body: ClosedJaxpr, inputs: list[Pair]) -> tuple[list[Pair], Any]:
        inner = Evaluation(self.cuts, self.way, self.around)
        inner.inside = self.inside
        return inner.read(body, inputs), (inner.results, inner.gaps)

    def noted(self, arrays: Any) -> None:
        for of, new in zip((self.results, self.gaps), arrays, strict=True):
            for cut, own in new.items():
                of.setdefault(cut, []).extend(own)


def turns(params: Mapping[str, Any], operands: Sequence[Any]) -> Any:
    """How many turns a loop takes; of one that is mapped, for each element."""
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    cond, body = params["cond_jaxpr"], jaxpr_as_fun(params["body_jaxpr"])
    (last,) = cond.jaxpr.outvars
    parts = [e for e in cond.jaxpr.eqns if last in e.outvars and e.primitive.name == "reduce_or"]
    each = cond.replace(jaxpr=cond.jaxpr.replace(outvars=parts[0].invars)) if parts else cond

    def goes_on(carry: Any) -> Any:
        return jaxpr_as_fun(each)(*operands[:first], *carry)[0]

    def turn(known: Any) -> Any:
        count, carry = known
        return count + goes_on(carry), body(*operands[first:second], *carry)

    start = list(operands[second:])
    count = jnp.zeros(goes_on(start).shape, int)
    return lax.while_loop(lambda known: goes_on(known[1]).any(), turn, (count, start))[0]


def _rule(equation: Any) -> Rule:
    name, params = equation.primitive.name, equation.params
    if name == "integer_pow":
        return power(params["y"])
    if name == "pow":
        exponent = equation.invars[1]
        return power(float(exponent.val) if isinstance(exponent, Literal) else None)
    if name == "vi_kit_either":
        return lambda name, forms: moved(name, forms[:2])
    return rule_for(name, RULES) or unknown
