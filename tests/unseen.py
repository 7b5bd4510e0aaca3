"""Ways by which the values of a tensor leave torch without an operation: each gives them as one of NumPy."""

import copy
import ctypes
import io
import json
import pickle
import re
import warnings

import numpy as np
import torch


def of_text(text):
    """The numbers that the text of a tensor has."""
    shown = re.match(r"[][\d.,e+ \n-]*", re.split(r"tensor\(|Tensor:\n", text)[-1])[0].rstrip(
        ", \n"
    )
    return np.array(json.loads(re.sub(r"\.(?!\d)", ".0", shown)))


def saved(z):
    file = io.BytesIO()
    torch.save(z, file)
    return torch.load(io.BytesIO(file.getvalue())).numpy()


def of_bytes(z):
    found = np.array(z.clone().untyped_storage().tolist(), np.uint8)
    return found.view(f"f{z.element_size()}").reshape(z.shape)


def stored(z):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        return np.array(z.clone().storage().tolist()).reshape(z.shape)


def at_address(z):
    z = z.clone()
    of_type = {4: ctypes.c_float, 8: ctypes.c_double}[z.element_size()]
    return np.array((of_type * z.numel()).from_address(z.data_ptr())).reshape(z.shape)


def applied(z):
    found = []
    z.clone().apply_(lambda x: found.append(x) or x)
    return np.array(found).reshape(z.shape)


def as_sparse(z):
    return z.to_sparse().to_dense().numpy()


WAYS = {
    "array": lambda z: z.numpy(),
    "list": lambda z: np.array(z.tolist()),
    "deep copy": lambda z: copy.deepcopy(z).numpy(),
    "copy": lambda z: copy.copy(z).numpy(),
    "pickle": lambda z: pickle.loads(pickle.dumps(z)).numpy(),
    "save": saved,
    "repr": lambda z: of_text(repr(z)),
    "str": lambda z: of_text(str(z)),
    "format": lambda z: of_text(f"{z}"),
    "dlpack": lambda z: np.from_dlpack(z),
    "bytes": of_bytes,
    "storage": stored,
    "address": at_address,
    "apply": applied,
    "sparse": as_sparse,
}
