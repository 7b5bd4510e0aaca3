"""Random values in a torch program: tensors that carry their moments through every torch function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

from vi_kit.analysis.blocked import Blocked, Once, line_of_program, sites_of, started
from vi_kit.analysis.expectations import discrete_of
from vi_kit.analysis.factors import Known, Value
from vi_kit.analysis.parts import NoRuleError, SiteKey
from vi_kit.base.protocols import Moments
from vi_kit.costs.terms import Site
from vi_kit.pyro.distributions import PyroDistribution
from vi_kit.pyro.frames import caller
from vi_kit.pyro.precision import full_precision
from vi_kit.pyro.torch_rules import LIBRARY, RULES

METADATA = frozenset(
    "size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous get_device"
    " len hash has_names is_conj is_neg is_inference shape dtype device ndim layout"
    " is_leaf requires_grad grad grad_fn is_sparse is_quantized names format result_type".split()
)
"""Tell nothing of values."""

COMPARISONS = frozenset("eq ne lt le gt ge isnan isfinite isinf".split())

LEAKS = frozenset(
    "__bool__ item __float__ __int__ tolist numpy __index__ __complex__ __contains__ __array__ data".split()
)
"""Make Python numbers, or tensors out of reach."""


class Random(torch.Tensor):
    """A tensor whose expectation is known, or was.

    Attributes:
        value: what is known of it.
        sample: makes the value that it has where the sites have those that were drawn; `None` if none were.
    """

    value: Value | Blocked
    sample: Callable[[], Any] | None

    @staticmethod
    def __new__(
        cls,
        value: Value | Blocked,
        sample: Callable[[], Any] | None,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Random:
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        self.value, self.sample = value, sample
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Random({self.value!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NoRuleError(f"{func}, out of reach of torch functions")


class CarriedMoments(TorchFunctionMode):
    """Sees random values before other kinds of tensors do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Random in types:
            return _apply(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def known(value: Value, sample: Callable[[], Any] | None, kind: torch.dtype = torch.long) -> Random:
    """A tensor for a value, of a kind if that is a choice among numbers."""
    like, whole = value.like, discrete_of(value) is not None
    return Random(value, sample, value.shape, kind if whole else like.dtype, like.device)


def random_value(moments: Moments, site: SiteKey, sample: torch.Tensor | None) -> torch.Tensor:
    """The value of a site."""
    draw = None if sample is None else lambda: sampled(sample)
    arrays = _map(_value, moments.arrays)
    made = started(moments.kind, arrays, site, LIBRARY, _frames())
    if isinstance(made, Value):
        pushed = moments.push(known(made, None))
        is_float = moments.kind == "bernoulli"  # draws are, and numbers beside them are made so
        dtype = pushed.value.like.dtype if is_float else pushed.dtype
        return Random(pushed.value, draw, pushed.shape, dtype, pushed.device)
    if draw is None:
        raise made.error()
    return _blocked(made, draw())


def own_log_prob(
    dist: PyroDistribution, site: Site, drawn: Any, is_own: bool, value: Random
) -> torch.Tensor:
    """The log density, under a distribution, of the value of a site that was drawn from another."""
    if not any(isinstance(x, Random) for x in (*dist.arrays(), *drawn.arrays())):
        mean = dist.mean_log_prob(drawn, is_own)
        if mean is not None:
            draw = value.sample and Once(lambda: dist.log_prob(sampled(value)))
            return known(Value((Known(mean, frozenset(((site.order, site.label),))),)), draw)
    return dist.log_prob(value)


def sampled(x: Any) -> Any:
    """A random value as it is where the sites have the values that were drawn; of other things, themselves."""
    if not isinstance(x, Random):
        return x
    assert x.sample is not None
    return x.sample()


def _apply(func: Any, args: Any, kwargs: Any) -> Any:
    """What a torch function makes of arguments of which some are random."""
    written = getattr(func, "__name__", "")
    is_attribute = written == "__get__"
    if is_attribute:
        written = func.__self__.__name__
    name = written.strip("_")
    if name in METADATA or (is_attribute and name not in RULES and name not in LEAKS):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    if written == "__iter__":
        return iter(args[0].unbind(0))
    if name in COMPARISONS and _is_check(caller(2)):
        return func(*_map(_mean, args), **_map(_mean, kwargs))
    operands: list[Random] = []
    values = _map(_value, args, operands)
    named = {key: _map(_value, x, operands) for key, x in kwargs.items()}
    draw: Callable[[], Any] | None = None
    if all(x.sample is not None for x in operands):
        draw = Once(lambda: func(*_map(sampled, args), **_map(sampled, kwargs)))
    lost = _lost(written, kwargs)
    blocked = Blocked.among([x.value for x in operands])
    if blocked is None:
        try:
            if lost or name not in RULES:
                raise NoRuleError(lost or "there is no rule for it")
            with full_precision():
                result = RULES[name](*values, **named)
            choices = any(discrete_of(x) is not None for x in tree_iter(result))
            return _wrapped(result, draw, _kind(func, args, kwargs) if choices else torch.long)
        except (NoRuleError, TypeError) as error:  # TypeError: arguments that a rule does not take
            sites = sites_of([x.value for x in operands])
            shown = name if written.startswith("__") else written
            blocked = Blocked(shown, str(error), line_of_program(_frames()), sites)
    if draw is None or lost:
        raise blocked.error()
    result = draw()
    if not any(isinstance(x, torch.Tensor) for x in tree_iter(result)):
        raise blocked.error()
    return tree_map(lambda x: _blocked(blocked, x) if isinstance(x, torch.Tensor) else x, result)


def _kind(func: Any, args: Any, kwargs: Any) -> torch.dtype:
    """Of what a torch function makes, which has elements of one."""
    args, kwargs = tree_map(_empty, (args, kwargs))
    made = next(iter(tree_iter(func(*args, **kwargs))))
    return made.dtype if isinstance(made, torch.Tensor) else torch.long


def _empty(x: Any) -> Any:
    if not isinstance(x, torch.Tensor):
        return x
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _is_check(frame: Any) -> bool:
    """Whether a distribution asks whether a random parameter is one that it may have."""
    while frame.f_code.co_name == "__torch_function__":  # of modes, which pass it on
        frame = frame.f_back
    in_constraint = frame.f_code.co_filename.endswith("constraints.py")
    return in_constraint and isinstance(frame.f_locals.get("value"), Random)


def _lost(written: str, kwargs: Any) -> str | None:
    """Why one cannot follow a random value through a function, not even by its sample."""
    if written in LEAKS:
        return "a random value becomes a Python number, or a tensor out of reach"
    is_operator = written.startswith("__")
    if "out" in kwargs or written == "__setitem__" or (written.endswith("_") and not is_operator):
        return "it writes in place"
    return None


def _blocked(blocked: Blocked, sample: torch.Tensor) -> Random:
    return Random(blocked, lambda: sample, sample.shape, sample.dtype, sample.device)


def _map(fn: Callable[[Any], Any], x: Any, found: list[Random] | None = None) -> Any:
    """A function of everything in arguments; `found` gets what is random among them."""
    if isinstance(x, Random):
        if found is not None:
            found.append(x)
        return fn(x)
    if isinstance(x, dict):
        return {key: _map(fn, value, found) for key, value in x.items()}
    if isinstance(x, tuple | list) and not isinstance(x, torch.Size):
        return type(x)([_map(fn, value, found) for value in x])
    return x


def _wrapped(
    result: Any, draw: Callable[[], Any] | None, kind: torch.dtype, path: tuple[int, ...] = ()
) -> Any:
    """Values as tensors, which know where in the result of `draw` they are."""
    if isinstance(result, tuple | list):
        return tuple(_wrapped(x, draw, kind, (*path, i)) for i, x in enumerate(result))
    if not isinstance(result, Value):
        return result
    if draw is None or not path:
        return known(result, draw, kind)

    def at() -> Any:
        found = draw()
        for i in path:
            found = found[i]
        return found

    return known(result, at, kind)


def _value(x: Random) -> Any:
    return x.value


def _mean(x: Random) -> Any:
    return x.value.full_mean if isinstance(x.value, Value) else sampled(x)


def _frames() -> Any:
    """Of the program, the innermost first: file, line and function."""
    frame = caller(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back
