"""Optimisers of torch and of Pyro, in the words of a fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pyro.optim import PyroLRScheduler, PyroOptim

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.pyro.precision import HALF

Params = Mapping[str, torch.Tensor]
"""Unconstrained leaves by name."""


class Optimizer(Protocol):
    """Changes parameters by their gradients."""

    def started(self) -> Optimizer:
        """One that has taken no steps, for a start of its own."""
        ...

    def step(self, params: Params, loss: float) -> None: ...

    def said(self) -> dict[str, str]:
        """What tells it from others: its kind and its settings, by name."""
        ...

    def shrink(self, factor: float) -> None:
        """Multiply the step size."""
        ...

    def state(self) -> Any:
        """Nested dicts and lists of numbers and tensors."""
        ...

    def restore(self, state: Any, params: Params) -> None: ...


@dataclass
class OfTorch:
    """An optimiser of torch for all parameters, made when they are known.

    Attributes:
        make: from parameters to an optimiser, or to it and a scheduler, which takes a step after each.
        name: of what a user gave.
        is_given: whether it is one that has its parameters, and trains no others.
        widens: whether it is given float32 in the place of half precision, in which squares of gradients, and what is
            added to them, are nought.
    """

    make: Callable[[list[torch.Tensor]], Any]
    name: str
    is_given: bool = False
    widens: bool = False
    optimizer: Any = None
    scheduler: Any = None
    known: list[str] = field(default_factory=list)
    wide: dict[str, torch.Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name

    def started(self) -> OfTorch:
        return OfTorch(self.make, self.name, widens=self.widens)

    def step(self, params: Params, loss: float) -> None:
        own = {name: self._own(name, p) for name, p in params.items()}
        if own.keys() - set(self.known):
            self._add(own)
        if self.optimizer is not None:
            self.optimizer.step()
        if self.scheduler is not None:
            _advance(self.scheduler, loss)
        for name in self.wide.keys() & params.keys():
            params[name].data.copy_(self.wide[name])

    def _own(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """A parameter, or its stand-in in float32, with its gradient."""
        if not self.widens or param.dtype not in HALF:
            return param
        if name not in self.wide:
            self.wide[name] = torch.zeros_like(param, dtype=torch.float32, requires_grad=True)
        own = self.wide[name]
        own.data.copy_(param)
        own.grad = None if param.grad is None else param.grad.float()
        return own

    def said(self) -> dict[str, str]:
        made = self.make([torch.zeros((), requires_grad=True)])
        optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
        found = {"optimizer": type(optimizer).__name__}
        groups: Any = getattr(optimizer, "param_groups", ())
        for i, group in enumerate(groups):
            of_group = f"optimizer group {i}" if i else "optimizer"
            found |= {f"{of_group} {k}": str(v) for k, v in group.items() if k != "params"}
        if scheduler is not None:
            found["scheduler"] = type(scheduler).__name__
            own = _plain(scheduler.state_dict())
            found |= {f"scheduler {k}": str(v) for k, v in own.items() if k[0] != "_"}
        return found

    def _add(self, params: Params) -> None:
        new = [name for name in params if name not in self.known]
        self.known += new
        if self.optimizer is None:
            made = self.make([params[name] for name in new])
            self.optimizer, self.scheduler = made if isinstance(made, tuple) else (made, None)
            if not isinstance(self.optimizer, torch.optim.Optimizer):
                raise _refused(made, f"{made!r}, made by a function of the parameters")
            if isinstance(self.optimizer, torch.optim.LBFGS):
                raise _refused(self.optimizer, "a minimiser of a function without noise")
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        others = [params[name] for name in new if id(params[name]) not in held]
        if self.is_given and len(others) == len(params):
            raise _refused(self.optimizer, "an optimiser of other parameters than those of the fit")
        if others and not self.is_given:
            self.optimizer.add_param_group({"params": others})

    def shrink(self, factor: float) -> None:
        _shrink(self.optimizer, self.scheduler, factor)

    def state(self) -> Any:
        if self.optimizer is None:
            return None
        scheduler = None if self.scheduler is None else _plain(self.scheduler.state_dict())
        return [list(self.known), self.optimizer.state_dict(), scheduler]

    def restore(self, state: Any, params: Params) -> None:
        if state is None:  # no step was taken
            if self.optimizer is not None:
                self.optimizer.state.clear()
            self.optimizer, self.scheduler, self.known = None, None, []
            return
        known, own, scheduler = state
        self._add({name: self._own(name, params[name]) for name in known})
        self.optimizer.load_state_dict(own)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(scheduler)


@dataclass
class OfPyro:
    """An optimiser of `pyro.optim`, one of its own for each parameter. Schedulers take a step after each."""

    optim: PyroOptim

    def __repr__(self) -> str:
        made_by: Any = self.optim.pt_optim_constructor
        return f"{made_by.__name__}({self.optim.pt_optim_args})"

    def started(self) -> OfPyro:
        return OfPyro(copy.deepcopy(self.optim))

    def step(self, params: Params, loss: float) -> None:
        self.optim(list(params.values()))  # type: ignore[arg-type]
        if isinstance(self.optim, PyroLRScheduler):
            for one in self.optim.optim_objs.values():
                _advance(one, loss)

    def said(self) -> dict[str, str]:
        own = self.optim
        found = {"optimizer": _named(own.pt_optim_constructor)}
        for args in (own.pt_optim_args, own.pt_clip_args):
            given = args if isinstance(args, Mapping) else {"settings": _named(args)}
            found |= {f"optimizer {k}": str(v) for k, v in given.items()}
        if isinstance(own, PyroLRScheduler):
            found["scheduler"] = _named(own.pt_scheduler_constructor)
            found |= {f"scheduler {k}": str(v) for k, v in own.kwargs.items() if not callable(v)}
        return found

    def shrink(self, factor: float) -> None:
        for one in self.optim.optim_objs.values():
            inner = getattr(one, "optimizer", None)
            _shrink(inner or one, one if inner else None, factor)

    def state(self) -> Any:
        return _plain(self.optim.get_state())

    def restore(self, state: Any, params: Params) -> None:
        names = {id(p): name for name, p in params.items()}
        for p in list(self.optim.optim_objs):
            if id(p) in names:
                del self.optim.optim_objs[p]  # it is made again, with the state that waits for it
        self.optim.set_state(dict(state))


def optimizer_of(given: Any, *, num_restarts: int) -> Optimizer:
    """What a user gave.

    Raises:
        ObjectiveError: none of those that can serve.
    """
    if given is None:
        given = 0.01
    if getattr(given, "ndim", None) == 0:
        given = float(given)
    if isinstance(given, int | float) and not isinstance(given, bool) and given > 0:
        name = f"Adam(lr={given})"
        return OfTorch(lambda params: torch.optim.Adam(params, lr=given), name, widens=True)
    if isinstance(given, PyroOptim):
        return OfPyro(given)
    if isinstance(given, torch.optim.Optimizer):
        if num_restarts > 1:
            raise _refused(given, "an optimiser that has its parameters, for several starts")
        return OfTorch(lambda params: given, type(given).__name__, is_given=True)
    if callable(given) and not type(given).__module__.startswith(("optax", "numpyro", "jax")):
        return OfTorch(given, _named(given))
    raise _refused(given, f"{given!r}, of {type(given).__module__.split('.')[0]}")


def _refused(given: Any, got: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            f"fit of Pyro: {type(given).__name__} cannot be its optimiser",
            got=got,
            expected="an optimiser of pyro.optim, a function from parameters to one of torch.optim (or to one and its"
            " scheduler), or a positive step size for Adam",
            fix="optimizer=lambda params: torch.optim.Adam(params, lr=0.01)",
        )
    )


def _named(made_by: Any) -> str:
    return getattr(made_by, "__qualname__", None) or repr(made_by).split(" at 0x")[0]


def _shrink(optimizer: Any, scheduler: Any, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [lr * factor for lr in scheduler.base_lrs]


def _advance(scheduler: Any, loss: float) -> None:
    """A step of a scheduler, of which one looks at the loss."""
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def _plain(state: Any) -> Any:
    """A state without the functions that schedulers keep in it, which their makers have."""
    if isinstance(state, Mapping):
        return {k: _plain(v) for k, v in state.items() if not callable(v)}
    if isinstance(state, list | tuple):
        return type(state)(_plain(v) for v in state if not callable(v))
    return state
