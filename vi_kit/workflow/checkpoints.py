"""Files from which a fit goes on: written whole or not at all, read without running anything that is in them.

A checkpoint is one `.npz` file: arrays, and one text of JSON that says how they are nested. It is written beside its
place, brought to disk and moved there, so that whenever the process dies there is a whole file. One fit at a time has a
folder: the lock is the operating system's, which lets go of it when a process dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vi_kit.base.errors import CheckpointError, message, whole_number

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FORMAT = "vi_kit checkpoint 1"
TREE = "tree"
NAME = re.compile(r"step-(\d{9})(-\d+)?\.npz")
PATIENCE = 10.0
"""Seconds in which a folder may get free: workers of a DataLoader outlive a fit that was killed by a few."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read, and the fit goes on without it."""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit is saved. If the folder holds checkpoints of the same fit, it goes on from the last.

    Args:
        folder: made if it is not there.
        every: steps between checkpoints.
        keep: how many are kept.
        stop_on_error: whether a checkpoint that cannot be written (a full disk) ends the fit, with an error that has
            what was fitted; if not, there is a warning, and the fit goes on.

    Raises:
        CheckpointError: a folder that cannot be written to, or in which another fit is writing, or checkpoints of
            another fit, before any work.
    """

    folder: str | os.PathLike[str]
    every: int = 1000
    keep: int = 2
    stop_on_error: bool = False

    def __post_init__(self) -> None:
        whole_number("Checkpoint", "every", self.every)
        whole_number("Checkpoint", "keep", self.keep)


@dataclass
class Folder:
    """The checkpoints of one fit.

    Attributes:
        settings: where and how often.
        made_of: what the fit is made of, by name: checkpoints of another are refused.
        warned: whether it was said that none can be written.
        last: the step of the last one.
    """

    settings: Checkpoint
    made_of: Mapping[str, Any]
    warned: bool = False
    last: int = 0
    written: list[Path] = field(default_factory=list)
    lock: int | None = None

    def __post_init__(self) -> None:
        self.path = Path(self.settings.folder)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise _not_written(self.path, error) from error
        self.lock = _locked(self.path)

    def close(self) -> None:
        """Let others write in the folder."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def latest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read; `None` if there is none.

        Raises:
            CheckpointError: it is of another fit.
        """
        files = self._files()
        for i, path in enumerate(files):
            try:
                content = read(path)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
                warnings.warn(
                    f"{path} is no whole checkpoint ({error}); the one before it is used, and this one is left alone",
                    CheckpointWarning,
                    stacklevel=3,
                )
                continue
            self._refuse_another(path, content["made_of"])
            self.written = files[i:][::-1]
            self.last = int(NAME.fullmatch(path.name)[1])  # type: ignore[index]
            return content["state"]
        return None

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write one; then remove those that are too many.

        Raises:
            CheckpointError: it cannot be written, and the fit shall end then.
        """
        path = self._place(step)
        try:
            write(path, {"made_of": self.made_of, "state": state})
        except OSError as error:
            if self.settings.stop_on_error:
                raise _not_written(self.path, error) from error
            if not self.warned:
                self.warned = True
                text = f"{_not_written(self.path, error)}\nthe fit goes on, and tries again"
                warnings.warn(text, CheckpointWarning, stacklevel=4)
            return
        self.written.append(path)
        self.warned, self.last = False, step
        for old in self.written[: -self.settings.keep]:
            with contextlib.suppress(OSError):
                old.unlink()
        self.written = self.written[-self.settings.keep :]

    def _place(self, step: int) -> Path:
        path, num = self.path / f"step-{step:09d}.npz", 0
        while path.exists():
            num += 1
            path = self.path / f"step-{step:09d}-{num}.npz"
        return path

    def _files(self) -> list[Path]:
        """From the newest on."""
        found = [p for p in self.path.iterdir() if NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: (p.name[:14], p.stat().st_mtime_ns), reverse=True)

    def _refuse_another(self, path: Path, theirs: Mapping[str, Any]) -> None:
        own = json.loads(json.dumps(self.made_of, default=str))
        different = [k for k in {**own, **theirs} if own.get(k) != theirs.get(k)]
        if different:
            raise CheckpointError(
                message(
                    f"{path} is a checkpoint of another fit",
                    got="; ".join(f"{k}: {theirs.get(k)!r}" for k in different),
                    expected="; ".join(f"{k}: {own.get(k)!r}" for k in different),
                    fix="the settings of that fit to go on with it, or another folder",
                )
            )


def _locked(path: Path) -> int | None:
    """A handle of a folder, which no other has while it is open; `None` where folders cannot be locked.

    Raises:
        CheckpointError: another has it.
    """
    if fcntl is None:
        return None
    handle, end = os.open(path, os.O_RDONLY), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError as error:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            os.close(handle)
            raise CheckpointError(
                message(
                    f"another fit is writing checkpoints in {str(path)!r}",
                    got="two fits at a time, of this process or another",
                    expected="a folder for each fit",
                    fix="another folder; or wait until the other fit has ended, and this one goes on from there",
                )
            ) from error
        except OSError:  # a file system without locks
            os.close(handle)
            return None


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts, lists, numbers, texts and arrays: wholly, or not at all."""
    arrays: dict[str, np.ndarray] = {}
    tree = json.dumps({"format": FORMAT, **{k: _packed(v, arrays) for k, v in content.items()}})
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **{TREE: np.array(tree)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> dict[str, Any]:
    """What was written.

    Raises:
        ValueError: not a checkpoint of vi_kit.
        OSError, zipfile.BadZipFile, EOFError, KeyError: not a whole file.
    """
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        tree = json.loads(str(file[TREE]))
        if tree.pop("format", None) != FORMAT:
            raise ValueError(f"not in the format {FORMAT!r}")
        return {k: _unpacked(v, file) for k, v in tree.items()}


def _packed(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """As JSON, arrays being put aside."""
    if isinstance(value, Mapping):
        return {"dict": [[_packed(k, arrays), _packed(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(v, arrays) for v in value]}
    if isinstance(value, np.ndarray | np.generic):
        value, key = np.asarray(value), f"a{len(arrays)}"
        native = value.dtype.kind in "biufc"
        # others (bfloat16) are kept as their bytes
        arrays[key] = value if native else np.frombuffer(value.tobytes(), np.uint8)
        return {"array": key, "dtype": value.dtype.name, "shape": list(value.shape)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be in a checkpoint")


def _unpacked(value: Any, file: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array, dtype = file[value["array"]], np.dtype(value["dtype"])
        return array if array.dtype == dtype else array.view(dtype).reshape(value["shape"])
    if "dict" in value:
        return {_key(_unpacked(k, file)): _unpacked(v, file) for k, v in value["dict"]}
    ((kind, items),) = value.items()
    found = [_unpacked(v, file) for v in items]
    return tuple(found) if kind == "tuple" else found


def _key(key: Any) -> Any:
    return tuple(key) if isinstance(key, list) else key


def _not_written(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        message(
            f"a checkpoint cannot be written to {str(path)!r}",
            got=f"{type(error).__name__}: {error}",
            expected="a folder that can be written to, on a disk with room",
            fix="another folder; fit without checkpoint=... keeps everything in memory",
        )
    )
