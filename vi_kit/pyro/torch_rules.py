"""What torch functions make of random values, in the words of `vi_kit.analysis.expectations`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_iter

import vi_kit.analysis.expectations as rules
from vi_kit.analysis.factors import Value
from vi_kit.analysis.parts import NoRuleError


class TorchLibrary:
    """Implements `vi_kit.analysis.expectations.Library`."""

    def vmap(self, fn: Any) -> Any:
        return torch.func.vmap(fn)

    def lgamma(self, array: torch.Tensor) -> torch.Tensor:
        return torch.lgamma(array)

    def digamma(self, array: torch.Tensor) -> torch.Tensor:
        return torch.digamma(array)


LIBRARY = TorchLibrary()


def _add(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return rules.add(x, _times(y, alpha))


def _sub(x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return rules.subtract(x, _times(y, alpha))


def _times(y: Any, alpha: Any) -> Any:
    return rules.multiply(y, alpha) if isinstance(y, Value) else y if alpha == 1 else alpha * y


def _div(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode:
        raise NoRuleError("it rounds")
    return rules.divide(x, y)


def _pow(x: Any, exponent: Any) -> Any:
    if isinstance(exponent, torch.Tensor) and exponent.numel() == 1 and not exponent.requires_grad:
        exponent = exponent.item()
    if not isinstance(x, Value) or not isinstance(exponent, int | float):
        raise NoRuleError("only powers that are numbers have a rule")
    return rules.power(x, exponent)


def _xlogy(x: Any, y: Any) -> Any:
    return rules.multiply(x, rules.log(y) if isinstance(y, Value) else torch.log(y))


def _dims(ndim: int, dim: Any) -> list[int]:
    if dim is None or dim == ():
        return list(range(ndim))
    return [d % ndim for d in (dim if isinstance(dim, tuple | list) else (dim,))]


def _sum(x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    dims = _dims(len(x.shape), dim)
    result = rules.sum_over(x, dims)
    return _unsqueezed(result, sorted(dims)) if keepdim else result


def _mean_of(x: Value, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
    size = 1
    for d in _dims(len(x.shape), dim):
        size *= x.shape[d]
    return rules.multiply(_sum(x, dim, keepdim), 1.0 / size)


def _matmul(x: Any, y: Any) -> Value:
    n, m = len(x.shape), len(y.shape)
    left = [*range(-n, -2), "i", "k"][-n:] if n > 1 else ["k"]
    right = [*range(-m, -2), "k", "j"] if m > 1 else ["k"]
    batch = max(left[:-2], right[:-2], key=len)
    out = [*batch, *(["i"] if n > 1 else []), *(["j"] if m > 1 else [])]
    return rules.einsum(x, y, (left, right), out)


def _addmm(bias: Any, x: Any, y: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1:
        raise NoRuleError("only beta=1 and alpha=1 have a rule")
    return rules.add(_matmul(x, y), bias)


def _linear(x: Any, weight: Any, bias: Any = None) -> Value:
    n = len(x.shape)
    batch = [*range(-n, -1)]
    result = rules.einsum(x, weight, ([*batch, "k"], ["j", "k"]), [*batch, "j"])
    return result if bias is None else rules.add(result, bias)


def _einsum(spec: Any, *operands: Any) -> Value:
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    if not isinstance(spec, str) or len(operands) != 2 or "." in spec:
        raise NoRuleError("only two operands, named by letters, have a rule")
    names, arrow, out = spec.replace(" ", "").partition("->")
    left, right = names.split(",")
    if not arrow:
        out = sorted(c for c in set(left + right) if (left + right).count(c) == 1)
    if any(len(set(s)) < len(s) for s in (left, right)):
        raise NoRuleError("diagonals have no rule")
    return rules.einsum(*operands, (left, right), list(out))


def _convolution(num_dims: int, func: Any) -> Callable[..., Value]:
    def rule(x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Value:
        if not isinstance(x, Value) or isinstance(weight, Value):
            raise NoRuleError("only a random input has a rule")
        batch = -num_dims - 2
        where = {batch: batch} if len(x.shape) > num_dims + 1 else {}

        def apply(array: torch.Tensor) -> torch.Tensor:
            return func(array, weight, None, *args, **kwargs)

        result = rules.linear(x, apply, LIBRARY, where)
        if bias is None:
            return result
        return rules.add(result, bias.reshape(-1, *(1,) * num_dims))

    return rule


def _solve_triangular(matrix: Any, right: Any, **kwargs: Any) -> Value:
    if isinstance(matrix, Value):
        raise NoRuleError("only a random right hand side has a rule")

    def apply(array: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(matrix, array, **kwargs)

    return rules.linear(right, apply, LIBRARY)


def _whole(func: Any) -> Callable[..., Value]:
    """Of a function that is linear in its first argument."""

    def rule(x: Any, *args: Any, **kwargs: Any) -> Value:
        if not isinstance(x, Value) or any(isinstance(a, Value) for a in tree_iter((args, kwargs))):
            raise NoRuleError("only a random first argument has a rule")
        return rules.linear(x, lambda array: func(array, *args, **kwargs), LIBRARY)

    return rule


def _one_hot(x: Value, num_classes: int = -1) -> Value:
    choice = rules.discrete_of(x)
    if num_classes < 0 and choice is not None:
        num_classes = max(choice.values) + 1
    return rules.one_hot(x, num_classes)


def _embedding(numbers: Value, weight: torch.Tensor, *args: Any, **unused: Any) -> Value:
    return _looked_up(weight, 0, numbers)


def _compared(test: Any) -> Callable[[Any, Any], Any]:
    def rule(x: Any, y: Any) -> Any:
        result = rules.compared(x, y, test)
        shape = (x if isinstance(x, Value) else y).shape
        return torch.full(shape, result) if isinstance(result, bool) else result

    return rule


def _masked_fill(x: Any, mask: Any, value: Any) -> Value:
    return rules.where(mask, value, x)


def _reshape(x: Value, *shape: Any) -> Value:
    if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size):
        shape = tuple(shape[0])
    new = torch.empty(x.shape, device="meta").reshape(shape).shape
    return rules.laid_out(x, ("reshape", new), lambda a: a.reshaped(new), lambda a: a.reshape(new))


def _flatten(x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return _reshape(x, torch.empty(x.shape, device="meta").flatten(start_dim, end_dim).shape)


def _unflatten(x: Value, dim: int, sizes: Any) -> Value:
    return _reshape(x, torch.empty(x.shape, device="meta").unflatten(dim, sizes).shape)


def _permuted(x: Value, order: Sequence[int]) -> Value:
    """With dim `order[i]` as its `i`th."""
    positions = [list(order).index(d) for d in range(len(order))]
    shape = [x.shape[d] for d in order]
    return rules.laid_out(
        x,
        ("permute", tuple(order)),
        lambda a: a.placed(positions, shape),
        lambda a: a.permute(tuple(order)),
    )


def _permute(x: Value, *order: Any) -> Value:
    if len(order) == 1 and isinstance(order[0], tuple | list):
        order = tuple(order[0])
    return _permuted(x, [d % len(x.shape) for d in order])


def _transpose(x: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _permuted(x, order)


def _all_transposed(x: Value) -> Value:
    return _permuted(x, list(range(len(x.shape)))[::-1])


def _movedim(x: Value, source: int, destination: int) -> Value:
    order = list(range(len(x.shape)))
    order.insert(destination % len(order), order.pop(source))
    return _permuted(x, order)


def _unsqueezed(x: Value, dims: Sequence[int]) -> Value:
    """With dims of size one, which are `dims` of the result."""
    ndim = len(x.shape) + len(dims)
    positions = [d for d in range(ndim) if d not in dims]
    shape = [1] * ndim
    for d, n in zip(positions, x.shape, strict=True):
        shape[d] = n
    return rules.laid_out(
        x,
        ("unsqueeze", tuple(dims), ndim),
        lambda a: a.placed(positions, shape),
        lambda a: a.reshape(shape),
    )


def _unsqueeze(x: Value, dim: int) -> Value:
    return _unsqueezed(x, [dim % (len(x.shape) + 1)])


def _squeeze(x: Value, dim: Any = None) -> Value:
    dims = [d for d in _dims(len(x.shape), dim) if x.shape[d] == 1]
    kept = [n for d, n in enumerate(x.shape) if d not in dims]
    return rules.laid_out(
        x, ("squeeze", tuple(dims)), lambda a: a.squeezed(dims), lambda a: a.reshape(kept)
    )


def _expand(x: Value, *sizes: Any) -> Value:
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list | torch.Size):
        sizes = tuple(sizes[0])
    shape = torch.empty(x.shape, device="meta").expand(sizes).shape
    lead = len(shape) - len(x.shape)
    return rules.laid_out(
        x,
        "expand",
        lambda a: a.placed(range(lead, len(shape)), shape),
        lambda a: a.expand(shape),
        keeps=True,
    )


def _expand_as(x: Any, other: Any) -> Any:
    return _expand(x, other.shape) if isinstance(x, Value) else x.expand(other.shape)


def _broadcast_tensors(*tensors: Any) -> Any:
    if len(tensors) == 1 and isinstance(tensors[0], tuple | list):
        tensors = tuple(tensors[0])
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return tuple(_expand(t, shape) if isinstance(t, Value) else t.expand(shape) for t in tensors)


def _looked_up(x: torch.Tensor, dim: int, numbers: Value) -> Value:
    """What stands at whole numbers along one dim of a constant."""
    choice = rules.discrete_of(numbers)
    if choice is None:
        raise NoRuleError("its index is random, and not the value of a Categorical")
    at = torch.as_tensor(choice.values, device=x.device)
    table = x.index_select(dim, at).movedim(dim, 0)
    own = [("number", i) for i in range(len(numbers.shape))]
    others = [i for i in range(x.dim()) if i != dim]
    return rules.looked_up(numbers, table, [*own, *others], [*others[:dim], *own, *others[dim:]])


def _getitem(x: Any, index: Any) -> Value:
    index = index if isinstance(index, tuple) else (index,)
    if not isinstance(x, Value):
        dims = [i for i in index if i is not Ellipsis]
        if (
            any(not isinstance(i, Value) and i != slice(None) for i in dims)
            or len(index) - len(dims) > 1
        ):
            raise NoRuleError("beside a random index only whole dims have a rule")
        full = (slice(None),) * (x.dim() - len(dims))
        at = index.index(Ellipsis) if len(dims) < len(index) else len(index)
        index = (*index[:at], *full, *index[at:][len(index) - len(dims) :])
        (dim,) = [d for d, i in enumerate(index) if isinstance(i, Value)] or (None,)
        if dim is None or sum(isinstance(i, Value) for i in index) > 1:
            raise NoRuleError("only one index may be random")
        return _looked_up(x, dim, index[dim])
    if any(isinstance(i, Value) for i in index):
        raise NoRuleError("its index is random")
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):

        def pick(array: torch.Tensor) -> torch.Tensor:
            return array[index]

        return rules.laid_out(x, object(), lambda a: a.linear(pick, LIBRARY.vmap), pick)
    taken = sum(i is not None and i is not Ellipsis for i in index)
    full = (slice(None),) * (len(x.shape) - taken)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    index = (*index[:at], *full, *index[at + 1 :])
    slices, gone, new = [], [], []
    for i in index:
        if i is None:
            new.append(len(slices) - len(gone) + len(new))
            continue
        if isinstance(i, int):
            gone.append(len(slices))
            i %= x.shape[len(slices)]
        slices.append(slice(i, i + 1) if isinstance(i, int) else i)
    if any(s != slice(None) for s in slices):
        shown = tuple((s.start, s.stop, s.step) for s in slices)
        cut = tuple(slices)
        x = rules.laid_out(x, ("slice", shown), lambda a: a.sliced(cut), lambda a: a[cut])
    if gone:
        x = _squeeze(x, gone)
    return _unsqueezed(x, new) if new else x


def _select(x: Value, dim: int, index: int) -> Value:
    return _getitem(x, (*(slice(None),) * (dim % len(x.shape)), index))


def _narrow(x: Value, dim: int, start: int, length: int) -> Value:
    return _getitem(x, (*(slice(None),) * (dim % len(x.shape)), slice(start, start + length)))


def _split(x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
    n = x.shape[dim]
    sizes = [size] * (n // size) + [n % size] * (n % size > 0) if isinstance(size, int) else size
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(_narrow(x, dim, a, n) for a, n in zip(starts, sizes, strict=True))


def _chunk(x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return _split(x, -(-x.shape[dim] // chunks), dim)


def _unbind(x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(_select(x, dim, i) for i in range(x.shape[dim]))


def _cat(tensors: Any, dim: int = 0) -> Value:
    return rules.concatenate(tensors, dim if dim < 0 else dim - len(tensors[0].shape))


def _stack(tensors: Any, dim: int = 0) -> Value:
    ndim = len(tensors[0].shape) + 1
    raised = [
        _unsqueeze(t, dim % ndim) if isinstance(t, Value) else t.unsqueeze(dim) for t in tensors
    ]
    return rules.concatenate(raised, dim % ndim - ndim)


def _to(x: Value, *args: Any, **kwargs: Any) -> Value:
    target = torch.empty(0, dtype=torch.long).to(*args, **kwargs).dtype
    if not target.is_floating_point and rules.discrete_of(x) is not None:
        return x

    def to(array: torch.Tensor) -> torch.Tensor:
        new = array.to(*args, **kwargs)
        if not new.is_floating_point():
            raise NoRuleError("it makes whole numbers")
        return new

    return rules.converted(x, to)


def _as_dtype(dtype: torch.dtype) -> Callable[..., Value]:
    return lambda x: _to(x, dtype)


def _same(x: Value, *args: Any, **kwargs: Any) -> Value:
    return x


def _detach(x: Value) -> Value:
    return rules.stopped(x, torch.Tensor.detach)


def _made_like(func: Any) -> Callable[..., Any]:
    """Of a function that looks at shape and dtype only."""

    def rule(x: Any, *args: Any, **kwargs: Any) -> Any:
        return func(x.full_mean.detach(), *args, **kwargs)

    return rule


def _mse_loss(x: Any, target: Any, reduction: str = "mean", **unused: Any) -> Value:
    squares = rules.power(rules.subtract(x, target), 2)
    return {"mean": _mean_of, "sum": _sum, "none": _same}[reduction](squares)


def _binary_cross_entropy_with_logits(
    logits: Any, target: Any, reduction: str = "mean", **unused: Any
) -> Value:
    if isinstance(logits, Value):
        raise NoRuleError("softplus of random logits has no rule")
    losses = rules.subtract(torch.nn.functional.softplus(logits), rules.multiply(target, logits))
    return {"mean": _mean_of, "sum": _sum, "none": _same}[reduction](losses)


F = torch.nn.functional

RULES: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "radd"), _add),
    **dict.fromkeys(("sub", "subtract"), _sub),
    **dict.fromkeys(("rsub", "rsubtract"), lambda x, y: _sub(y, x)),
    **dict.fromkeys(("mul", "rmul", "multiply"), rules.multiply),
    **dict.fromkeys(("div", "truediv", "divide", "true_divide"), _div),
    **dict.fromkeys(("rdiv", "rtruediv"), lambda x, y: rules.divide(y, x)),
    **dict.fromkeys(("neg", "negative"), rules.negative),
    **dict.fromkeys(("pow", "float_power"), _pow),
    "square": lambda x: rules.power(x, 2),
    "sqrt": lambda x: rules.power(x, 0.5),
    "rsqrt": lambda x: rules.power(x, -0.5),
    "reciprocal": lambda x: rules.power(x, -1.0),
    "exp": rules.exp,
    "sin": rules.sin,
    "cos": rules.cos,
    "log": rules.log,
    "abs": rules.absolute,
    "xlogy": _xlogy,
    "sum": _sum,
    "mean": _mean_of,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    "rmatmul": lambda x, y: _matmul(y, x),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), _addmm),
    "linear": _linear,
    "einsum": _einsum,
    "conv1d": _convolution(1, F.conv1d),
    "conv2d": _convolution(2, F.conv2d),
    "conv3d": _convolution(3, F.conv3d),
    "conv_transpose1d": _convolution(1, F.conv_transpose1d),
    "conv_transpose2d": _convolution(2, F.conv_transpose2d),
    "conv_transpose3d": _convolution(3, F.conv_transpose3d),
    "linalg_solve_triangular": _solve_triangular,
    **{
        name: _whole(getattr(torch, name))
        for name in "cumsum flip roll tril triu diagonal trace diag diag_embed take tile kron".split()
    },
    "repeat": _whole(torch.Tensor.repeat),
    **dict.fromkeys(("outer", "ger"), lambda x, y: rules.einsum(x, y, ("i", "j"), "ij")),
    "avg_pool2d": _whole(F.avg_pool2d),
    "index_select": _whole(torch.index_select),
    "gather": _whole(torch.gather),
    "where": rules.where,
    "masked_fill": _masked_fill,
    **dict.fromkeys(("reshape", "view"), _reshape),
    "reshape_as": lambda x, y: _reshape(x, y.shape),
    "view_as": lambda x, y: _reshape(x, y.shape),
    "flatten": _flatten,
    "unflatten": _unflatten,
    "permute": _permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    **dict.fromkeys(("t", "T"), _all_transposed),
    "mT": lambda x: _transpose(x, -1, -2),
    **dict.fromkeys(("movedim", "moveaxis"), _movedim),
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "expand_as": _expand_as,
    "broadcast_tensors": _broadcast_tensors,
    "getitem": _getitem,
    "select": _select,
    "narrow": _narrow,
    "split": _split,
    "chunk": _chunk,
    "unbind": _unbind,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "stack": _stack,
    "to": _to,
    "type_as": lambda x, y: _to(x, y.dtype),
    "bool": lambda x: rules.compared(x, 0, operator.ne),
    **dict.fromkeys(("long", "int"), _as_dtype(torch.long)),
    "float": _as_dtype(torch.float32),
    "double": _as_dtype(torch.float64),
    **dict.fromkeys(("contiguous", "clone", "positive"), _same),
    "detach": _detach,
    **{
        name: _made_like(getattr(torch, name))
        for name in "zeros_like ones_like full_like empty_like rand_like randn_like".split()
    },
    **{
        name: _made_like(getattr(torch.Tensor, name))
        for name in "new_zeros new_ones new_full new_empty new_tensor".split()
    },
    **{name: _compared(getattr(operator, name)) for name in "eq ne lt le gt ge".split()},
    "one_hot": _one_hot,
    "embedding": _embedding,
    "mse_loss": _mse_loss,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
}
"""By the name of the function, without the underscores of operators."""
