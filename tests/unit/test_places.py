"""Along which dim of an array the elements of a plate lie, read off the operations of torch and of a jaxpr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from jax.scipy.linalg import solve_triangular
from torch.distributions import Multinomial, MultivariateNormal
from torch.nn import functional as F

from vi_kit.analysis.mixing import SEVERAL, UNCLEAR
from vi_kit.numpyro.mixing import places
from vi_kit.pyro.mixing import Reader

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


def scan(z):
    total = z[:, 0]
    for _ in range(2):
        total = torch.tanh(total + z[:, 1])
    return total


def zero_where_negative(z):
    z = z.clone()
    z[z < 0] = 0.0
    return z


def attend(z):
    return F.scaled_dot_product_attention(z, z, z)


ORDER = torch.tensor([2, 0, 1])
WEIGHT = torch.linspace(-1.0, 1.0, 6).double().reshape(2, 3)

# of `z` of shape (3, 2), whose rows are the elements of a plate
CASES = {
    "pointwise": (lambda z: torch.lgamma(z + 3.0) * torch.where(z > 0, z, 1.0), 0),
    "broadcast": (lambda z: z[:, :1] + torch.zeros(4, 1, 1), 1),
    "outer": (lambda z: z[:, :1] * z[:, 0], SEVERAL),
    "sum of rows": (lambda z: z.sum(-1), 0),
    "sum of a column": (lambda z: z.sum(0), SEVERAL),
    "sum": (lambda z: z + z.sum(), SEVERAL),
    "kept": (lambda z: z - z.mean(1, keepdim=True), 0),
    "centred": (lambda z: z - z.mean(0, keepdim=True), SEVERAL),
    "maximum of rows": (lambda z: z.max(-1).values, 0),
    "maximum": (lambda z: z - z.max(), SEVERAL),
    "softmax of rows": (lambda z: z.softmax(-1), 0),
    "softmax": (lambda z: z.softmax(0), SEVERAL),
    "logsumexp": (lambda z: z.logsumexp(1), 0),
    "cumsum": (lambda z: z.cumsum(0), SEVERAL),
    "sort of rows": (lambda z: z.sort(-1).values, 0),
    "roll": (lambda z: z.roll(1, 0), SEVERAL),
    "roll of rows": (lambda z: z.roll(1, -1), 0),
    "flip": (lambda z: z.flip(0), SEVERAL),
    "transposed": (lambda z: z.T, 1),
    "permuted": (lambda z: z.expand(4, N, 2).permute(2, 1, 0), 1),
    "moved": (lambda z: z[None, None].movedim(2, 0), 0),
    "flattened": (lambda z: z.reshape(-1), UNCLEAR),
    "unflattened": (lambda z: z.reshape(N, 2, 1).reshape(N, -1), 0),
    "merged": (lambda z: z.expand(4, N, 2).reshape(4 * N, 2), UNCLEAR),
    "merged and parted": (lambda z: (z.expand(4, N, 2).reshape(-1, 2) @ WEIGHT).view(4, N, 3), 1),
    "merged in another order": (lambda z: z.expand(4, N, 2).reshape(-1, 2).view(N, 4, 2), UNCLEAR),
    "merged and met": (lambda z: z.reshape(-1) * z.expand(2, N, 2).reshape(2, -1), UNCLEAR),
    "merged with others": (lambda z: z.reshape(-1)[:, None] * z[:, 0], SEVERAL),
    "squeezed": (lambda z: z[:, :1].unsqueeze(0).squeeze(), 0),
    "column": (lambda z: z[..., 0], 0),
    "element": (lambda z: z + z[0], UNCLEAR),
    "slices": (lambda z: torch.cat([z[1:], z[:1]]), UNCLEAR),
    "reversed by a step": (lambda z: z[::2], UNCLEAR),
    "joined": (lambda z: torch.cat([z, ROWS[:N]], -1), 0),
    "stacked": (lambda z: torch.stack([z, ROWS[:N]], 0), 1),
    "unbound": (lambda z: torch.stack(z.unbind(-1), 1), 0),
    "split": (lambda z: z.split(1, -1)[1], 0),
    "linear": (lambda z: F.linear(z, WEIGHT.T, torch.ones(3)), 0),
    "product": (lambda z: z @ WEIGHT, 0),
    "product from the left": (lambda z: WEIGHT @ z, SEVERAL),
    "product of vectors": (lambda z: WEIGHT @ z[:, 0], SEVERAL),
    "gram": (lambda z: z @ z.T, SEVERAL),
    "batches": (lambda z: torch.bmm(z[:, None], z[:, :, None]), 0),
    "sum of products": (lambda z: torch.einsum("ni,ij->nj", z, WEIGHT), 0),
    "mixed products": (lambda z: torch.einsum("ni,nj->ij", z, z), SEVERAL),
    "matrix and vector": (lambda z: (z[:, :, None] * WEIGHT) @ ORDER.double(), 0),
    "embedding": (lambda z: F.embedding((z[:, 0] > 0).long(), ROWS), 0),
    "rows of a table": (lambda z: ROWS[(z > 0).long()], 0),
    "columns of a table": (lambda z: ROWS[:, (z[:, 0] > 0).long()], 1),
    "entries of a table": (lambda z: ROWS[(z[:, 0] > 0).long(), (z[:, 1] > 0).long()], 0),
    "own entries": (lambda z: z[torch.arange(N), (z[:, 0] > 0).long()], 0),
    "own entries of more": (lambda z: z[torch.arange(N)[:, None], (z > 0).long()], 0),
    "other entries": (lambda z: z[ORDER, (z[:, 0] > 0).long()], SEVERAL),
    "in another order": (lambda z: z[ORDER], SEVERAL),
    "columns in another order": (lambda z: z[:, [1, 0]], 0),
    "chosen rows": (lambda z: z[z[:, 0] > 0.1], UNCLEAR),
    "gathered": (lambda z: z.gather(-1, (z[:, :1] > 0).long()), 0),
    "gathered rows": (lambda z: z.gather(0, (z[:, :1] > 0).long()), SEVERAL),
    "selected": (lambda z: z.index_select(1, ORDER[1:]), 0),
    "selected rows": (lambda z: z.index_select(0, ORDER), SEVERAL),
    "one hot": (lambda z: F.one_hot((z[:, 0] > 0).long(), 3) * 1.0, 0),
    "scattered": (lambda z: torch.zeros(N, 4).scatter(-1, (z > 0).long(), z), 0),
    "scattered rows": (lambda z: torch.zeros(4, 2).scatter_add(0, (z > 0).long(), z), SEVERAL),
    "padded": (lambda z: F.pad(z, (1, 0)), 0),
    "shifted": (lambda z: F.pad(z, (0, 0, 1, -1)), SEVERAL),
    "repeated": (lambda z: z.repeat(2, 1, 1), 1),
    "tiled": (lambda z: z.repeat(2, 1), UNCLEAR),
    "triangle": (lambda z: torch.linalg.cholesky(torch.eye(2) + z[:, :, None] * z[:, None]), 0),
    "solved": (lambda z: torch.linalg.solve(torch.eye(2) + z[:, :, None] ** 2, ROWS[:2]), 0),
    "determinant": (lambda z: torch.linalg.slogdet(torch.eye(2) + z[:, :, None] ** 2)[1], 0),
    "columns solved": (lambda z: torch.linalg.solve(1 + torch.eye(2), z.T).T, 0),
    "rows solved": (lambda z: torch.linalg.solve(torch.eye(3) + 1, z), SEVERAL),
    "matrix and columns solved": (
        lambda z: torch.linalg.solve(torch.eye(2) + z[:, :, None] ** 2, z.T),
        SEVERAL,
    ),
    "normal": (lambda z: MultivariateNormal(z, 1 + torch.eye(2)).log_prob(ROWS[0]), 0),
    "counts": (lambda z: Multinomial(3, logits=z).log_prob(torch.tensor([1.0, 2.0])), 0),
    "recurrent": (lambda z: (torch.manual_seed(0), torch.nn.GRUCell(2, 4)(z))[1], 0),
    "attention": (lambda z: attend(z[:, None] * ROWS), 0),
    "attention to others": (lambda z: attend(z[None]), SEVERAL),
    "masked": (lambda z: zero_where_negative(z), 0),
    "inverse": (lambda z: torch.linalg.inv(torch.eye(3) + z[:, :1] * z[:, 0] ** 2), SEVERAL),
    "layer norm": (lambda z: F.layer_norm(z, (2,)), 0),
    "layer norm of all": (lambda z: F.layer_norm(z, (N, 2)), SEVERAL),
    "batch norm": (normed, SEVERAL),
    "batch norm of kept": (lambda z: F.batch_norm(z, torch.zeros(2), torch.ones(2)), 0),
    "convolution": (lambda z: F.conv1d(z[:, None], WEIGHT[:, None, :2]), 0),
    "convolution of rows": (lambda z: F.conv1d(z.T[:, None], WEIGHT[:, None, :2]), UNCLEAR),
    "dropout": (lambda z: F.dropout(z, 0.5), 0),
    "loss": (lambda z: F.binary_cross_entropy_with_logits(z, z, reduction="none"), 0),
    "mean loss": (lambda z: F.binary_cross_entropy_with_logits(z, z), SEVERAL),
    "cross entropy": (lambda z: F.cross_entropy(z, ORDER % 2, reduction="none"), 0),
    "in place": (in_place, 0),
    "in place elsewhere": (in_place_elsewhere, UNCLEAR),
    "norm": (lambda z: z.norm(dim=-1), 0),
    "norm of all": (lambda z: z / z.norm(), SEVERAL),
    "steps": (scan, 0),
    "searched": (lambda z: torch.bucketize(z, ROWS[:, 0].sort().values) * 1.0, 0),
    "mapped": (lambda z: torch.vmap(lambda row: row.flip(0) * row.sum())(z), 0),
    "mapped columns": (lambda z: torch.vmap(lambda c: c * c.sum(), 1, 1)(z), SEVERAL),
    "transform": (lambda z: torch.fft.rfft(z, dim=-1).abs(), 0),
    "transform of columns": (lambda z: torch.fft.rfft(z, dim=0).abs(), SEVERAL),
    "pattern": (lambda z: (z > 0).eq(torch.tensor([[True], [False], [True]])).all(), SEVERAL),
    "shapes only": (lambda z: torch.zeros_like(z) + z.new_ones(N, 2), None),
}


def read(fn, z):
    elements = torch.zeros(N, dtype=torch.bool)
    reader = Reader([elements], ())
    with reader, reader.reads:
        marked = z + 0.0 * elements[:, None]
        made = fn(marked)
    return reader.places(made).get(0), made


@pytest.mark.parametrize("name", CASES)
def test_operations(name):
    fn, expected = CASES[name]
    z = torch.tensor([[0.3, -0.7], [1.2, 0.4], [-0.5, 0.9]])
    torch.manual_seed(0)
    found, made = read(fn, z)
    assert found == expected
    if expected is None or expected < 0 or name == "dropout":
        return
    for row in range(N):  # only its own slice changes
        other = z.clone()
        other[row] = torch.tensor([2.3, -1.1])
        changed = (fn(other) != made).movedim(expected, 0).reshape(N, -1).any(-1)
        assert changed[torch.arange(N) != row].sum() == 0


TOLD = {
    "a number": lambda z: float(z[0, 0]) * z,
    "a list": lambda z: torch.tensor(z[:, 0].tolist())[:, None] * z,
    "an array": lambda z: torch.from_numpy(z.numpy())[:, None] * z,
    "a branch": lambda z: z if z.sum() > 0 else 2 * z,
}


@pytest.mark.parametrize("name", TOLD)
def test_what_the_program_is_told(name):
    assert read(TOLD[name], torch.ones(N, 2))[0] == UNCLEAR


def test_what_arguments_say_may_change():
    elements, order = torch.zeros(N, dtype=torch.bool), torch.arange(N)
    reader = Reader([elements], ((order,), {}))
    with reader, reader.reads:
        by_argument, own = elements[order], elements[torch.arange(N)]
        parts = torch.stack([elements[i] for i in range(N)])
    assert reader.places(by_argument)[0] == SEVERAL
    assert reader.places(own)[0] == 0
    assert reader.places(parts)[0] == UNCLEAR
    with reader, reader.reads:
        order.tolist()
    assert reader.places(parts)[0] == SEVERAL


TABLE = np.linspace(-1.0, 1.0, 6).reshape(2, 3)

OF_JAX = {
    "pointwise": (lambda z: jnp.where(z > 0, jax.scipy.special.gammaln(z + 3.0), z), 0),
    "sum of rows": (lambda z: z.sum(-1), 0),
    "centred": (lambda z: z - z.mean(0), SEVERAL),
    "outer": (lambda z: z[:, :1] * z[:, 0], SEVERAL),
    "softmax": (lambda z: jax.nn.softmax(z, 0), SEVERAL),
    "sort": (lambda z: jnp.sort(z, 0), SEVERAL),
    "cumulative": (lambda z: jnp.cumsum(z, 0), SEVERAL),
    "reversed": (lambda z: z[::-1], SEVERAL),
    "roll": (lambda z: jnp.roll(z, 1, 0), UNCLEAR),
    "element": (lambda z: z + z[0], UNCLEAR),
    "column": (lambda z: z[:, 0], 0),
    "transposed": (lambda z: z.T, 1),
    "product": (lambda z: z @ TABLE, 0),
    "product from the left": (lambda z: TABLE @ z, SEVERAL),
    "flattened": (lambda z: z.reshape(-1), UNCLEAR),
    "joined": (lambda z: jnp.concatenate([z, z], -1), 0),
    "padded": (lambda z: jnp.pad(z, ((0, 0), (1, 0))), 0),
    "written": (lambda z: z.at[:, 0].set(z[:, 1] ** 2), 0),
    "added": (lambda z: jnp.zeros((N, 4)).at[:, 1:3].add(z), 0),
    "rows written": (lambda z: z.at[0].set(z[1]), UNCLEAR),
    "written elsewhere": (lambda z: jnp.zeros((4, 2)).at[1:].set(z), UNCLEAR),
    "rows of a table": (lambda z: jnp.asarray(TABLE)[(z[:, 0] > 0).astype(int)], 0),
    "gathered": (lambda z: jnp.take_along_axis(z, (z[:, :1] > 0).astype(int), -1), 0),
    "in another order": (lambda z: z[jnp.array([2, 0, 1])], UNCLEAR),
    "columns solved": (lambda z: solve_triangular(jnp.eye(2) + TABLE[:, :2], z.T).T, 0),
    "rows solved": (lambda z: solve_triangular(jnp.eye(3) + 1.0, z), SEVERAL),
    "searched": (lambda z: jnp.searchsorted(jnp.arange(3.0), z) * 1.0, 0),
    "mapped": (lambda z: jax.vmap(lambda row: row[::-1] * row.sum())(z), 0),
    "steps": (lambda z: lax.scan(lambda c, x: (jnp.tanh(c + x), c), z[:, 0], z.T)[1], 1),
    "steps along": (lambda z: lax.scan(lambda c, x: (c + x, c), 0.0 * z[0], z)[1], UNCLEAR),
    "branch": (lambda z: lax.cond(TABLE[0, 0] > 0, jnp.sin, lambda z: z.sum(0) + z, z), SEVERAL),
}


@pytest.mark.parametrize("name", OF_JAX)
def test_operations_of_jax(name):
    fn, expected = OF_JAX[name]
    z = jnp.array([[0.3, -0.7], [1.2, 0.4], [-0.5, 0.9]])
    jaxpr = jax.make_jaxpr(fn)(z).jaxpr
    assert places(jaxpr, [{0: 0}])[0][0] == expected
    if expected < 0:
        return
    for row in range(N):
        changed = fn(z.at[row].set(jnp.array([2.3, -1.1]))) != fn(z)
        changed = np.moveaxis(np.asarray(changed), expected, 0).reshape(N, -1).any(-1)
        assert not changed[np.arange(N) != row].any()
