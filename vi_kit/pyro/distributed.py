"""Steps that several processes take together, by `torch.distributed`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.workflow.processes import Alone, Processes, gone

Key = tuple[str, Any]
"""What is averaged: a kind (`param`, `state`, `buffer`) and a name."""


WAITS = "init_process_group(timeout=...) says how long one that does not answer is waited for"


class Elsewhere(Exception):
    """A step failed in another process."""


@dataclass(frozen=True)
class Group:
    """The processes of a group. See `vi_kit.workflow.processes.Processes`.

    Attributes:
        group: of `torch.distributed`.
    """

    group: Any
    shares_rows: bool = True

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def count(self) -> int:
        return dist.get_world_size(self.group)

    @property
    def device(self) -> torch.device:
        """Where numbers are that the group moves, if nothing else says."""
        on_gpu = dist.get_backend(self.group) == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def gathered(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        with self._answers():
            dist.all_gather_object(found, value, group=self.group)
        return found

    def first(self, value: Any) -> Any:
        found = [value]
        with self._answers():
            dist.broadcast_object_list(found, src=self._source, group=self.group)
        return found[0]

    def summed(self, flat: torch.Tensor) -> None:
        """Over all processes, in place."""
        with self._answers():
            dist.all_reduce(flat, group=self.group)

    def spread(self, tensor: torch.Tensor) -> None:
        """The values of the first process, in place."""
        flat = tensor.detach().clone(memory_format=torch.contiguous_format)
        with self._answers():
            dist.broadcast(flat, src=self._source, group=self.group)
        tensor.data.copy_(flat)

    @property
    def _source(self) -> int:
        return dist.get_global_rank(self.group, 0)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise gone(self, error, WAITS) from error


def processes_of(given: Any) -> Processes:
    """What a user gave as `process_group`.

    Raises:
        ObjectiveError: none, and there are several processes; or what is no group, or one without this process.
    """
    is_ready = dist.is_available() and dist.is_initialized()
    if given is None:
        count = dist.get_world_size() if is_ready else 1
        if not is_ready and dist.is_available() and dist.is_torchelastic_launched():
            count = int(os.environ.get("WORLD_SIZE", "1"))
        if count > 1:
            raise ObjectiveError(
                message(
                    "fit: there are several processes, and whether they share this fit was not said",
                    got=f"{count} processes, "
                    + ("an initialised process group" if is_ready else "started by torchrun"),
                    expected="process_group=dist.group.WORLD (after dist.init_process_group) for one fit by all,"
                    " process_group=False for a fit of its own in each",
                    fix="fit(..., process_group=dist.group.WORLD)",
                )
            )
        return Alone()
    if given is False:
        return Alone()
    is_group = isinstance(given, dist.ProcessGroup)
    is_none_here = is_ready and given == dist.GroupMember.NON_GROUP_MEMBER
    if not is_ready or not is_group or dist.get_rank(given) < 0:
        raise ObjectiveError(
            message(
                "fit: process_group is not usable",
                got="a group without this process"
                if is_none_here or is_group
                else f"{given!r}" + ", and no process group was initialised" * (not is_ready),
                expected="a group of torch.distributed with this process, or False",
                fix='dist.init_process_group("gloo"), then process_group=dist.group.WORLD',
            )
        )
    return Group(given) if dist.get_world_size(given) > 1 else Alone()


@dataclass
class Found:
    """What a process has found in a step.

    Attributes:
        loss: nats.
        weight: what it counts for.
        params: leaves that the step depends on, with their gradients.
        others: what else a step changes, by key: what baselines keep, and buffers.
        put: brings the mean of one of the others to its place.
        failed: whether it has failed.
        ended: whether there are no more batches.
        wants_mark: whether it is time to note where the fit stands.
        wants_compiled: whether steps are worth compiling.
    """

    loss: float = 0.0
    weight: float = 0.0
    params: dict[str, torch.Tensor] = field(default_factory=dict)
    others: dict[Key, torch.Tensor] = field(default_factory=dict)
    put: Callable[[Key, torch.Tensor], None] = lambda key, value: None
    failed: bool = False
    ended: bool = False
    wants_mark: bool = False
    wants_compiled: bool = False


@dataclass(frozen=True)
class Entry:
    """A part of what is summed: the shape and type of something that a step changes."""

    key: Key
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


HEAD = 7
"""Numbers in front of those about parameters: five that decide, the weight, and the loss."""


class Exchange:
    """Makes one step of what several processes have found, by one sum over them for each type of numbers.

    In front of the numbers of the widest type is what decides how they all go on: whether one has failed, has no more
    data, or has met something new, of which there is a place for the numbers only once all have agreed on it.

    Args:
        group: the processes.
    """

    def __init__(self, group: Group):
        self.group = group
        self.entries: list[Entry] = []

    def __call__(self, found: Found, leaves: Mapping[str, torch.Tensor]) -> Found:
        """The means, in the gradients of `leaves` and in the places of the others.

        Args:
            found: by this process.
            leaves: all parameters that it knows.

        Returns:
            The mean loss, the leaves that the step depends on in any process, and whether one has failed, and so on.

        Raises:
            ProcessError: one of them is gone.
            ObjectiveError: they have other parameters.
        """
        while True:
            is_new = not found.failed and self._unknown(found, leaves)
            numbers, flats = self._packed(found, leaves, is_new)
            for flat in flats.values():
                self.group.summed(flat)
            told = numbers().tolist()
            failed, ended, news, mark, compiled, weight, loss = told[:HEAD]
            if failed or ended or not news:
                break
            self._agree(found, leaves)
        result = Found(failed=failed > 0, ended=ended > 0, wants_mark=mark > 0)
        result.wants_compiled = compiled > 0
        if not (result.failed or result.ended):
            result.loss, result.weight = loss / weight, weight
            result.params = self._unpack(found, leaves, flats, told[HEAD:], weight)
        return result

    def _unknown(self, found: Found, leaves: Mapping[str, torch.Tensor]) -> bool:
        known = {e.key for e in self.entries}
        own = {("param", name) for name in leaves} | found.others.keys()
        return not own <= known

    def _agree(self, found: Found, leaves: Mapping[str, torch.Tensor]) -> None:
        """On what there is: all processes have the same parameters, and where they are new the same values of them."""
        known = {e.key for e in self.entries}
        own: dict[Key, tuple[Any, ...]] = {}
        for name, leaf in leaves.items():
            key = ("param", name)
            value = "" if key in known else _digest(leaf)
            own[key] = tuple(leaf.shape), leaf.dtype, value
        for key, value in found.others.items():
            own[key] = tuple(value.shape), value.dtype, ""
        every = self.group.gathered(own)
        texts = []
        for key in dict.fromkeys(key for one in every for key in one):
            values = [one.get(key) for one in every]
            have = [v for v in values if v is not None]
            if len(set(have)) > 1 or (key[0] == "param" and len(have) < len(every)):
                texts.append(f"{' '.join(map(str, key))}: {[v and v[:2] for v in values]}")
        if texts:
            raise ObjectiveError(
                message(
                    "fit: the processes have other parameters, or other values of one that was not there before",
                    got="; ".join(texts),
                    expected="the same in each process, whatever their data: made in the first run, or with the same"
                    " values wherever it is made",
                    fix="pyro.param with a start that is no random number",
                )
            )
        merged = {key: v for one in every for key, v in one.items()}
        for key, (shape, dtype, _) in merged.items():
            if key not in known:
                here = leaves.get(key[1]) if key[0] == "param" else found.others.get(key)
                device = self.group.device if here is None else here.device
                self.entries.append(Entry(key, shape, dtype, device))

    # One vector for each type

    def _number_type(self) -> tuple[torch.dtype, torch.device]:
        is_double = any(e.dtype == torch.float64 for e in self.entries)
        device = self.entries[0].device if self.entries else self.group.device
        return (torch.float64 if is_double else torch.float32), device

    def _type(self, entry: Entry) -> tuple[torch.dtype, torch.device]:
        """In which it is summed: halves as floats, whole numbers as those that decide."""
        if not (entry.dtype.is_floating_point or entry.dtype.is_complex):
            return self._number_type()
        return torch.promote_types(entry.dtype, torch.float32), entry.device

    def _packed(
        self, found: Found, leaves: Mapping[str, torch.Tensor], is_new: bool
    ) -> tuple[Callable[[], torch.Tensor], dict[Any, torch.Tensor]]:
        """The vectors, and what gives the numbers that decide."""
        names = [e.key[1] for e in self.entries if e.key[0] == "param"]
        seen = [float(name in found.params) for name in names]
        have = [float(name in found.params and leaves[name].grad is not None) for name in names]
        flags = [found.failed, found.ended, is_new, found.wants_mark, found.wants_compiled]
        counts = not (found.failed or found.ended)
        weight = found.weight if counts else 0.0
        numbers = [*map(float, flags), weight, weight * found.loss if weight else 0.0, *seen, *have]
        kind, device = self._number_type()
        parts: dict[Any, list[torch.Tensor]] = {(kind, device): []}
        parts[kind, device].append(torch.tensor(numbers, dtype=kind, device=device))
        for entry in self.entries:
            value = self._value(entry, found, leaves) if weight else None
            own_kind, own_device = self._type(entry)
            if value is None:
                size = torch.Size(entry.shape).numel()
                flat = torch.zeros(size, dtype=own_kind, device=own_device)
            else:
                flat = value.detach().to(own_device, own_kind).reshape(-1)
                flat = flat if weight == 1.0 else flat * weight
            parts.setdefault((own_kind, own_device), []).append(flat)
        flats = {key: torch.cat(own) for key, own in parts.items()}
        return lambda: flats[kind, device][: len(numbers)].cpu(), flats

    def _value(
        self, entry: Entry, found: Found, leaves: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        what, name = entry.key
        if what != "param":
            return found.others.get(entry.key)
        return leaves[name].grad if name in found.params else None

    def _unpack(
        self,
        found: Found,
        leaves: Mapping[str, torch.Tensor],
        flats: dict[Any, torch.Tensor],
        told: list[float],
        weight: float,
    ) -> dict[str, torch.Tensor]:
        """Bring the means to their places; returns the leaves that the step depends on."""
        names = [e.key[1] for e in self.entries if e.key[0] == "param"]
        seen = dict(zip(names, told[: len(names)], strict=True))
        have = dict(zip(names, told[len(names) :], strict=True))
        at = dict.fromkeys(flats, 0)
        at[self._number_type()] = HEAD + 2 * len(names)
        for entry in self.entries:
            kind, size = self._type(entry), torch.Size(entry.shape).numel()
            mean = flats[kind][at[kind] : at[kind] + size].div_(weight).reshape(entry.shape)
            at[kind] += size
            what, name = entry.key
            if what == "param":
                leaf = leaves[name]
                leaf.grad = mean.to(leaf.dtype) if have[name] else None
            else:
                whole = not (entry.dtype.is_floating_point or entry.dtype.is_complex)
                found.put(
                    entry.key, (mean.round() if whole else mean).to(entry.device, entry.dtype)
                )
        return {name: leaves[name] for name in names if seen[name]}


def fingerprint(leaves: Mapping[str, torch.Tensor]) -> str:
    """By which processes know that they have the same parameters."""
    real = [torch.view_as_real(p) if p.is_complex() else p for p in leaves.values()]
    return " ".join(float(p.detach().sum(dtype=torch.float64)).hex() for p in real)


def _digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy().data).hexdigest()[:16]
