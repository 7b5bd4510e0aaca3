"""Along which dim of an array the elements of a plate lie, read off the operations of torch and of a jaxpr."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from jax.scipy.linalg import solve_triangular
from torch.distributions import Multinomial, MultivariateNormal
from torch.nn import functional as F

from tests.unseen import WAYS
from vi_kit.analysis.mixing import NOTHING, Along, along
from vi_kit.base.named import PLATE, Axis
from vi_kit.numpyro.mixing import places
from vi_kit.pyro.mixing import Mixing
from vi_kit.pyro.reader import Record

N = 3
ROWS = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.3], [1.5, 2.5]]).double()


def in_place(z):
    out = torch.zeros(N, 2)
    out[:, 1] = z[:, 0]
    out[:, 0].copy_(z[:, 1])
    return out * 2


def in_place_elsewhere(z):
    out = torch.zeros(2 * N)
    out[1 : N + 1] = z[:, 0]
    return out[:N]


def normed(z):
    return F.batch_norm(z, torch.zeros(2), torch.ones(2), training=True)


def bytes_of_written(z):
    out = torch.zeros(N, 2)
    out[:] = z
    return torch.empty(0, dtype=torch.uint8).set_(out.untyped_storage(), 0, (4 * N, 2))


def written_bytes(z):
    out = torch.zeros(N, 2)
    out[0] = z[0]
    torch.empty(0, dtype=torch.uint8).set_(out.untyped_storage(), 4, (4,)).copy_(z.flatten()[:4])
    return out


def scan(z):
    total = z[:, 0]
    for _ in range(2):
        total = torch.tanh(total + z[:, 1])
    return total


def changed_after_use(z):
    """What an operation was given is another thing when the record is read."""
    order, turned, replaced = np.array([0, 1]), z.T.clone(), z.T.clone()
    made = [turned[:, torch.from_numpy(order)], turned + 0.0, replaced + 0.0]
    order[:] = 0
    turned.t_()
    made.append(replaced + 0.0)
    replaced.data = torch.zeros(N)
    return torch.cat(made, 1)


def zero_where_negative(z):
    z = z.clone()
    z[z < 0] = 0.0
    return z


def attend(z):
    return F.scaled_dot_product_attention(z, z, z)


def written_one_by_one(z):
    out = torch.zeros(N)
    for i in range(N):
        out[i] = z[i, 0] + 1.0
    out += 1.0
    return out


ALL = torch.arange(3)[:, None].expand(3, 2)
ORDER = torch.tensor([2, 0, 1])
WEIGHT = torch.linspace(-1.0, 1.0, 6).double().reshape(2, 3)

# of `z` of shape (3, 2), whose rows are the elements of a plate
CASES = {
    "pointwise": (lambda z: torch.lgamma(z + 3.0) * torch.where(z > 0, z, 1.0), 0),
    "broadcast": (lambda z: z[:, :1] + torch.zeros(4, 1, 1), 1),
    "outer": (lambda z: z[:, :1] * z[:, 0], None),
    "sum of rows": (lambda z: z.sum(-1), 0),
    "sum of a column": (lambda z: z.sum(0), None),
    "sum": (lambda z: z + z.sum(), None),
    "kept": (lambda z: z - z.mean(1, keepdim=True), 0),
    "centred": (lambda z: z - z.mean(0, keepdim=True), None),
    "maximum of rows": (lambda z: z.max(-1).values, 0),
    "maximum": (lambda z: z - z.max(), None),
    "softmax of rows": (lambda z: z.softmax(-1), 0),
    "softmax": (lambda z: z.softmax(0), None),
    "logsumexp": (lambda z: z.logsumexp(1), 0),
    "cumsum": (lambda z: z.cumsum(0), None),
    "sort of rows": (lambda z: z.sort(-1).values, 0),
    "roll": (lambda z: z.roll(1, 0), (0, 3, 1, 2)),
    "roll of rows": (lambda z: z.roll(1, -1), 0),
    "flip": (lambda z: z.flip(0), (0, 3, 2, 1)),
    "transposed": (lambda z: z.T, 1),
    "permuted": (lambda z: z.expand(4, N, 2).permute(2, 1, 0), 1),
    "moved": (lambda z: z[None, None].movedim(2, 0), 0),
    "flattened": (lambda z: z.reshape(-1), (0, 1, 1, 2, 2, 3, 3)),
    "unflattened": (lambda z: z.reshape(N, 2, 1).reshape(N, -1), 0),
    "merged": (lambda z: z.expand(2, N, 2).reshape(2 * N, 2), (0, 1, 2, 3, 1, 2, 3)),
    "merged and parted": (lambda z: (z.expand(4, N, 2).reshape(-1, 2) @ WEIGHT).view(4, N, 3), 1),
    "merged in another order": (lambda z: z.expand(4, N, 2).reshape(-1, 2).view(N, 4, 2), None),
    "merged and met": (
        lambda z: z.reshape(-1) * z.expand(2, N, 2).reshape(2, -1),
        (1, 1, 1, 2, 2, 3, 3),
    ),
    "merged with others": (lambda z: z.reshape(-1)[:, None] * z[:, 0], None),
    "squeezed": (lambda z: z[:, :1].unsqueeze(0).squeeze(), 0),
    "column": (lambda z: z[..., 0], 0),
    "element": (lambda z: z + z[0], None),
    "slices": (lambda z: torch.cat([z[1:], z[:1]]), (0, 2, 3, 1)),
    "every second": (lambda z: z[::2], (0, 1, 3)),
    "joined": (lambda z: torch.cat([z, ROWS[:N]], -1), 0),
    "stacked": (lambda z: torch.stack([z, ROWS[:N]], 0), 1),
    "unbound": (lambda z: torch.stack(z.unbind(-1), 1), 0),
    "split": (lambda z: z.split(1, -1)[1], 0),
    "linear": (lambda z: F.linear(z, WEIGHT.T, torch.ones(3)), 0),
    "product": (lambda z: z @ WEIGHT, 0),
    "product from the left": (lambda z: WEIGHT @ z, None),
    "product of vectors": (lambda z: WEIGHT @ z[:, 0], None),
    "gram": (lambda z: z @ z.T, None),
    "batches": (lambda z: torch.bmm(z[:, None], z[:, :, None]), 0),
    "sum of products": (lambda z: torch.einsum("ni,ij->nj", z, WEIGHT), 0),
    "mixed products": (lambda z: torch.einsum("ni,nj->ij", z, z), None),
    "matrix and vector": (lambda z: (z[:, :, None] * WEIGHT) @ ORDER.double(), 0),
    "embedding": (lambda z: F.embedding((z[:, 0] > 0).long(), ROWS), 0),
    "rows of a table": (lambda z: ROWS[(z > 0).long()], 0),
    "columns of a table": (lambda z: ROWS[:, (z[:, 0] > 0).long()], 1),
    "entries of a table": (lambda z: ROWS[(z[:, 0] > 0).long(), (z[:, 1] > 0).long()], 0),
    "own entries": (lambda z: z[torch.arange(N), (z[:, 0] > 0).long()], 0),
    "own entries of more": (lambda z: z[torch.arange(N)[:, None], (z > 0).long()], 0),
    "other entries": (lambda z: z[ORDER, (z[:, 0] > 0).long()], None),
    "in another order": (lambda z: z[ORDER], (0, 3, 1, 2)),
    "columns in another order": (lambda z: z[:, [1, 0]], 0),
    "chosen rows": (lambda z: z[z[:, 0] > 0.1], None),
    "gathered": (lambda z: z.gather(-1, (z[:, :1] > 0).long()), 0),
    "gathered rows": (lambda z: z.gather(0, (z[:, :1] > 0).long()), None),
    "selected": (lambda z: z.index_select(1, ORDER[1:]), 0),
    "selected rows": (lambda z: z.index_select(0, ORDER), (0, 3, 1, 2)),
    "one hot": (lambda z: F.one_hot((z[:, 0] > 0).long(), 3) * 1.0, 0),
    "scattered": (lambda z: torch.zeros(N, 4).scatter(-1, (z > 0).long(), z), 0),
    "scattered rows": (lambda z: torch.zeros(4, 2).scatter_add(0, (z > 0).long(), z), None),
    "padded": (lambda z: F.pad(z, (1, 0)), 0),
    "shifted": (lambda z: F.pad(z, (0, 0, 1, -1), value=7.0), (0, 0, 1, 2)),
    "repeated": (lambda z: z.repeat(2, 1, 1), 1),
    "tiled": (lambda z: z.repeat(2, 1), (0, 1, 2, 3, 1, 2, 3)),
    "triangle": (lambda z: torch.linalg.cholesky(torch.eye(2) + z[:, :, None] * z[:, None]), 0),
    "solved": (lambda z: torch.linalg.solve(torch.eye(2) + z[:, :, None] ** 2, ROWS[:2]), 0),
    "determinant": (lambda z: torch.linalg.slogdet(torch.eye(2) + z[:, :, None] ** 2)[1], 0),
    "columns solved": (lambda z: torch.linalg.solve(1 + torch.eye(2), z.T).T, 0),
    "rows solved": (lambda z: torch.linalg.solve(torch.eye(3) + 1, z), None),
    "matrix and columns solved": (
        lambda z: torch.linalg.solve(torch.eye(2) + z[:, :, None] ** 2, z.T),
        None,
    ),
    "normal": (lambda z: MultivariateNormal(z, 1 + torch.eye(2)).log_prob(ROWS[0]), 0),
    "counts": (lambda z: Multinomial(3, logits=z).log_prob(torch.tensor([1.0, 2.0])), 0),
    "recurrent": (lambda z: (torch.manual_seed(0), torch.nn.GRUCell(2, 4)(z))[1], 0),
    "attention": (lambda z: attend(z[:, None] * ROWS), 0),
    "attention to others": (lambda z: attend(z[None]), None),
    "masked": (lambda z: zero_where_negative(z), 0),
    "inverse": (lambda z: torch.linalg.inv(torch.eye(3) + z[:, :1] * z[:, 0] ** 2), None),
    "layer norm": (lambda z: F.layer_norm(z, (2,)), 0),
    "layer norm of all": (lambda z: F.layer_norm(z, (N, 2)), None),
    "batch norm": (normed, None),
    "batch norm of kept": (lambda z: F.batch_norm(z, torch.zeros(2), torch.ones(2)), 0),
    "convolution": (lambda z: F.conv1d(z[:, None], WEIGHT[:, None, :2]), 0),
    "convolution of rows": (lambda z: F.conv1d(z.T[:, None], WEIGHT[:, None, :2]), None),
    "dropout": (lambda z: F.dropout(z, 0.5), 0),
    "loss": (lambda z: F.binary_cross_entropy_with_logits(z, z, reduction="none"), 0),
    "mean loss": (lambda z: F.binary_cross_entropy_with_logits(z, z), None),
    "cross entropy": (lambda z: F.cross_entropy(z, ORDER % 2, reduction="none"), 0),
    "in place": (in_place, 0),
    "changed after use": (changed_after_use, (1, 1, 2, *[1, 2, 3] * 3)),
    "in place elsewhere": (in_place_elsewhere, (0, 0, 1, 2)),
    "norm": (lambda z: z.norm(dim=-1), 0),
    "one by one": (lambda z: torch.stack([z[i].sum() for i in range(N)]), 0),
    "one by one in another order": (lambda z: torch.stack([z[i] for i in (1, 2, 0)]), (0, 2, 3, 1)),
    "there and back": (lambda z: z.flip(0).flip(0), 0),
    "neighbours": (lambda z: torch.stack([z[i] * z[i - 1] for i in range(N)]), None),
    "parts": (lambda z: torch.cat([z[:1] ** 2, z[1:]]), 0),
    "written one by one": (written_one_by_one, 0),
    "scattered by one": (lambda z: torch.zeros(N, 2).scatter(0, ALL, z), 0),
    "filled": (lambda z: z.index_fill(1, ORDER[1:2], 5.0), 0),
    "long memory": (lambda z: torch.nn.LSTM(2, 4, batch_first=True)(z[:, None])[0].detach(), 0),
    "norm of all": (lambda z: z / z.norm(), None),
    "steps": (scan, 0),
    "searched": (lambda z: torch.bucketize(z, ROWS[:, 0].sort().values) * 1.0, 0),
    "mapped": (lambda z: torch.vmap(lambda row: row.flip(0) * row.sum())(z), 0),
    "mapped columns": (lambda z: torch.vmap(lambda c: c * c.sum(), 1, 1)(z), None),
    "transform": (lambda z: torch.fft.rfft(z, dim=-1).abs(), 0),
    "transform of columns": (lambda z: torch.fft.rfft(z, dim=0).abs(), None),
    "pattern": (lambda z: (z > 0).eq(torch.tensor([[True], [False], [True]])).all(), None),
    "deep copy": (copy.deepcopy, 0),
    "deep copies": (lambda z: copy.deepcopy([z, z.T])[1], 1),
    "same memory": (lambda z: torch.empty(0).set_(z), 0),
    "part of memory": (lambda z: torch.empty(0).set_(z.untyped_storage(), 2, (2,)), None),
    "its bytes": (lambda z: z.view(torch.uint8), None),
    "bytes of what is written": (bytes_of_written, None),
    "bytes that are written": (written_bytes, None),
    "shapes only": (lambda z: torch.zeros_like(z) + z.new_ones(N, 2), "nothing"),
}


def marked_reader(elements, *arguments):
    reader = Mixing(Record(), (arguments, {}))
    reader.mark(elements, {Axis(PLATE, 1, "rows", N): 0})
    return reader


def read(fn, z):
    elements = torch.zeros(N, dtype=torch.bool)
    reader = marked_reader(elements)
    with reader.record.modes():
        marked = z + 0.0 * elements[:, None]
        made = fn(marked)
    return reader.places(made).get(0, NOTHING), made


def as_place(expected):
    if expected is None:
        return None
    if isinstance(expected, tuple):
        return Along(expected[0], expected[1:])
    return along(expected, range(1, N + 1))


def check_slices(place, made, others):
    """That other values of one row change nothing but what is made of it."""
    for row, other in enumerate(others):
        changed = np.moveaxis(np.asarray(other != made), place.dim, 0)
        changed = changed.reshape(len(place.elements), -1).any(-1)
        assert not changed[np.array(place.elements) != row + 1].any()


@pytest.mark.parametrize("name", CASES)
def test_operations(name):
    fn, expected = CASES[name]
    z = torch.tensor([[0.3, -0.7], [1.2, 0.4], [-0.5, 0.9]])
    torch.manual_seed(0)
    found, made = read(fn, z)
    if expected == "nothing":
        assert found == NOTHING
        return
    assert found == as_place(expected)
    if found is None or name == "dropout":
        return
    others = []
    for row in range(N):
        other = z.clone()
        other[row] = torch.tensor([2.3, -1.1])
        torch.manual_seed(0)
        others.append(fn(other))
    check_slices(found, made, others)


TOLD = {
    **{name: lambda z, way=way: torch.tensor(way(z)) for name, way in WAYS.items()},
    "a number": lambda z: float(z[0, 0]) * z,
    "a branch": lambda z: z if z.sum() > 0 else 2 * z,
    "how many": lambda z: z + len(z.nonzero()) + (z[z > 0.5]).numel(),
    "how many kinds": lambda z: z + F.one_hot((z[:, 0] > 0).long()).shape[-1],
    "whether they are alike": lambda z: z if torch.allclose(z, z.flip(0)) else 2 * z,
    "whether all are": lambda z: z if bool((z == 1.0).all()) else 2 * z,
}


@pytest.mark.parametrize("name", TOLD)
def test_what_the_program_is_told(name):
    assert read(TOLD[name], torch.ones(N, 2))[0] is None


def test_what_arguments_say_may_change():
    elements, order = torch.zeros(N, dtype=torch.bool), torch.arange(N)
    whole = along(0, range(1, N + 1))
    reader = marked_reader(elements, order)
    with reader.record.modes():
        merged = elements[:, None].expand(N, 4).reshape(-1).view(N, 4)[:, 0]
        order.tolist()
    assert reader.places(merged)[0] == whole  # what is told of arguments is no matter
    reader = marked_reader(elements, order)
    with reader.record.modes():
        by_argument, own = elements[order], elements[torch.arange(N)]
        parts = torch.stack([elements[i] for i in range(N)])
    assert reader.places(by_argument)[0] is None
    assert reader.places(own)[0] == reader.places(parts)[0] == whole
    with reader.record.modes():
        order.tolist()
    assert reader.places(parts)[0] is None  # but where elements are taken apart


TABLE = np.linspace(-1.0, 1.0, 6).reshape(2, 3)

OF_JAX = {
    "pointwise": (lambda z: jnp.where(z > 0, jax.scipy.special.gammaln(z + 3.0), z), 0),
    "sum of rows": (lambda z: z.sum(-1), 0),
    "centred": (lambda z: z - z.mean(0), None),
    "outer": (lambda z: z[:, :1] * z[:, 0], None),
    "softmax": (lambda z: jax.nn.softmax(z, 0), None),
    "sort": (lambda z: jnp.sort(z, 0), None),
    "cumulative": (lambda z: jnp.cumsum(z, 0), None),
    "reversed": (lambda z: z[::-1], (0, 3, 2, 1)),
    "roll": (lambda z: jnp.roll(z, 1, 0), (0, 3, 1, 2)),
    "element": (lambda z: z + z[0], None),
    "column": (lambda z: z[:, 0], 0),
    "transposed": (lambda z: z.T, 1),
    "product": (lambda z: z @ TABLE, 0),
    "product from the left": (lambda z: TABLE @ z, None),
    "flattened": (lambda z: z.reshape(-1), (0, 1, 1, 2, 2, 3, 3)),
    "joined": (lambda z: jnp.concatenate([z, z], -1), 0),
    "padded": (lambda z: jnp.pad(z, ((0, 0), (1, 0))), 0),
    "written": (lambda z: z.at[:, 0].set(z[:, 1] ** 2), 0),
    "added": (lambda z: jnp.zeros((N, 4)).at[:, 1:3].add(z), 0),
    "rows written": (lambda z: z.at[0].set(z[1]), (0, 2, 2, 3)),
    "written elsewhere": (lambda z: jnp.zeros((4, 2)).at[1:].set(z), (0, 0, 1, 2, 3)),
    "rows of a table": (lambda z: jnp.asarray(TABLE)[(z[:, 0] > 0).astype(int)], 0),
    "gathered": (lambda z: jnp.take_along_axis(z, (z[:, :1] > 0).astype(int), -1), 0),
    "in another order": (lambda z: z[jnp.array([2, 0, 1])], (0, 3, 1, 2)),
    "columns solved": (lambda z: solve_triangular(jnp.eye(2) + TABLE[:, :2], z.T).T, 0),
    "rows solved": (lambda z: solve_triangular(jnp.eye(3) + 1.0, z), None),
    "searched": (lambda z: jnp.searchsorted(jnp.arange(3.0), z) * 1.0, 0),
    "mapped": (lambda z: jax.vmap(lambda row: row[::-1] * row.sum())(z), 0),
    "steps": (lambda z: lax.scan(lambda c, x: (jnp.tanh(c + x), c), z[:, 0], z.T)[1], 1),
    "steps along": (lambda z: lax.scan(lambda c, x: (c + x, c), 0.0 * z[0], z)[1], None),
    "steps apart": (lambda z: lax.map(lambda row: row[::-1] * row.sum(), z), 0),
    "steps in steps": (
        lambda z: lax.map(lambda a: lax.map(lambda b: a * b, z[:, 0]), z[:, 1]),
        None,
    ),
    "steps of one in steps": (lambda z: lax.map(lambda a: lax.map(jnp.sin, a), z), 0),
    "one by one": (lambda z: jnp.stack([z[i].sum() for i in range(N)]), 0),
    "own entries": (lambda z: z[jnp.arange(N), (z[:, 0] > 0).astype(int)], None),
    "merged and parted": (
        lambda z: (jnp.broadcast_to(z, (4, N, 2)).reshape(-1, 2) @ TABLE).reshape(4, N, 3),
        1,
    ),
    "solved": (lambda z: jnp.linalg.solve(jnp.eye(2) + z[:, :, None] ** 2, z[:, :, None]), 0),
    "repeated": (
        lambda z: lax.while_loop(lambda c: c[1] < 3, lambda c: (c[0] * 2, c[1] + 1), (z, 0))[0],
        0,
    ),
    "repeated until": (lambda z: lax.while_loop(lambda c: (c < 9).any(), lambda c: c + 1, z), None),
    "transform": (lambda z: jnp.abs(jnp.fft.rfft(z, axis=-1)), 0),
    "largest": (lambda z: lax.top_k(z, 1)[0], 0),
    "branch": (lambda z: lax.cond(TABLE[0, 0] > 0, jnp.sin, lambda z: z.sum(0) + z, z), None),
}


@pytest.mark.parametrize("name", OF_JAX)
def test_operations_of_jax(name):
    fn, expected = OF_JAX[name]
    z = jnp.array([[0.3, -0.7], [1.2, 0.4], [-0.5, 0.9]])
    (found,) = places(jax.make_jaxpr(fn)(z), [{0: along(0, range(1, N + 1))}])
    assert found[0] == as_place(expected)
    if expected is None:
        return
    others = [fn(z.at[row].set(jnp.array([2.3, -1.1]))) for row in range(N)]
    check_slices(found[0], fn(z), others)


OF_ARGUMENTS = {
    "rolled": lambda z, s: jnp.roll(z, s, 0),
    "element": lambda z, s: z + z[s],
    "order": lambda z, s: z[(jnp.arange(N) + s) % N],
    "part": lambda z, s: lax.dynamic_slice(jnp.concatenate([z, z]), (s, 0), (N, 2)),
    "written": lambda z, s: z.at[s].set(z[0]),
    "stacked": lambda z, s: jnp.stack([z, z[::-1]])[s],
    "steps": lambda z, s: lax.fori_loop(0, s, lambda i, z: z[::-1], z),
}


@pytest.mark.parametrize("name", OF_ARGUMENTS)
def test_what_is_not_known_while_it_is_traced(name):
    z = jnp.ones((N, 2))
    jaxpr = jax.make_jaxpr(OF_ARGUMENTS[name])(z, 0)
    assert places(jaxpr, [{0: along(0, range(1, N + 1))}, {}])[0][0] is None
