"""NumPyro's `scan` with finite sites in its body that are summed out: the forward algorithm, in a `lax.scan`.

Between two steps are kept, for each joint value of the sites of the step before, what the carry is (along an axis per
site, where it depends on them) and the log of the sum over all values before these. A step is evaluated along the
values of its own sites and of those before, each operation along those only on which it depends; then the latter are
summed out. What does not depend on such a site comes from a scan without them. A dry run has one value of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro import handlers
from numpyro.contrib.control_flow.scan import _subs_wrapper
from numpyro.distributions import MaskedDistribution
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger, apply_stack

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import PLATE, WORLD, Axis, Named, total, union
from vi_kit.costs.eliminate import sum_of_possible
from vi_kit.costs.terms import Site
from vi_kit.engine.density import LogDensity
from vi_kit.engine.drawing import claim, expanded, open_site, whole
from vi_kit.engine.lanes import Part, along
from vi_kit.engine.select import MAX_SUMMED
from vi_kit.engine.statements import Replay
from vi_kit.language.programs import Statement
from vi_kit.numpyro.dependence import Dependence
from vi_kit.numpyro.distributions import NumPyroDistribution, widened
from vi_kit.numpyro.lanes import Lanes, evaluate, worlds_p

Names = frozenset[str]


class OpenSite(Exception):
    """The body of a scan has a site that the draw lacks, and that is to be summed out, or drawn step by step."""


@dataclass(frozen=True, eq=False)
class Met:
    """A sample statement of the body.

    Attributes:
        name: of the site, in the body.
        axes: its plates.
        log_prob: in one step, but for a scale that is one number; of a site that is summed out without its masks.
        scale: that number, else an array.
        fn: its distribution.
        is_latent: whether it is not observed.
    """

    name: str
    axes: tuple[Axis, ...]
    log_prob: Any
    scale: Any
    fn: Any
    is_latent: bool


@dataclass(frozen=True, eq=False)
class _Around:
    """What the handlers around a scan make of a statement of its body.

    Attributes:
        name: of the site.
        infer: its annotations.
        scale: `None` if there is none.
        masks: with the steps along their first dim.
    """

    name: str
    infer: Mapping[str, Any]
    scale: Any
    masks: tuple[Any, ...]


class _Passing:
    """In the place of the handler of a program: nothing comes of a message."""

    def process(self, msg: Any) -> None:
        msg["stop"] = True

    def finish(self, msg: Any) -> None: ...


class _Body(Messenger):
    """Gives the sites of the body that are summed out their values, and notes the log densities of all.

    Args:
        scan: to which it belongs.
        step: the number of the step.
        value_of: the values.
    """

    def __init__(self, scan: ScanAtDraw, step: Any, value_of: Callable[[Statement], Any]):
        super().__init__()
        self.scan, self.step, self.value_of = scan, step, value_of
        self.met: list[Met] = []

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg.get("_control_flow_done"):
            raise refuse_nested(msg["name"])
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        handler, shape = self.scan.handler, msg["kwargs"].get("sample_shape", ())
        if shape:
            msg["fn"] = msg["fn"].expand((*shape, *msg["fn"].batch_shape))
            msg["kwargs"]["sample_shape"] = ()
        if handler.is_left_out(msg):
            msg["value"] = jnp.zeros(msg["fn"].shape())
        elif msg["name"] in self.scan.open:
            dist = NumPyroDistribution(widened(msg["fn"]), msg["kwargs"]["rng_key"])
            infer = self.scan.around[msg["name"]].infer
            msg["value"] = self.value_of(
                Statement(msg["name"], dist, handler.axes(msg), infer),
            )

    def postprocess_message(self, msg: Any) -> None:
        handler = self.scan.handler
        if msg["type"] != "sample" or handler.is_left_out(msg):
            return
        name, fn = msg["name"], msg["fn"]
        around = self.scan.around[name]
        for mask in around.masks:
            fn = fn.mask(self.scan.at(mask, self.step) if jnp.ndim(mask) else mask)
        if around.scale is not None:
            msg["scale"] = around.scale * (1.0 if msg["scale"] is None else msg["scale"])
        made = handler.density({**msg, "fn": fn})
        is_number = isinstance(made.scale, int | float) and made.scale > 0.0
        if name in self.scan.rules:
            log_prob = made.plain
        elif is_number and made.scale != 1.0:
            log_prob = made.density / made.scale
        else:
            log_prob = made.density
        scale = made.scale if is_number else np.ones(())
        self.met.append(Met(name, made.axes, log_prob, scale, msg["fn"], not msg["is_observed"]))


class ScanAtDraw:
    """A scan in the replay of a program at a draw that lacks sites of its body.

    Args:
        handler: of the program.
        scan: as NumPyro runs it.
        args: of the scan.
        kwargs: of the scan, but for what follows.
        given: values for sites of its body, as handlers around it put them there.
        replayed: those of the draw.

    Attributes:
        open: the sites that the draw lacks, and how many values each has, if they are finitely many.
        rules: by which sites of the body are summed out.
        around: what handlers around the scan say of each statement.
    """

    def __init__(
        self,
        handler: Any,
        scan: Callable[..., Any],
        args: Any,
        kwargs: Any,
        given: Sequence[Any],
        replayed: Callable[[Any], Any],
    ):
        self.handler, self.run = handler, handler.run
        self.reading: Replay = handler.reading
        self.fn, init, self.xs, length, self.reverse = args
        self.length = jnp.shape(jax.tree.leaves(self.xs)[0])[0] if length is None else length
        self.start = jnp.asarray(0), kwargs["rng_key"]
        self.open: dict[str, int | None] = {}
        self.rules: dict[str, str] = {}

        def noted(msg: Any) -> Any:
            if is_open(handler, msg):
                self.open[msg["name"]] = finite_size(handler, msg)
            return replayed(msg)

        def plain(of_draw: Callable[[Any], Any]) -> Any:
            stack = [*given, ("substitute", of_draw)]
            return scan(*args, substitute_stack=stack, **kwargs)

        self.stack = [*given, ("substitute", replayed)]
        self.plain = partial(plain, replayed)
        (_, _, last), (trace, self.ys) = jax.eval_shape(partial(plain, noted))
        leaves, self.tree = jax.tree.flatten(init)
        self.shapes = jax.tree.leaves(last)
        self.init = [_like(x, s) for x, s in zip(leaves, self.shapes, strict=True)]
        statements = {n: m for n, m in trace.trace.items() if m["type"] == "sample"}
        self.around = {name: self._around(msg) for name, msg in statements.items()}

    # The body

    def _around(self, msg: Any) -> _Around:
        fn = msg["fn"]
        probe = {**msg, "scale": None, "infer": dict(msg["infer"])}
        probe["kwargs"], probe["cond_indep_stack"] = dict(msg["kwargs"]), []
        backend = self.handler.backend
        outer, backend.handler = backend.handler, _Passing()
        try:
            apply_stack(probe)
        finally:
            backend.handler = outer
        found: Any = probe["fn"]
        masks: list[Any] = []
        while found is not fn:
            if isinstance(found, MaskedDistribution):
                mask = found._mask
                masks.append(
                    mask if isinstance(mask, bool) else self._of_steps(msg["name"], mask, fn)
                )
            found = found.base_dist
        return _Around(probe["name"], probe["infer"], probe["scale"], tuple(masks))

    def _of_steps(self, name: str, mask: Any, fn: Any) -> Any:
        shape = (self.length, *fn.batch_shape[1:])
        if jnp.shape(mask) == shape:
            return mask
        self._refuse(
            f"site {name!r}: the mask around the scan does not fit it",
            got=f"shape {jnp.shape(mask)}",
            expected=f"what broadcasts to the steps and the plates in the body, {shape}",
            fix="the mask inside the body",
        )
        return jnp.ones(shape, bool)

    def at(self, array: Any, step: Any) -> Any:
        """An entry for a step, which are counted in the order in which they are taken."""
        return jnp.asarray(array)[self.length - 1 - step if self.reverse else step]

    def body(
        self,
        step: Any,
        key: Any,
        leaves: Sequence[Any],
        x: Any,
        value_of: Callable[[Statement], Any],
    ) -> tuple[list[Any], Any, list[Met]]:
        """One step.

        Args:
            step: its number.
            key: for what is random in it.
            leaves: of the carry.
            x: over which the scan goes.
            value_of: gives the values of the sites that the draw lacks.

        Returns:
            The leaves of the new carry, what else the body returns, and the statements.
        """
        fn: Any = handlers.infer_config(
            self.fn, config_fn=lambda msg: {"_scan_current_index": step}
        )
        fn = handlers.seed(fn, key)
        for kind, given in self.stack:
            wrapped = partial(_subs_wrapper, given, step, self.length)
            if kind == "condition":
                fn = handlers.condition(fn, condition_fn=wrapped)
            elif kind == "substitute":
                fn = handlers.substitute(fn, substitute_fn=wrapped)
        body = _Body(self, step, value_of)
        with handlers.block(), body:
            carry, ys = fn(jax.tree.unflatten(self.tree, leaves), x)
        new = map(_like, jax.tree.leaves(carry), self.shapes)
        return list(new), ys, body.met

    def first(self) -> Any:
        """What the scan sees of `xs` in its first step."""
        return jax.tree.map(lambda x: self.at(x, 0), self.xs)

    def _refuse(self, headline: str, **parts: str) -> None:
        self.run.refuse(message(headline, **parts), of_estimator=False)


class SummedScan(ScanAtDraw):
    """A scan whose sites that the draw lacks are finite, and are summed out.

    Attributes:
        met: the statements, without their arrays.
        fresh: for each leaf of the carry after a step, on which summed sites of this step it depends.
        depends: for each statement, on which summed sites of its step, and of the one before.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.finite = {name: size for name, size in self.open.items() if size is not None}
        infer = {name: self.around[name] for name in self.finite}
        rules = {n: self.reading.program.sums(a.name, a.infer) for n, a in infer.items()}
        self.rules = {name: rule for name, rule in rules.items() if rule}
        self.open = {name: self.finite[name] for name in self.rules}
        self.met: list[Met] = []
        self.fresh: list[Names] = []
        self.depends: dict[str, tuple[Names, Names]] = {}

    def first_value(self, statement: Statement) -> Any:
        return whole(statement.dist.support(), statement.dist)[0]

    # What depends on what

    def analyse(self) -> None:
        """Find out on which of the sites all that the body makes depends."""

        def step(leaves: list[Any], marks: dict[str, Any]) -> Any:
            def value_of(statement: Statement) -> Any:
                value = self.first_value(statement)
                return jnp.where(marks[statement.name], value, value)

            new, ys, met = self.body(*self.start, leaves, self.first(), value_of)
            self.met = [replace(m, log_prob=None, fn=None) for m in met]
            return new, ys, [m.log_prob for m in met]

        names = frozenset(self.rules)
        marks = {name: jnp.asarray(True) for name in sorted(names)}
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(self.init, marks)
        inputs = [frozenset([x]) for x in (*map(_leaf, range(len(self.init))), *marks)]
        found = jax.tree.unflatten(jax.tree.structure(shapes), Dependence().read(closed, inputs))
        of_new, of_ys, of_met = found
        of_ys = jax.tree.leaves(of_ys)
        own, before = [of & names for of in of_new], None
        self.fresh = own
        while self.fresh != before:
            before = self.fresh
            self.fresh = [a | self._before(of) for a, of in zip(own, of_new, strict=True)]
        late = sorted(set().union(*map(self._before, of_new)))
        if late:
            self._refuse(
                f"a scan cannot be summed over {_list(late)}: its carry depends on steps before the last",
                got="a carry that is made of one that depends on such a site",
                expected="a carry that depends on them by their values in the same step only, as in a Markov chain",
                fix=f"one site whose values stand for those of several steps, or {_list(late)} in the guide too",
            )
        for m, of in zip(self.met, of_met, strict=True):
            self.depends[m.name] = of & names, self._before(of)
        seen = {n for of in of_ys for n in (of & names) | self._before(of)}
        if seen:
            seen = _list(sorted(seen))
            self._refuse(
                f"what a scan returns for each step depends on {seen}, which is summed out",
                got="values that are not known",
                expected="outputs that do not depend on it; the last carry may",
                fix=f"None in the place of the second result of its body, or {seen} in the guide too",
            )
        self._check_order()

    def _before(self, of: frozenset[Any]) -> Names:
        """The sites of the step before on which something depends."""
        return frozenset().union(*(names for i, names in enumerate(self.fresh) if _leaf(i) in of))

    @property
    def carried(self) -> list[str]:
        """Sites on which the carry depends, in order."""
        found = frozenset().union(*self.fresh)
        return [name for name in self.rules if name in found]

    def plates(self, name: str) -> frozenset[Axis]:
        return next(frozenset(m.axes) for m in self.met if m.name == name)

    def order(self) -> list[tuple[str, bool]]:
        """Sites, and whether those before, as they are summed out of a step: those in most plates first, and among
        these the last sampled."""
        local = [(n, False) for n in self.rules if n not in self.carried]
        found = [*((n, True) for n in self.carried), *local]
        numbers = list(self.rules)
        return sorted(
            found,
            key=lambda s: (len(self.plates(s[0])), not s[1], numbers.index(s[0])),
            reverse=True,
        )

    def _check_order(self) -> None:
        """Refuse what cannot be summed site by site; find which sums of a step depend on nothing that comes after."""
        carried = self.carried
        factors = [
            {(n, is_before) for is_before, part in enumerate(self.depends[m.name]) for n in part}
            for m in self.met
        ]
        factors.append({(n, 1) for n in carried})
        for name, is_before in self.order():
            site = (name, int(is_before))
            own = set().union(*(f for f in factors if site in f)) - {site}
            factors = [*(f for f in factors if site not in f), own]
            crossing = sorted({n for n, _ in own if not self.plates(n) <= self.plates(name)})
            unlike = sorted(n for n in carried if is_before and self.plates(n) != self.plates(name))
            if crossing or unlike:
                self._refuse(
                    f"site {name!r} cannot be summed together with {_list(crossing or unlike)} in a scan: they are in"
                    " other plates",
                    got="; ".join(
                        f"{n!r} in {_plates(self.plates(n))}" for n in (name, *(crossing or unlike))
                    ),
                    expected="all sites that the carry depends on in the same plates, and others inside these",
                    fix=f"{name!r} in the guide too",
                )
            joint = math.prod(self.finite[n] for n, _ in {*own, site})
            if joint > MAX_SUMMED:
                self._refuse(
                    f"site {name!r} is summed over {joint} joint values at once, above {MAX_SUMMED}",
                    got=", ".join(f"{n!r} has {self.finite[n]}" for n, _ in sorted({*own, site})),
                    expected="log densities that depend on few sites each",
                    fix=f"{name!r}, or another of these, in the guide too",
                )

    # The scans

    def result(self) -> Any:
        """What NumPyro's scan returns, once its log densities are noted."""
        if not self.rules:
            return self.plain()
        if not self.length:
            ys = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), self.ys)
            return self._returned(self.init, ys)
        self.analyse()
        self.sites: dict[str, Site] = {}
        self.values: dict[str, Any] = {}
        self.body(*self.start, self.init, self.first(), self._opened)
        plain, ys, found, fns = self._without()
        leaves = [x if x is not None else first for x, first in zip(plain, self.init, strict=True)]
        if self.run.expands:
            self._all_values(leaves, found)
        else:
            self._one_value(leaves, found)
        for m in self.met:
            name = self.around[m.name].name
            if m.name in fns:
                infer = self.around[m.name].infer
                dist = NumPyroDistribution(promote_batch_shape(fns[m.name]))
                self.reading.latent(Statement(name, dist, m.axes, infer))
            self.reading.record(_density(name, m, found[m.name]))
        self.run.repeated.update(a.name for a in self.around.values())
        return self._returned(leaves, ys)

    def _returned(self, leaves: Sequence[Any], ys: Any) -> Any:
        carry = jax.tree.unflatten(self.tree, leaves)
        return (jnp.asarray(self.length), self.start[1], carry), (PytreeTrace({}), ys)

    def _opened(self, statement: Statement) -> Any:
        """Open a site that is summed out, with what it is drawn from in the first step."""
        run, name, dist = self.run, statement.name, statement.dist
        statement = replace(statement, name=self.around[name].name)
        site, choice = open_site(run, statement, self.reading.program.role, summed=self.rules[name])
        self.sites[name] = self.reading.sites[statement.name] = site
        self.values[name] = value = run.plain_value(site, dist, choice)
        if value is None and name in self.carried:
            claim(run, site, expanded(run, site, dist))
        return self.first_value(statement) if value is None else value

    def _scanned(
        self,
        group: Names,
        value_of: Callable[[Statement], Any],
        wanted: Callable[[Any, list[Met]], list[Any]],
    ) -> tuple[list[Any], list[Any]]:
        """A scan for what depends on some of the sites only, each of which has one value.

        Args:
            group: these sites.
            value_of: their values.
            wanted: of what the body returns besides the carry and of its statements, the arrays of each step.

        Returns:
            The last leaves of the carry, as far as they depend on these sites only, else `None`; and the arrays, with
            the steps in front.
        """
        own = [i for i, names in enumerate(self.fresh) if names <= group]

        def step(state: Any, x: Any) -> Any:
            number, key, kept = state
            key, of_step = random.split(key)

            def body(*arrays: Any) -> list[Any]:
                leaves = list(self.init)
                for i, array in zip(own, arrays, strict=True):
                    leaves[i] = array
                new, ys, met = self.body(number, of_step, leaves, x, value_of)
                return [*(new[i] for i in own), *wanted(ys, met)]

            made = [
                m.base.array for m in evaluate(body, [Lanes({None: Part(a)}) for a in kept], {})
            ]
            return (number + 1, key, made[: len(own)]), made[len(own) :]

        state = (*self.start, [self.init[i] for i in own])
        (_, _, kept), arrays = lax.scan(step, state, self.xs, self.length, self.reverse)
        last: list[Any] = [None] * len(self.init)
        for i, leaf in zip(own, kept, strict=True):
            last[i] = leaf
        return last, arrays

    def _without(self) -> tuple[list[Any], Any, dict[str, Any], dict[str, Any]]:
        """What depends on no site that is summed out: the last carry, outputs, log densities; and from what the latent
        sites of the draw come, given the first values of these."""
        trees: dict[str, Any] = {}
        free = [n for n, (now, before) in self.depends.items() if not now | before]

        def wanted(ys: Any, met: list[Met]) -> list[Any]:
            fns = {m.name: m.fn for m in met if m.is_latent and m.name not in self.rules}
            flat = [jax.tree.flatten(fn) for fn in fns.values()]
            of_ys, trees["ys"] = jax.tree.flatten(ys)
            trees["fns"] = [(n, t, len(x)) for n, (x, t) in zip(fns, flat, strict=True)]
            of_met = [m.log_prob for m in met if m.name in free]
            return [*of_ys, *of_met, *(a for x, _ in flat for a in x)]

        last, arrays = self._scanned(frozenset(), self.first_value, wanted)
        arrays = iter(arrays)
        ys = jax.tree.unflatten(trees["ys"], [next(arrays) for _ in range(trees["ys"].num_leaves)])
        found = {name: next(arrays).sum(0) for name in free}
        fns = {
            name: jax.tree.unflatten(tree, [next(arrays) for _ in range(num)])
            for name, tree, num in trees["fns"]
        }
        return last, ys, found, fns

    def _one_value(self, leaves: list[Any], found: dict[str, Any]) -> None:
        """Add what depends on the sites, each at the one value that a dry run gives it."""
        of_met = {name: now | before for name, (now, before) in self.depends.items()}
        for group in dict.fromkeys([*of_met.values(), *self.fresh]):
            if not group:
                continue
            own = [name for name, names in of_met.items() if names == group]

            def value_of(statement: Statement, group: Names = group) -> Any:
                name = statement.name
                return self.values[name] if name in group else self.first_value(statement)

            last, arrays = self._scanned(
                group, value_of, lambda _, met, own=own: [m.log_prob for m in met if m.name in own]
            )
            found.update((name, array.sum(0)) for name, array in zip(own, arrays, strict=True))
            for i, names in enumerate(self.fresh):
                if names == group:
                    leaves[i] = last[i]

    def _all_values(self, leaves: list[Any], found: dict[str, Any]) -> None:
        """Add what depends on the sites: the log of the sum, and the last carry along the values of the last step."""
        sizes = [(n, site.order, self.finite[n]) for n, site in self.sites.items()]
        worlds = {n: Axis(WORLD, order, f"worlds of {n}", k) for n, order, k in sizes}
        past = {n: replace(a, name=f"{a.name}, one step before") for n, a in worlds.items()}
        inner = {s.order: replace(s, world=worlds[n]) for n, s in self.sites.items()}
        axes_of = [union(worlds[n] for n in names) for names in self.fresh]
        carried = self.carried
        plates = self.plates(carried[0]) if carried else frozenset[Axis]()
        kept = union((worlds[n] for n in carried), plates)
        own = [m for m in self.met if any(self.depends[m.name])]
        dtype = jnp.result_type(float)

        def value_of(statement: Statement) -> Any:
            order = self.sites[statement.name].order
            return worlds_p.bind(whole(statement.dist.support(), statement.dist), site=order)

        def step(state: Any, x: Any) -> Any:
            number, key, seen, before, sums = state
            key, of_step = random.split(key)

            def body(*now: Any) -> list[Any]:
                new, _, met = self.body(number, of_step, now, x, value_of)
                named = [self._named(m) for m in met if any(self.depends[m.name])]
                return [*new, *(n.array for n in named)]

            given = [
                Lanes({None: Part(a, _renamed(axes, worlds, past))})
                for a, axes in zip(seen, axes_of, strict=True)
            ]
            made = [lanes.base for lanes in evaluate(body, given, inner)]
            new = [_filled(p, axes) for p, axes in zip(made, axes_of, strict=False)]
            of_met = zip(own, made[len(new) :], strict=True)
            factors = [(m.name, along(Named(None, union(m.axes)), part)) for m, part in of_met]
            factors.append(("", Named(before, _renamed(kept, worlds, past))))
            for name, is_before in self.order():
                axis = past[name] if is_before else worlds[name]
                factors = _summed_out(factors, axis, self.plates(name), "" if is_before else name)
            now, sums = [], dict(sums)
            for name, f in factors:
                if name and not set(f.axes) & set(worlds.values()):
                    sums[name] += f.broadcast(self.plates(name)).array
                else:
                    now.append(f.sum({a for a in f.axes if a.kind == PLATE} - plates))
            after = total(now).broadcast(kept).array.astype(dtype)
            return (number + 1, key, new, after, sums), None

        start = [
            jnp.broadcast_to(a, (*(w.size for w in axes), *a.shape))
            for a, axes in zip(self.init, axes_of, strict=True)
        ]
        joint = math.prod(worlds[n].size for n in carried)
        before = jnp.full([a.size for a in kept], -math.log(joint), dtype)
        sums = {m.name: jnp.zeros([a.size for a in union(m.axes)], dtype) for m in own}
        state = (*self.start, start, before, sums)
        state, _ = lax.scan(step, state, self.xs, self.length, self.reverse)
        _, _, last, after, sums = state
        for i, axes in enumerate(axes_of):
            if axes:
                leaves[i] = self._spread(last[i], axes)
        found.update((m.name, _laid_out(sums[m.name], m.axes, ())) for m in own)
        if carried:
            in_front, after = union(worlds[n] for n in carried), after + sums[carried[0]]
            found[carried[0]] = self._spread(_laid_out(after, plates, in_front), in_front)

    def _named(self, met: Met) -> Named:
        what = self.reading.program.what(met.name)
        return self.run.named(met.log_prob, met.axes, (), what)

    def _spread(self, array: Any, axes: tuple[Axis, ...]) -> Any:
        """An array with values of sites in front, as the program sees it after the scan."""
        for axis in axes:
            array = worlds_p.bind(array, site=axis.order)
        return array


def is_open(handler: Any, msg: Any) -> bool:
    """Whether a message is about a latent site of the body that the draw lacks."""
    is_latent = msg["type"] == "sample" and not msg["is_observed"] and msg["value"] is None
    return is_latent and handler.prefix + msg["name"] not in handler.reading.draw


def finite_size(handler: Any, msg: Any) -> int | None:
    """How many values a site of the body has that the draw lacks; `None` if they are not finitely many."""
    return NumPyroDistribution(msg["fn"]).support_size() if is_open(handler, msg) else None


def _leaf(number: int) -> tuple[str, int]:
    """What stands for a leaf of the carry where it is said on what something depends."""
    return "leaf", number


def refuse_nested(name: str) -> ObjectiveError:
    """The error about a statement in control flow inside the body."""
    return ObjectiveError(
        message(
            f"site {name!r} is in control flow inside a scan whose body has sites that are summed out",
            got="a sample statement in the body of a scan or cond inside the body",
            expected="sample statements in the body itself",
            fix="a loop in the place of the inner scan, jnp.where in that of a cond",
        )
    )


def _density(name: str, met: Met, log_prob: Any) -> LogDensity:
    """What a statement adds in all steps together."""

    def factor() -> Any:
        return jnp.full_like(log_prob, met.scale)

    return LogDensity(name, met.axes, met.scale * log_prob, log_prob, factor, scale=met.scale)


def _summed_out(
    factors: Sequence[tuple[str, Named]], axis: Axis, plates: frozenset[Axis], name: str
) -> list[tuple[str, Named]]:
    """Log densities with a site summed out, one value per element of its plates."""
    own = [f for _, f in factors if axis in f.axes]
    if not own:
        return list(factors)
    joint = total(f.sum({a for a in f.axes if a.kind == PLATE} - plates) for f in own)
    dim = joint.axes.index(axis)
    rest = joint.axes[:dim] + joint.axes[dim + 1 :]
    summed = Named(sum_of_possible(joint.array, dim), rest)
    return [*((n, f) for n, f in factors if axis not in f.axes), (name, summed)]


def _like(x: Any, shape: Any) -> Any:
    """A leaf of the carry as the scan has it."""
    x = x if hasattr(x, "dtype") else jnp.asarray(x)
    return x if x.dtype == shape.dtype else lax.convert_element_type(x, shape.dtype)


def _renamed(
    axes: Iterable[Axis], old: Mapping[str, Axis], new: Mapping[str, Axis]
) -> tuple[Axis, ...]:
    names = {axis: new[name] for name, axis in old.items()}
    return tuple(names.get(a, a) for a in axes)


def _filled(part: Part, axes: tuple[Axis, ...]) -> Any:
    """An array that has all these axes in front."""
    rest = part.array.shape[len(part.axes) :]
    shape = [a.size if a in part.axes else 1 for a in axes]
    return jnp.broadcast_to(part.array.reshape((*shape, *rest)), (*(a.size for a in axes), *rest))


def _laid_out(array: Any, plates: Iterable[Axis], in_front: Sequence[Axis]) -> Any:
    """An array with axes in canonical order, its plates at the dims where the program has them."""
    sizes = {a.order: a.size for a in plates}
    shape = [sizes.get(d, 1) for d in range(max(sizes, default=0), 0, -1)]
    return array.reshape((*(a.size for a in in_front), *shape))


def _plates(axes: Iterable[Axis]) -> str:
    return ", ".join(sorted(f"plate {a.name!r}" for a in axes)) or "no plate"


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
