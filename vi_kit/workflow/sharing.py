"""Which rows of the data each of several processes has, and whether all of them mean the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.workflow.batches import Rows, Share, Source, Stream, all_lengths
from vi_kit.workflow.processes import Processes, refuse_differences

MOST_COMPARED = 1000
"""Rows by which data are known to be the same."""


def share_out(
    source: Source,
    processes: Processes,
    *,
    lengths: Callable[[Any], list[int]],
    digest: Callable[[list[Any]], str],
) -> list[str]:
    """Give each process its rows; returns how, in words.

    Rows of arrays are cut, and so are minibatches of an iterable that yields the same in each process. Of one that
    yields others (a `DistributedSampler`) each process has its own. All data at once is for each process as a whole.

    Args:
        lengths: of the arrays in an argument, along their first axis.
        digest: of the content of some arguments.

    Raises:
        ObjectiveError: the data are not the same in each process, or how many there are is not known.
    """
    if processes.count == 1:
        return []
    if not processes.shares_rows:
        _refuse_other_data(processes, source, digest(_compared(source)))
        return []
    share = Share(processes.rank, processes.count)
    if isinstance(source, Rows):
        _refuse_other_data(processes, source, digest(_compared(source)))
        if source.batch_size < processes.count:
            raise _too_few(source.batch_size, processes.count, f"batch_size={source.batch_size}")
        source.share = share
        return [f"each of {processes.count} processes has its share of the rows of a minibatch"]
    if isinstance(source, Stream):
        _refuse_other_data(processes, source, digest([*source.args, *source.kwargs.values()]))
        return [_of_stream(source, processes, share, lengths, digest)]
    _refuse_other_data(processes, source, digest(_compared(source)))
    return [f"each of {processes.count} processes has all data, and draws of its own"]


def _compared(source: Source) -> list[Any]:
    """Of the data, by which they are known to be the same: some rows, or the first minibatch, or all."""
    if isinstance(source, Rows):
        args, kwargs = source.at(np.arange(min(source.batch_size, MOST_COMPARED)))
    else:
        args, kwargs = source.everything
    return [*args, *kwargs.values()]


def _of_stream(
    source: Stream,
    processes: Processes,
    share: Share,
    lengths: Callable[[Any], list[int]],
    digest: Callable[[list[Any]], str],
) -> str:
    num = next(iter(all_lengths(source.raw, lengths)), 0)
    replicas = int(getattr(getattr(source.batches, "sampler", None), "num_replicas", 0))
    every = processes.gathered((digest([source.raw]), num, replicas))
    _, usual, _ = every[0]
    if any(one[2] not in (0, processes.count) or one[2] != every[0][2] for one in every):
        raise ObjectiveError(
            message(
                "fit: the sampler of the batches is for other processes",
                got=f"num_replicas={[one[2] for one in every]} in {processes.count} processes",
                expected=f"num_replicas={processes.count} in each",
                fix="DistributedSampler(dataset, num_replicas=group.size(), rank=group.rank())",
            )
        )
    if not replicas and len({one[0] for one in every}) == 1:
        if num < processes.count:
            raise _too_few(num, processes.count, f"batches of {num} rows")
        source.give(share, num / processes.count)
        return f"each of {processes.count} processes has its share of the rows of a minibatch"
    if not replicas and source.is_counted:
        raise ObjectiveError(
            message(
                "fit: each process has batches of its own, and how many rows there are in all is not known",
                got="first minibatches that differ, and no DistributedSampler",
                expected="the number of rows that all processes have together",
                fix="data_size=..., or a DistributedSampler",
            )
        )
    source.give(Share(), usual or None)
    return f"each of {processes.count} processes has minibatches of its own"


def _refuse_other_data(processes: Processes, source: Source, found: str) -> None:
    own = {"kind": type(source).__name__, "rows": str(source.num_rows), "content": found}
    if isinstance(source, Rows):
        own["batch_size"] = str(source.batch_size)
    if isinstance(source, Stream):
        del own["rows"]
    fix = (
        "all data in each process, of which each takes its share; or batches=... with a DistributedSampler"
        if processes.shares_rows
        else "all data in each process; or arrays of jax.make_array_from_process_local_data"
    )
    refuse_differences(processes, "the data", own, fix)


def _too_few(num: int, count: int, got: str) -> ObjectiveError:
    return ObjectiveError(
        message(
            "fit: a minibatch has fewer rows than there are processes",
            got=f"{got}, {count} processes",
            expected=f"at least {count} rows",
            fix=f"batch_size={count} or more"
            if num
            else "batches with arrays of a row for each datum",
        )
    )
