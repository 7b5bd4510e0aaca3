"""Which devices take the steps of a fit: rows of data along one axis of a mesh, replicates along another.

Arrays are placed, and the compiler divides the work by where they are: programs do not know of it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.workflow.batches import Rows, Source, Stream
from vi_kit.workflow.processes import Alone, Processes, gone

DATA, PARTICLES = "data", "particles"
AXES = {DATA: "rows of the data", PARTICLES: "replicates (num_samples, num_particles)"}
"""What may be divided, by the name of the mesh's axis."""


def has_rows(x: Any) -> bool:
    """Whether it is an array, of NumPy or JAX or torch, that can be cut."""
    return getattr(x, "ndim", 0) > 0 and hasattr(x, "__array__")


def is_placed(x: Any) -> bool:
    """Whether a user has placed it on several devices."""
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


@dataclass(frozen=True)
class Devices:
    """Of one fit.

    Attributes:
        mesh: all of them; `None` for the one that JAX takes.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh: Any) -> Devices:
        """What a user gave, checked.

        Raises:
            ObjectiveError: no mesh, one with other axes, or one that lacks a process.
        """
        if mesh is None:
            return cls()
        if not isinstance(mesh, Mesh):
            raise _refused(
                f"mesh is a {type(mesh).__name__}",
                "a jax.sharding.Mesh of devices",
                f'jax.sharding.Mesh(jax.devices(), ("{DATA}",))',
            )
        strangers = [name for name in mesh.axis_names if name not in AXES]
        if strangers:
            raise _refused(
                f"axes {', '.join(map(repr, strangers))}",
                "; ".join(f"{name!r}, along which are {what}" for name, what in AXES.items()),
                f'jax.sharding.Mesh(devices, ("{DATA}",)), or ("{DATA}", "{PARTICLES}") of two dims',
            )
        there = {d.process_index for d in mesh.devices.flat}
        if len(there) not in (1, jax.process_count()) or jax.process_index() not in there:
            raise _refused(
                f"a mesh with devices of processes {sorted(there)}, in process {jax.process_index()}",
                f"devices of all {jax.process_count()} processes, or of this one alone",
                "jax.devices(), or jax.local_devices()",
            )
        # programs are written for axes that the compiler sees to, which those of jax.make_mesh are not
        return cls(Mesh(mesh.devices, mesh.axis_names))

    def count(self, axis: str) -> int:
        """Devices along an axis."""
        return 1 if self.mesh is None else self.mesh.shape.get(axis, 1)

    def has(self, axis: str) -> bool:
        return self.mesh is not None and axis in self.mesh.axis_names

    @property
    def num_processes(self) -> int:
        found = [] if self.mesh is None else [d.process_index for d in self.mesh.devices.flat]
        return max(1, len(set(found)))

    @property
    def processes(self) -> Processes:
        """That take the steps together."""
        return Alone() if self.num_processes == 1 else Controllers()

    # Where arrays are

    def adopted(self, tree: Any) -> Any:
        """What a user has placed stays there, with axes that the compiler sees to."""

        def one(x: Any) -> Any:
            if self.mesh is None or not is_placed(x) or not isinstance(x.sharding, NamedSharding):
                return x
            names = [
                n
                for part in x.sharding.spec
                for n in (part if isinstance(part, tuple) else (part,))
            ]
            same = x.sharding.device_set == set(self.mesh.devices.flat)
            if not same or any(n is not None and n not in self.mesh.axis_names for n in names):
                return x
            return jax.device_put(x, NamedSharding(self.mesh, x.sharding.spec))

        return jax.tree.map(one, tree)

    def everywhere(self, tree: Any) -> Any:
        """Whole on each device."""
        return jax.tree.map(lambda x: x if is_placed(x) else self._put(x, P()), tree)

    def rows(self, x: Any) -> Any:
        """An array whose rows are divided."""
        return x if is_placed(x) else self._put(x, self.spec(x.shape[0]))

    def spec(self, num_rows: int, before: int = 0) -> Any:
        """That of an array with so many rows, which are its dim `before`. Those that cannot be divided are whole."""
        divides = self.has(DATA) and num_rows % self.count(DATA) == 0
        return P(*[None] * before, DATA) if divides else P()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """What they raise where another process is gone, or one does not answer, is told as such.

        Raises:
            ProcessError: one is.
        """
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            is_of_others = str(error).startswith(OF_OTHERS) or "nccl" in str(error).lower()
            if self.num_processes == 1 or not is_of_others:
                raise
            raise gone(self.processes, error, WAITS) from error

    def _put(self, x: Any, spec: Any) -> Any:
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        if self.mesh is None:
            return jnp.asarray(x)
        sharding = NamedSharding(self.mesh, spec)
        if self.num_processes == 1:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        x = x.astype(jax.dtypes.canonicalize_dtype(x.dtype), copy=False)
        return jax.make_array_from_process_local_data(sharding, x, x.shape)

    def made(self, shape: tuple[int, ...], spec: Any, part: Callable[..., np.ndarray]) -> Any:
        """An array of which each device asks for its own part, by slices."""
        if self.mesh is None:
            return part(*[slice(None)] * len(shape))
        known = cache(lambda key: part(*[slice(*k) for k in key]))  # devices may have the same one

        def of(index: Any) -> np.ndarray:
            found = known(tuple((s.start, s.stop) for s in index))
            return found.astype(jax.dtypes.canonicalize_dtype(found.dtype), copy=False)

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, spec), of)

    def here(self, tree: Any) -> Any:
        """What is on several devices, or processes, as ordinary arrays of this one."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda x: jnp.asarray(to_host(x)) if is_placed(x) else x, tree)

    # In a compiled step

    def compiled(self, fn: Callable) -> Callable:
        """A function whose results are whole on each device."""
        if self.mesh is None:
            return jax.jit(fn)
        return jax.jit(fn, out_shardings=NamedSharding(self.mesh, P()))

    def cut(self, tree: Any, num_rows: int) -> Any:
        """Rows that a step has taken of data on the devices."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, self.spec(num_rows))
        return jax.tree.map(
            lambda x: lax.with_sharding_constraint(x, sharding) if has_rows(x) else x, tree
        )

    def divides(self, num_replicates: int) -> bool:
        return self.has(PARTICLES) and num_replicates % self.count(PARTICLES) == 0

    def spread(self, tree: Any) -> Any:
        """Replicates, along the first axis of arrays, on devices of their own."""
        mesh = self.mesh
        assert mesh is not None

        def one(x: Any) -> Any:
            spec = P(PARTICLES, *[P.UNCONSTRAINED] * (x.ndim - 1))
            return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

        return jax.tree.map(one, tree)

    # What can be divided

    def check(self, source: Source) -> None:
        """Refuse data that the devices cannot share.

        Raises:
            ObjectiveError: the mesh has an axis for rows, and a step has none, of several lengths, or too few or too
                many of them.
        """
        if not self.has(DATA):
            return
        num = self.count(DATA)
        if isinstance(source, Rows):
            found, what, fix = (
                [source.batch_size],
                "batch_size",
                f"batch_size={_near(source.batch_size, num)}",
            )
        elif isinstance(source, Stream):
            args, kwargs = source.example
            found = [len(x) for x in jax.tree.leaves((args, kwargs)) if has_rows(x)][:1]
            what, fix = "rows of a minibatch", "minibatches of such a size"
        else:
            arrays = [x for x in jax.tree.leaves(source.example[0]) if has_rows(x)]
            found = [len(x) for x in arrays if not is_placed(x)]
            if arrays and not found:
                return
            what, fix = "rows of the positional arguments", "batch_size=..., or fewer devices"
        if len(set(found)) != 1:
            raise _refused(
                f"axis {DATA!r}, and positional arrays of {found or 'no'} rows",
                "positional arrays with a row for each datum; what is not data by keyword",
                f"fit(model, guide, x, y, mesh=..., other=...); or a mesh without the axis {DATA!r}",
            )
        if found[0] % num:
            raise _refused(
                f"{what}: {found[0]}, for {num} devices along axis {DATA!r}",
                f"a multiple of {num}",
                fix,
            )


ONE = Devices()
"""The device that JAX takes."""


WAITS = "jax.distributed.initialize(heartbeat_timeout_seconds=...) says when one that is silent counts as gone"

OF_OTHERS = ("UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED")
"""What the error of a step begins with that waited for another process in vain."""


@dataclass(frozen=True)
class Controllers:
    """The processes of `jax.distributed`. See `vi_kit.workflow.processes.Processes`."""

    shares_rows: bool = False

    @property
    def rank(self) -> int:
        return jax.process_index()

    @property
    def count(self) -> int:
        return jax.process_count()

    def gathered(self, value: Any) -> list[Any]:
        try:
            return self._gathered(value)
        except jax.errors.JaxRuntimeError as error:
            raise gone(self, error, WAITS) from error

    def _gathered(self, value: Any) -> list[Any]:
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = _gathered(np.array([own.size], np.int32)).ravel()
        longest = 1 << int(sizes.max() - 1).bit_length()  # few lengths, each of which is compiled
        rows = _gathered(np.pad(own, (0, longest - own.size)))
        return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]

    def first(self, value: Any) -> Any:
        return self.gathered(None if self.rank else value)[0]


def _gathered(x: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(x))


def to_host(x: Any) -> np.ndarray:
    """The whole of an array, in each process."""
    if not x.is_fully_addressable and not x.is_fully_replicated:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)


def of_first(tree: Any) -> Any:
    """What the first process has, of arrays that are whole on each device."""
    return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


def fingerprint(tree: Any) -> str:
    """By which processes know that they have the same, of arrays that are whole on each device."""
    own = [x.addressable_data(0) for x in jax.tree.leaves(tree)]
    return " ".join(float(x).hex() for x in _sums(own))


@jax.jit
def _sums(arrays: list[Any]) -> list[Any]:
    return [jnp.sum(x) for x in arrays]


def no_replicates(devices: Devices, sizes: Mapping[str, int]) -> ObjectiveError:
    """The error about an axis of a mesh along which nothing is divided."""
    num = devices.count(PARTICLES)
    there = ", ".join(f"{size} ({name})" for name, size in sizes.items())
    return _refused(
        f"{num} devices along axis {PARTICLES!r}, and replicates: {there or 'none'}",
        f"a multiple of {num} replicates, mapped (vectorize is not False)",
        f"num_samples={num}, vi.iwae(num_particles={num}), or a mesh without this axis",
    )


def _near(size: int, num: int) -> int:
    return max(num, size // num * num)


def _refused(got: str, expected: str, fix: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            "fit: the devices of mesh cannot share the work", got=got, expected=expected, fix=fix
        )
    )
