"""Which torch programs see several elements of a plate at once.

Along which dim of a tensor the elements of a plate lie is read off the ATen operations of one run. Where that is not
clear, the program is run at several values (`vi_kit.analysis.mixing`).
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vi_kit.analysis.mixing import (
    AWAY,
    SEVERAL,
    UNCLEAR,
    Mixing,
    MixingProbe,
    Outcome,
    Places,
    common,
    find_mixed,
    joined,
    read,
)
from vi_kit.base.named import Axis
from vi_kit.engine.plan import Findings, Plan
from vi_kit.engine.run import Run
from vi_kit.pyro.backend import PyroBackend
from vi_kit.pyro.degrees import Reads, away_from_a_draw, is_own, moved_a_little
from vi_kit.pyro.distributions import PyroDistribution, is_validation
from vi_kit.pyro.leak_probe import READS
from vi_kit.pyro.noise import Generators

aten = torch.ops.aten

NUM_VALUES = len(AWAY)
"""How many values sites have where the program is tested."""


def find_mixed_in(
    plan: Plan, plates: Sequence[Axis], arguments: Any, execute: Callable[[Run], None]
) -> Mixing:
    """Which terms see several elements of which plates, found by dry runs.

    Args:
        plan: of the program, which is kept for other arguments, too.
        plates: to be looked at.
        arguments: of the program.
        execute: makes a dry run.
    """
    plain = replace(plan, num_slots=1, tracked=False, analytic=frozenset())
    known: dict[tuple[str, int, int], torch.Tensor] = {}
    start = Generators.now()

    def run(number: int, seconds: Mapping[Axis, torch.Tensor], reader: Reader | None = None) -> Run:
        counts = Counter[str]()

        def value(label: str, dist: PyroDistribution, number: int) -> torch.Tensor:
            key = label, counts[label], number
            if key not in known:
                now, away = Generators.now(), AWAY[number % len(AWAY)]
                torch.manual_seed(len(known))
                with reader.drawing() if reader else nullcontext():
                    drawn = dist.one_of_many(number, lambda: away_from_a_draw(dist.fn, away))
                    known[key] = drawn.detach().clone()
                now.restore()
            return known[key]

        def two_values(label: str, dist: PyroDistribution) -> Any:
            counts[label] += 1
            return value(label, dist, number), value(label, dist, number + 1)

        start.restore()
        probe = MixingProbe({}, seconds=seconds, two_values=two_values)
        run = Run(PyroBackend(), plain, findings=Findings(), probe=probe, with_gradient=False)
        execute(run)
        return run

    def outcomes(number: int, seconds: Mapping[Axis, np.ndarray]) -> list[Outcome]:
        at = {plate: torch.as_tensor(elements) for plate, elements in seconds.items()}
        return [
            Outcome(t.label, t.base.axes, t.base.array.detach().cpu().numpy())
            for t in run(number, at).terms
        ]

    def test(left: Sequence[Axis], terms: set[tuple[str, Axis]]) -> set[tuple[str, Axis]]:
        with moved_a_little(leaves.values()):
            return find_mixed(left, outcomes, NUM_VALUES, terms)

    leaves = {id(p): p for known in plan.leaves.values() for p in known.values()}
    seconds = {plate: torch.zeros(plate.size, dtype=torch.bool) for plate in plates}
    try:
        reader = Reader(list(seconds.values()), arguments)
        with reader, reader.reads:
            terms = run(0, seconds, reader).terms
        of_terms = [(t.label, t.base.axes, reader.places(t.base.array)) for t in terms]
        return read(plates, of_terms, test)
    finally:
        start.restore()


@dataclass(frozen=True)
class Call:
    """An operation.

    Attributes:
        name: without the underscore of one that writes into an operand.
        given: the arguments by name.
        made: its results that are tensors.
        may_change: numbers of those arguments that are made of the arguments of the program.
    """

    name: str
    given: Mapping[str, Any]
    made: Sequence[torch.Tensor]
    may_change: frozenset[int]


Operands = Sequence[tuple[torch.Tensor, int]]
"""Those in which the elements of a plate lie along a dim, and this dim."""

Rule = Callable[[Call, Operands], int]
"""From an operation to the dim of its results."""


@dataclass(frozen=True)
class Spot:
    """Which numbers of its storage a tensor has."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def modulus(self, dim: int) -> tuple[int, int, int] | None:
        """How the element along a dim follows from where a number is stored: by its quotient by one number, modulo
        another, less a third."""
        stride, size = self.strides[dim], self.shape[dim]
        others = [
            (by, n)
            for d, (n, by) in enumerate(zip(self.shape, self.strides, strict=True))
            if d != dim
        ]
        inside = sum(by * (n - 1) for n, by in ((n, by) for by, n in others) if by < stride)
        outside = all(by % (stride * size) == 0 for by, n in others if by >= stride and n > 1)
        if stride <= 0 or not outside or self.offset % stride + inside >= stride:
            return None
        return stride, size, self.offset // stride % size


class Layout(NamedTuple):
    """What lies along a dim: the elements of a plate, of each so many in a row, from the first to the last and again
    until the dim is full.

    Attributes:
        plate: its number.
        count: of its elements.
        num: how many are in a row.
        size: of the dim.
    """

    plate: int
    count: int
    num: int
    size: int


Found = Mapping[Layout, int]
"""The dim along which something lies, `SEVERAL`, or `UNCLEAR`."""

GIVEN = Layout(-1, 0, 0, 0)
"""The arguments of the program, which lie nowhere."""


class Reader(TorchDispatchMode):
    """Reads off operations along which dim the elements of plates lie.

    Args:
        elements: of the plates.
        arguments: of the program.

    Attributes:
        reads: to be entered, too.
        told: plates of whose elements the program was told values, so that any later one may depend on them.
    """

    def __init__(self, elements: Sequence[torch.Tensor], arguments: Any) -> None:
        super().__init__()
        self.reads = Reads()
        self.told = set[Layout]()
        self.is_drawing = False
        self._plates = [Layout(number, len(x), 1, len(x)) for number, x in enumerate(elements)]
        self._places: defaultdict[int, dict[Spot, Found]] = defaultdict(dict)
        self._written: defaultdict[int, dict[Spot, Found]] = defaultdict(dict)
        self._kept: list[torch.Tensor] = []
        for plate, x in zip(self._plates, elements, strict=True):
            self._add(x, {plate: 0})
        for x in _tensors(arguments):
            self._add(x, {GIVEN: UNCLEAR})

    def places(self, value: torch.Tensor) -> Places:
        """Where elements of plates lie in a tensor. What is not clear at these arguments counts as seen, if the program
        was told what they are."""
        told = self.told.union(*map(self._of, self.reads.found))
        found = self._of(value)
        if told:
            found = joined([found, dict.fromkeys(self._plates, UNCLEAR)])
        found = {k: dim if k in self._plates or dim < 0 else UNCLEAR for k, dim in found.items()}
        if GIVEN in told:
            found = {k: SEVERAL if dim == UNCLEAR else dim for k, dim in found.items()}
        return joined([{layout.plate: dim} for layout, dim in found.items()])

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """While a site gets a value, which counts as given."""
        self.is_drawing = True
        try:
            yield
        finally:
            self.is_drawing = False

    def _of(self, value: torch.Tensor) -> Found:
        memory, spot = _memory(value), _spot(value)
        own = self._places[memory].get(spot, {}) if memory in self._places else {}
        if memory not in self._written:
            return own
        return joined([own, *(_seen_from(spot, *w) for w in self._written[memory].items())])

    def _add(self, value: torch.Tensor, found: Found) -> None:
        self._places[_memory(value)][_spot(value)] = found
        self._kept.append(value)  # or its memory might be another's later

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            of = [] if self.is_drawing else list(self._operands((args, kwargs)))
            result = func(*args, **kwargs)
            if of:
                self._note(func, args, kwargs, result, of)
        return result

    def _operands(self, arguments: Any) -> Iterator[tuple[torch.Tensor, Found]]:
        for x in _tensors(arguments):
            places = self._of(x)
            if places:
                yield x, places

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any, of: Any) -> None:
        frame = sys._getframe(2)
        if func.overloadpacket in READS and not self.reads.is_checking:
            if not (is_validation(frame) or is_own(frame)):
                self.told.update(*(found for _, found in of))
        schema = func._schema.arguments
        given = {
            a.name: args[i] if i < len(args) else kwargs.get(a.name, a.default_value)
            for i, a in enumerate(schema)
        }
        into = [given[a.name] for a in schema if a.alias_info and a.alias_info.is_write]
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        written, made = _tensors(into), _tensors(result)
        if name in FROM_SHAPES or not (made or written):
            return
        may_change = frozenset(id(x) for x, found in of if GIVEN in found)
        call = Call(name, given, made or written, may_change)
        found = self._met(_results(func, call, of))
        for x in made:
            self._add(x, _checked(x, found))
        for x in written:
            before = self._written[_memory(x)].get(_spot(x), {})
            self._written[_memory(x)][_spot(x)] = joined([before, _checked(x, found)])

    def _met(self, found: Found) -> Found:
        """Where elements that lie in two ways have met."""
        num = Counter(layout.plate for layout in found)
        several = {plate: SEVERAL for plate in self._plates if num[plate.plate] > 1}
        return {**{k: dim for k, dim in found.items() if num[k.plate] == 1}, **several}


def _results(func: Any, call: Call, of: Sequence[tuple[torch.Tensor, Found]]) -> Found:
    """What lies where in the results, from what does in operands."""
    rule, results = _rule(func, call.name), dict[Layout, int]()
    for layout in {layout: None for _, found in of for layout in found}:
        operands = [(x, found[layout]) for x, found in of if layout in found]
        lost = [dim for _, dim in operands if dim < 0]
        if lost:
            results[layout] = common(lost)
        elif call.name in RESHAPES:
            ((x, dim),) = operands
            results.update([_reshaped(layout, dim, x.shape, call.made[0].shape)])
        else:
            results[layout] = rule(call, operands)
    return results


def _checked(x: torch.Tensor, found: Found) -> Found:
    """Dims that are of the size of what lies along them."""
    return {
        layout: dim if dim < 0 or x.shape[dim : dim + 1] == (layout.size,) else UNCLEAR
        for layout, dim in found.items()
    }


def _reshaped(
    layout: Layout, dim: int, old: Sequence[int], new: Sequence[int]
) -> tuple[Layout, int]:
    """Of the same numbers in another shape."""
    num_all = layout.num * math.prod(old[dim + 1 :])
    for d, size in enumerate(new):
        num, rest = divmod(num_all, max(1, math.prod(new[d + 1 :])))
        if rest == 0 and num and size % (num * layout.count) == 0:
            return layout._replace(num=num, size=size), d
    return layout, UNCLEAR


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata


def _spot(value: torch.Tensor) -> Spot:
    return Spot(int(value.storage_offset()), tuple(value.shape), value.stride())


def _seen_from(spot: Spot, written: Spot, places: Found) -> Found:
    """Of a tensor, what was written into one of the same storage."""
    if spot == written:
        return places
    found = {}
    for number, dim in places.items():
        found[number] = dim
        if dim >= 0:
            element = written.modulus(dim)
            same = (d for d in range(len(spot.shape)) if element and spot.modulus(d) == element)
            found[number] = next(same, UNCLEAR)
    return found


def _rule(func: Any, name: str) -> Rule:
    if name in RULES:
        return RULES[name]
    packet = getattr(aten, name, func.overloadpacket)
    overloads = [func, *(getattr(packet, o) for o in packet.overloads()[:1])]
    return _elementwise if any(torch.Tag.pointwise in o.tags for o in overloads) else _unknown


def _unknown(call: Call, operands: Operands) -> int:
    del call, operands
    return UNCLEAR


def _elementwise(call: Call, operands: Operands) -> int:
    """Of tensors that are broadcast."""
    return common(call.made[0].dim() - (x.dim() - dim) for x, dim in operands)


def _kept(call: Call, operands: Operands) -> int:
    """Where dims count from the first one."""
    del call
    return common(dim for _, dim in operands)


def _along(call: Call, num_dims: int) -> tuple[int, ...]:
    """The dims along which an operation goes; all, if none is given."""
    names = ("dim", "dims", "dimension")
    along = next((call.given[name] for name in names if name in call.given), None)
    if along is None or along == []:
        return tuple(range(num_dims))
    return tuple(d % num_dims for d in (along if isinstance(along, list | tuple) else (along,)))


def _outside(lost: int) -> Rule:
    """Of operations along dims which stay."""

    def rule(call: Call, operands: Operands) -> int:
        dim = _kept(call, operands)
        return lost if dim in _along(call, operands[0][0].dim()) else dim

    return rule


def _without(lost: int) -> Rule:
    """Of operations along dims which are gone."""

    def rule(call: Call, operands: Operands) -> int:
        dim, along = _kept(call, operands), _along(call, operands[0][0].dim())
        if dim < 0 or dim in along:
            return lost if dim in along else dim
        return dim if call.given.get("keepdim") else dim - sum(d < dim for d in along)

    return rule


def _before_the_last(num: int) -> Rule:
    """Of functions of so many dims at the end."""

    def rule(call: Call, operands: Operands) -> int:
        if any(dim >= x.dim() - num for x, dim in operands):
            return SEVERAL
        is_smaller = call.made[0].dim() < operands[0][0].dim()
        return (_kept if is_smaller else _elementwise)(call, operands)

    return rule


SOLVED = {
    "linalg_solve_triangular": "B",
    "_linalg_solve_ex": "B",
    "linalg_lu_solve": "B",
    "triangular_solve": "self",
    "cholesky_solve": "self",
}
"""The argument of the right side of an equation, whose columns are by themselves."""


def _solved(call: Call, operands: Operands) -> int:
    right = call.given[SOLVED[call.name]]
    columns = right.dim() - 1 if call.given.get("left", True) and right.dim() > 1 else None
    matrices = [(x, dim) for x, dim in operands if x is not right or dim != columns]
    dims = [call.made[0].dim() - 1] * (len(matrices) < len(operands))
    return common([*dims, _before_the_last(2)(call, matrices)] if matrices else dims)


def _loss(call: Call, operands: Operands) -> int:
    return SEVERAL if call.given["reduction"] else _elementwise(call, operands)


def _picked_loss(call: Call, operands: Operands) -> int:
    """Of the negative log probability of a class."""
    own, target = _dim_of(call, operands, "self"), _dim_of(call, operands, "target")
    if call.given["reduction"] or own == 1 or call.given["self"].dim() == 1:
        return SEVERAL
    return common([None if own is None else own - (own > 1), target])


def _dim_of(call: Call, operands: Operands, name: str) -> int | None:
    """That of an argument."""
    return next((dim for x, dim in operands if x is call.given[name]), None)


def _permuted(call: Call, operands: Operands) -> int:
    ((x, dim),) = operands
    return [d % x.dim() for d in call.given["dims"]].index(dim)


def _transposed(call: Call, operands: Operands) -> int:
    ((x, dim),) = operands
    one, other = (call.given.get(f"dim{i}", i) % max(2, x.dim()) for i in (0, 1))
    return {one: other, other: one}.get(dim, dim) if x.dim() > 1 else dim


def _squeezed(call: Call, operands: Operands) -> int:
    ((x, dim),) = operands
    return dim - sum(d < dim and x.shape[d] == 1 for d in _along(call, x.dim()))


def _unsqueezed(call: Call, operands: Operands) -> int:
    dim = _kept(call, operands)
    return dim + (dim >= call.given["dim"] % call.made[0].dim()) if dim >= 0 else dim


def _padded(call: Call, operands: Operands) -> int:
    ((x, dim),) = operands
    place = 2 * (x.dim() - 1 - dim)
    return SEVERAL if any(call.given["pad"][place : place + 2]) else dim


PRODUCTS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
}
"""The arguments that are multiplied."""


def _product(call: Call, operands: Operands) -> int:
    names = PRODUCTS[call.name]
    left, right = (_dim_of(call, operands, name) for name in names)
    sizes = [call.given[name].dim() for name in names]
    if left == sizes[0] - 1 or right == max(0, sizes[1] - 2):
        return SEVERAL
    added = [] if "self" in names else [o for o in operands if o[0] is call.given["self"]]
    return common([left, right, *(_elementwise(call, [o]) for o in added)])


def _convolved(call: Call, operands: Operands) -> int:
    return 0 if [dim for x, dim in operands if x is call.given["input"]] == [0] else UNCLEAR


def _layer_norm(call: Call, operands: Operands) -> int:
    return _before_the_last(len(call.given["normalized_shape"]))(call, operands)


def _batch_norm(call: Call, operands: Operands) -> int:
    if any(x is not call.given["input"] for x, _ in operands):
        return UNCLEAR
    dim = _kept(call, operands)
    return SEVERAL if call.given["training"] and dim != 1 else dim


def _embedded(call: Call, operands: Operands) -> int:
    weight, indices = _dim_of(call, operands, "weight"), _dim_of(call, operands, "indices")
    return SEVERAL if weight == 0 else common([indices, weight and call.made[0].dim() - 1])


def _gathered(call: Call, operands: Operands) -> int:
    along = call.given["dim"] % max(1, call.given["self"].dim())
    return SEVERAL if _dim_of(call, operands, "self") == along else _kept(call, operands)


def _selected(call: Call, operands: Operands) -> int:
    """Of those at the indices of a vector."""
    x, along, index = (call.given[name] for name in ("self", "dim", "index"))
    dim, along = _dim_of(call, operands, "self"), along % max(1, x.dim())
    if dim == along and not _is_in_order(call, index, 0, x.shape[along]):
        return SEVERAL
    return common([dim, None if _dim_of(call, operands, "index") is None else along])


def _indexed(call: Call, operands: Operands) -> int:
    x, indices = call.given["self"], list(call.given["indices"])
    given = [i for i in indices if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for i in given):
        return UNCLEAR
    shape = torch.broadcast_shapes(*(i.shape for i in given))
    places = [d for d, i in enumerate(indices) if i is not None]
    front = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    placed = {id(i): len(shape) - i.dim() + dim for i, dim in operands}
    found: list[int | None] = [front + placed[id(i)] for i in given if id(i) in placed]
    own = _dim_of(call, operands, "self")
    if own in places:
        index, ahead = indices[own], len(shape) - indices[own].dim()
        dims = (d for d in range(index.dim()) if _is_in_order(call, index, d, x.shape[own]))
        place = next(dims, None)
        found.append(SEVERAL if place is None else front + ahead + place)
    elif own is not None:
        found.append(own if own < front else own - sum(d < own for d in places) + len(shape))
    return common(found)


def _put(call: Call, operands: Operands) -> int:
    """Of one number that is written at a mask."""
    mask, *rest = call.given["indices"]
    is_mask = not rest and mask.dtype == torch.bool and mask.dim() == call.given["self"].dim()
    return _kept(call, operands) if is_mask and call.given["values"].dim() == 0 else UNCLEAR


def _is_in_order(call: Call, index: torch.Tensor, dim: int, size: int) -> bool:
    """Whether indices are those of all elements, one after the other, and stay so."""
    if index.shape[dim] != size or id(index) in call.may_change:
        return False
    order = torch.arange(size, device=index.device)
    return bool((index == order.reshape(-1, *[1] * (index.dim() - dim - 1))).all())


def _searched(call: Call, operands: Operands) -> int:
    edges = call.given.get("boundaries", call.given.get("sorted_sequence"))
    return SEVERAL if any(x is edges for x, _ in operands) else _kept(call, operands)


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_named("copy _to_copy clone detach alias lift_fresh fill masked_fill expand", _elementwise),
    **_named("repeat log_sigmoid_forward _prelu_kernel resolve_conj", _elementwise),
    **_named("normal uniform bernoulli exponential geometric cauchy log_normal", _elementwise),
    **_named("_standard_gamma poisson binomial native_dropout random", _elementwise),
    **_named("tril triu slice view_as_real view_as_complex", _kept),
    **_named("binary_cross_entropy binary_cross_entropy_with_logits mse_loss", _loss),
    **_named("smooth_l1_loss huber_loss soft_margin_loss", _loss),
    "nll_loss_forward": _picked_loss,
    "nll_loss2d_forward": _picked_loss,
    **_named("sum mean prod amax amin max min argmax argmin any all logsumexp", _without(SEVERAL)),
    **_named("_is_all_true _is_any_true", _without(SEVERAL)),
    **_named("var std var_mean std_mean norm linalg_vector_norm nansum median", _without(SEVERAL)),
    **_named("nanmedian mode kthvalue count_nonzero aminmax", _without(SEVERAL)),
    **_named("unbind select", _without(UNCLEAR)),
    **_named("cumsum cumprod cummax cummin logcumsumexp _softmax _log_softmax", _outside(SEVERAL)),
    **_named("_safe_softmax", _outside(SEVERAL)),
    **_named("sort topk flip roll scatter scatter_add scatter_reduce", _outside(SEVERAL)),
    **_named("index_add index_copy index_fill unfold glu", _outside(SEVERAL)),
    **_named("_fft_r2c _fft_c2r _fft_c2c", _outside(SEVERAL)),
    **_named("split split_with_sizes unsafe_split unsafe_split_with_sizes", _outside(UNCLEAR)),
    **_named("cat select_scatter slice_scatter", _outside(UNCLEAR)),
    **_named("cholesky linalg_cholesky_ex cholesky_inverse", _before_the_last(2)),
    **dict.fromkeys(SOLVED, _solved),
    **_named("linalg_inv_ex linalg_lu_factor_ex linalg_lu linalg_qr", _before_the_last(2)),
    **_named("_linalg_eigh _linalg_svd _linalg_det _linalg_slogdet", _before_the_last(2)),
    **_named("linalg_matrix_exp", _before_the_last(2)),
    "_scaled_dot_product_flash_attention_for_cpu": _before_the_last(2),
    **_named("max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d", _before_the_last(2)),
    **_named("upsample_nearest2d upsample_bilinear2d adaptive_max_pool2d", _before_the_last(2)),
    **_named("multinomial _sample_dirichlet diag_embed", _before_the_last(1)),
    "permute": _permuted,
    **_named("transpose t", _transposed),
    "squeeze": _squeezed,
    **_named("unsqueeze stack", _unsqueezed),
    "constant_pad_nd": _padded,
    **dict.fromkeys(PRODUCTS, _product),
    **_named("convolution native_group_norm", _convolved),
    "native_layer_norm": _layer_norm,
    **_named("native_batch_norm _native_batch_norm_legit", _batch_norm),
    "embedding": _embedded,
    "gather": _gathered,
    "index_select": _selected,
    "index": _indexed,
    "index_put": _put,
    **_named("bucketize searchsorted", _searched),
}
"""By the name of the ATen operation. Those that torch calls pointwise need none."""

RESHAPES = frozenset("view _unsafe_view _reshape_alias _reshape_copy view_copy reshape".split())
"""Those that give the same numbers another shape."""

FROM_SHAPES = frozenset(
    "zeros_like ones_like full_like empty_like rand_like randn_like randint_like"
    " new_zeros new_ones new_full new_empty new_empty_strided".split()
)
"""Operations that look at shapes only."""
