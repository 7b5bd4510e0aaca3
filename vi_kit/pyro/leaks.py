"""What leaks: how values leave the sight of torch's operations, or of provenance. The one table that every analysis of
a program reads (moments, which are followed call by call, refuse what they do not know).

Calls are those that `__torch_function__` sees, operations those of ATen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.ops.provenance import ProvenanceTensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

NUMBER, ARRAY = "a value that became a Python number", "a value that became an array of NumPy"
UNSEEN = "a value that left torch"

TELLING: Mapping[Any, str] = {
    torch.Tensor.tolist: NUMBER,
    torch.Tensor.numpy: ARRAY,
    torch.Tensor.__array__: ARRAY,
    **{
        getattr(torch.Tensor, name): UNSEEN
        for name in "__repr__ __format__ __reduce_ex__ __dlpack__ storage untyped_storage"
        " data_ptr const_data_ptr share_memory_ apply_ map_ map2_".split()
    },
    torch.Tensor.__cuda_array_interface__.__get__: UNSEEN,  # type: ignore[attr-defined]
}
"""Calls that bring values out of the reach of torch's operations: as what."""

CHANGED = tuple(
    getattr(torch.Tensor, name)
    for name in "tolist numpy __array__ __repr__ __format__ __reduce_ex__ __dlpack__".split()
)
"""Those of `TELLING` that may be given another tensor."""

DETACHING = (
    torch.detach,
    torch.Tensor.detach,
    torch.Tensor.detach_,
    torch.Tensor.data.__get__,  # type: ignore[attr-defined]
)
"""Calls after which a value has no derivative."""

SETTING = torch.Tensor.data.__set__  # type: ignore[attr-defined]
"""The call that gives a tensor the memory of another."""

SHAPES = (torch.Tensor.size, torch.Tensor.shape.__get__)  # type: ignore[attr-defined]
"""Calls that give the shape of a tensor."""

COUNTED = (torch.Tensor.__len__, torch.Tensor.numel, torch.Tensor.nelement, torch.numel)
"""Calls that count its elements."""

LISTED = (torch.tensor, torch.as_tensor)
"""Calls that make a tensor of a list, of which they read each element."""

MAKERS = frozenset(
    "tensor as_tensor asarray full full_like new_tensor new_full scalar_tensor".split()
)
"""Make a tensor of what they are given, without its provenance."""

LIKE = frozenset(("full_like", "new_tensor", "new_full"))
"""Take no more than shape and type of their first argument."""

CASTS = frozenset(("as_tensor", "asarray"))
"""Make a tensor of a tensor."""

SHAPED_BY_VALUES = frozenset(
    "nonzero argwhere masked_select unique unique_consecutive bincount repeat_interleave"
    " histc histogram".split()
)

INERT = frozenset(
    "__get__ __len__ __hash__ __iter__ size dim ndimension numel nelement element_size"
    " stride storage_offset is_floating_point is_complex is_signed is_contiguous get_device"
    " is_cuda has_names is_conj is_neg is_inference type is_set_to requires_grad_ backward"
    " register_hook retain_grad result_type can_cast broadcast_tensors split unbind chunk".split()
)
"""Tell nothing of values, only of shapes and types."""


def listed(func: Any, args: Any) -> list[torch.Tensor]:
    """The tensors of which a call makes one by reading them."""
    if func not in LISTED or not args or not isinstance(args[0], list | tuple):
        return []
    return tensors_in(args[0])


def writes_in_place(name: str) -> bool:
    """Whether a call writes into its first argument."""
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def call_tells(name: str, args: Any, result: Any) -> bool:
    """Whether the result of a call, or its shape, holds values without their provenance."""
    if name in SHAPED_BY_VALUES or (name == "where" and len(args) == 1):
        return True
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(i, ProvenanceTensor) and i.dtype == torch.bool for i in index)
    return not isinstance(result, torch.Tensor | tuple | list | type(None))


def tells(func: Any, args: Any, result: Any) -> bool:
    """Whether the program is told a value by an operation: as a number, by how large a result is, or as numbers out of
    reach."""
    if tells_number(result) or any(map(is_apart, tensors_in(result))):
        return True
    if func.overloadpacket is aten.index:
        return any(x.dtype in (torch.bool, torch.uint8) for x in tensors_in(args[1:2]))
    return torch.Tag.dynamic_output_shape in func.tags


def tells_number(result: Any) -> bool:
    """Whether something that an operation made is no tensor."""
    if isinstance(result, torch.Tensor):  # soon known of almost all
        return False
    return any(not isinstance(x, torch.Tensor | type(None)) for x in tree_leaves(result))


def is_apart(value: torch.Tensor) -> bool:
    """Whether a tensor, as a sparse one, has no memory to be known by, nor can be marked."""
    return value.layout is not torch.strided


def tensors_in(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
