"""What each process of a fit does: `torchrun ranks.py FOLDER CASE ...`; it writes what each case found, by rank.

With one process, and no group, the same cases give what they are compared with.
"""

import contextlib
import json
import os
import re
import signal
import sys
import time
import traceback
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.distributed as distributed
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import vi_kit as vi
from vi_kit.pyro import fit
from vi_kit.pyro.distributed import Exchange, Group
from vi_kit.pyro.trainer import PyroTrainer
from vi_kit.workflow.batches import Rows
from vi_kit.workflow.minibatch import AllRows, plates_of_rows

RANK, COUNT = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
GROUP = None
FOLDER = Path(sys.argv[1])
X = torch.as_tensor(np.random.default_rng(0).normal(1.0, 1.0, (24, 2)))


# Programs: exact sums, so that processes together have the gradient of one


def mixture(x):
    w = pyro.param("w", torch.zeros(3, dtype=x.dtype))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=w))
        pyro.sample("x", dist.Normal(z[..., None] - 1.0, 1.0).to_event(1), obs=x)


def mixture_guide(x):
    net = pyro.module("net", NET)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Categorical(logits=net(x)))


def closed(x):
    z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def closed_guide(x):
    m, s = (
        pyro.param("m", torch.tensor(0.1, dtype=x.dtype)),
        pyro.param("s", torch.tensor(0.0, dtype=x.dtype)),
    )
    pyro.sample("z", dist.Normal(m, s.exp()))


NET = None


def both(*args, model=mixture, guide=mixture_guide, **given):
    """A fit by all processes, from a new start."""
    global NET
    pyro.clear_param_store()
    torch.manual_seed(5)
    NET = torch.nn.Linear(2, 3, dtype=torch.float64)
    if RANK:  # the start of the first process counts
        with torch.no_grad():
            NET.weight.add_(1.0)
    given = {"num_steps": 12, "optimizer": 0.1, "process_group": GROUP, "seed": 3, **given}
    return fit(model, guide, *args, **given)


def told(found):
    return {
        "losses": found.losses.tolist(),
        "norms": found.gradient_norms.tolist(),
        "params": {k: np.asarray(v.detach()).tolist() for k, v in found.params.items()},
        "state": {k: np.asarray(v).tolist() for k, v in found.state.items()},
        "notes": list(found.notes),
        "stopped": found.stopped,
    }


def rows():
    return told(both(X, batch_size=8))


def all_rows():
    return told(both(X, batch_size=24, clip_norm=0.5))


def uneven():
    return told(both(X, batch_size=7))


def float32():
    return told(
        both(X.float(), batch_size=8, model=closed, guide=closed_guide, estimators=vi.Analytic())
    )


def analytic():
    return told(both(X, batch_size=8, model=closed, guide=closed_guide, estimators=vi.Analytic()))


def loader():
    """The last batch has one row, which one process has."""
    data = TensorDataset(torch.cat([X, X[:1] + 1.0]))
    return told(both(batches=DataLoader(data, batch_size=8, shuffle=True), num_steps=9))


class Union:
    """The minibatches of all processes of a `DistributedSampler`, as one."""

    dataset = TensorDataset(X)

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        loaders = [sampled(rank) for rank in range(2)]
        for one in loaders:
            one.sampler.set_epoch(self.epoch)
        self.epoch += 1
        for pair in zip(*loaders, strict=True):
            yield (torch.cat([x for (x,) in pair]),)


def sampled(rank):
    data = TensorDataset(X)
    return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 2, rank, seed=1))


def sampler():
    return told(both(batches=sampled(RANK) if COUNT > 1 else Union()))


def own_batches():
    """Batches of one's own in each process, of other sizes."""
    mine = [[X[:3], X[8:12]], [X[3:8], X[12:16]]]
    one = [torch.cat(pair) for pair in zip(*mine, strict=True)]
    return told(both(batches=mine[RANK] if COUNT > 1 else one, data_size=24))


def coin(x):
    b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(b, 1.0), obs=x[:, 0])


def coin_guide(x):  # of which each draw is one, so that processes draw the same
    pyro.sample("b", dist.Bernoulli(logits=pyro.param("a", torch.tensor(60.0))))


def moving_average():
    score = {"b": vi.Score(vi.MovingAverage())}
    return told(both(X, batch_size=8, model=coin, guide=coin_guide, estimators=score))


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.out = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 3)

    def forward(self, x):
        return self.out(self.norm(x.to(self.out.weight.dtype)))


def buffers():
    net = Normed()

    def guide(x):
        pyro.module("normed", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=net(x)))

    found = told(both(X, batch_size=8, guide=guide, num_steps=3, optimizer=1e-9))
    norm = net.norm
    return {**found, "mean": norm.running_mean.tolist(), "count": int(norm.num_batches_tracked)}


def restarts():
    def guide(x):
        logits = pyro.param("logits", lambda: torch.randn(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return told(both(X, batch_size=8, guide=guide, num_restarts=3))


def shifted(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def shifted_guide(x):  # log p - log q is linear in z
    pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(3.0)), 1.0))


def noise():
    """The losses of many steps from one place: of independent draws."""
    given = {"num_steps": 400, "optimizer": 1e-12, "estimators": vi.Reparam()}
    return told(both(X, model=shifted, guide=shifted_guide, **given))


def local(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def local_guide(x):
    m = pyro.param("m", torch.tensor(3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(m.expand(len(x)), 1.0))


def local_noise():
    given = {"num_steps": 400, "optimizer": 1e-12, "estimators": vi.Reparam()}
    return told(both(X, batch_size=8, model=local, guide=local_guide, **given))


class Below:
    """Stops where the last loss is below a number."""

    every, reads_iterates, shrinks, averages = 3, True, False, False

    def decide(self, history):
        from vi_kit.workflow.stopping import Decision

        return Decision("low enough" if history.losses[-1] < 70.0 else "")

    def __repr__(self):
        return "Below()"


def rule():
    return told(both(X, batch_size=8, stop=Below(), num_steps=200))


def callback():
    """In one process alone, which ends the fit of all."""
    stops = [lambda moment: moment.step == 6] if RANK == COUNT - 1 else []
    return told(both(X, batch_size=8, callbacks=stops, callback_every=3))


def interrupted():
    def look(moment):
        if moment.step == 6 and RANK == COUNT - 1:
            os.kill(os.getpid(), signal.SIGINT)

    return told(both(X, batch_size=8, callbacks=look, callback_every=3, num_steps=500))


def noisy(x):
    b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(b, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)


def noisy_guide(x):
    pyro.sample("b", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.3))))
    slope = pyro.param("slope", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ slope, 0.7))


def _noisy(num_steps, folder=None, **given):
    score = {"b": vi.Score(vi.MovingAverage())}
    given = {"model": noisy, "guide": noisy_guide, "estimators": score, "batch_size": 8, **given}
    checkpoint = None if folder is None else vi.Checkpoint(folder, every=5)
    return both(X, num_steps=num_steps, checkpoint=checkpoint, **given)


def resumed():
    """A fit that goes on; beside one that was not interrupted. Of the two folders that are said one is used."""
    folder = FOLDER / f"checkpoints-{RANK}"
    whole = told(_noisy(20))
    first = _noisy(12, folder)
    again = told(_noisy(20, folder))
    found = {"whole": whole, "first": first.num_steps, "again": again}
    if COUNT > 1:
        distributed.barrier()
    found["files"] = sorted(path.name for path in folder.glob("*"))
    if RANK == 0 and COUNT > 1:  # with another number of processes
        found["alone"] = told(_noisy(24, folder, process_group=False))
    return found


def nan():
    """Not in the data of the first process."""
    mine = [X[8 * i : 8 * i + 4] + RANK for i in range(3)]
    mine = [*mine, mine[0] + (np.nan if RANK else 0.0)]
    return told(both(batches=mine, data_size=24))


def nan_params():
    """What is left of a fit that ends at a loss that is no number."""
    try:
        nan()
    except vi.NotFiniteError as error:
        return {"params": told(error.fit)["params"], "steps": error.fit.num_steps}
    raise AssertionError


def nan_reference():
    """The steps before, less the last."""
    mine = [X[8 * i : 8 * i + 4] + RANK for i in range(2)]
    return told(both(batches=iter(mine), data_size=24, num_steps=9))


def raises():
    count = iter(range(100))

    def model(x):
        if next(count) > 12 and RANK == COUNT - 1:
            raise RuntimeError("of the test")
        mixture(x)

    return told(both(X, batch_size=8, model=model, num_steps=200))


def callback_raises():
    def look(moment):
        if RANK == COUNT - 1:
            raise KeyError("of the test")

    return told(both(X, batch_size=8, callbacks=look, callback_every=3))


def loader_raises():
    def batches():
        yield X[:4] + RANK
        if RANK == COUNT - 1:
            raise OSError("of the test")
        yield X[4:8]

    return told(both(batches=batches(), data_size=24))


def neural_baseline(**given):
    """A network that predicts what the coin is worth, from another start in each process."""
    torch.manual_seed(7 + RANK)
    net = torch.nn.Linear(1, 1)
    score = vi.Score(vi.NeuralBaseline(net, inputs=lambda x: torch.ones(1)))
    given |= {"model": coin, "guide": coin_guide, "estimators": {"b": score}}
    sgd = partial(torch.optim.SGD, lr=0.01)
    return told(both(X, batch_size=8, optimizer=sgd, **given))


def compiled():
    return neural_baseline(compile=True)


def _by_rule(rule):
    given = {"model": closed, "guide": closed_guide, "estimators": vi.Analytic()}
    return told(both(X, batch_size=8, stop=rule, num_steps=300, **given))


def stationary():
    return _by_rule(vi.Stationary(every=10, min_steps=100, min_nats=5.0, false_positive_rate=0.5))


def averaged():
    rule = vi.IterateAverage(every=2, tolerance=0.5, min_looks=5, max_rhat=2.0, min_ess=2.0)
    return _by_rule(rule)


def of_the_docs():
    """The script of docs/scale_out.md, as it is there, but that its processes are a group already."""
    page = Path(__file__).parents[2] / "docs" / "scale_out.md"
    (block,) = re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL)
    pyro.clear_param_store()
    names = {"fit": fit, "model": closed, "guide": closed_guide, "x": X.repeat(50, 1)}
    with patch.object(distributed, "init_process_group") as started:
        exec(compile(block, page.name, "exec"), names)
    started.assert_called_once_with("gloo")
    return {**told(names["found"]), "count": distributed.get_world_size()}


# Mutants


def mutant_no_average():
    with patch.object(Group, "summed", lambda self, flat: None):
        return rows()


def mutant_scale():
    """Plates count for the rows that a process sees of all data."""

    def halved(*args):
        return {name: AllRows(all.num_rows // 2) for name, all in plates_of_rows(*args).items()}

    with patch("vi_kit.workflow.fitting.plates_of_rows", halved):
        return rows()


def mutant_unweighted():
    with patch.object(Rows, "weight", 1.0):
        return uneven()


def same_noise():
    join = PyroTrainer.join

    def joined(self):
        before = self.generators
        join(self)
        self.generators = before

    return patch.object(PyroTrainer, "join", joined)


def mutant_same_noise():
    with same_noise():
        return noise()


def mutant_same_local_noise():
    with same_noise():
        return local_noise()


def mutant_baseline():
    """Each process trains its network by its own rows."""
    summed = Exchange._value

    def own(self, entry, found, leaves):
        value = summed(self, entry, found, leaves)
        is_network = value is not None and "network" in entry.key[1]
        return torch.zeros_like(value) if is_network and RANK else value

    with patch.object(Exchange, "_value", own):
        return neural_baseline()


def mutant_last_iterate():
    """The mean of iterates is not taken."""
    with patch.object(PyroTrainer, "average", lambda self, on: None):
        return averaged()


# Processes that are gone: run without torchrun, which ends the others


def killed():
    def look(moment):
        if RANK and moment.step == 6:
            os.kill(os.getpid(), signal.SIGKILL)

    return told(both(X, batch_size=8, callbacks=look, callback_every=3, num_steps=500))


def stuck():
    def look(moment):
        if RANK and moment.step == 6:
            time.sleep(600)

    return told(both(X, batch_size=8, callbacks=look, callback_every=3, num_steps=500))


# What cannot be


def refused_seed():
    return told(both(X, batch_size=8, seed=RANK))


def refused_optimizer():
    return told(both(X, batch_size=8, optimizer=partial(torch.optim.Adam, lr=0.1 * (1 + RANK))))


def refused_data():
    return told(both(X[RANK::2], batch_size=8))


def refused_whole_data():
    return told(both(X[RANK::2]))


def refused_unknown_size():
    return told(both(batches=[X[4 * RANK : 4 * RANK + 4]]))


def refused_data_size():
    mine = X[: 4 + 4 * RANK]
    return told(both(batches=[mine], data_size=len(mine)))


def refused_scale():
    """By the rows of all, as one process would write it."""
    model, guide = (pyro.poutine.scale(fn, len(X) / 8) for fn in (mixture, mixture_guide))
    return told(both(X, batch_size=8, model=model, guide=guide))


def refused_scale_of_one():
    return told(both(X, batch_size=8, model=pyro.poutine.scale(mixture, len(X) / 8)))


def refused_subsample():
    def of_eight(x):
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
        with pyro.plate("rows", len(X), subsample_size=8):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x[:, 0])

    def of_coin(x):
        pyro.sample("b", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.1))))

    return told(both(X, batch_size=8, model=of_eight, guide=of_coin))


def refused_group():
    return told(both(X, batch_size=8, process_group="WORLD"))


def refused_sampler():
    data = TensorDataset(X)
    own = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 3, RANK))
    return told(both(batches=own))


def refused_few_rows():
    return told(both(X, batch_size=1))


def refused_bound():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return told(
            both(
                X, batch_size=8, model=noisy, guide=noisy_guide, objective=vi.iwae(num_particles=2)
            )
        )


def refused_fixed():
    return told(both(X, fixed_draws=5, model=closed, guide=closed_guide, optimizer=None))


def refused_unsaid():
    return told(both(X, process_group=None))


class Langevin(torch.optim.SGD):
    """Draws random numbers in its steps."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(torch.randn_like(p))


def refused_noise():
    return told(
        both(X, batch_size=8, optimizer=lambda params: Langevin(params, lr=0.1), num_steps=50)
    )


def refused_late():
    """A parameter that is made after the first steps, at random."""
    count = iter(range(10_000))

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        if next(count) > 40:
            logits = logits + pyro.param("late", lambda: torch.randn(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits))

    return told(both(X, batch_size=8, guide=guide, num_steps=200))


def alone():
    """Each process by itself, of other data."""
    return told(both(X + RANK, batch_size=8, process_group=False))


CASES = {
    name: f
    for name, f in list(globals().items())
    if callable(f) and getattr(f, "__module__", "") == "__main__"
}


def main(cases, wait=60.0):
    global GROUP
    if COUNT > 1:
        by_file = {"init_method": f"file://{FOLDER}/store", "rank": RANK, "world_size": COUNT}
        how = {} if "MASTER_PORT" in os.environ else by_file
        distributed.init_process_group("gloo", timeout=timedelta(seconds=wait), **how)
        GROUP = distributed.group.WORLD
    for case in cases:
        began = time.perf_counter()
        try:
            found = CASES[case]()
        except BaseException as error:
            found = {
                "error": type(error).__name__,
                "text": str(error),
                "trace": traceback.format_exc(),
            }
            found["steps"] = error.fit.num_steps if hasattr(error, "fit") else None
        found["seconds"] = time.perf_counter() - began
        (FOLDER / f"{case}-{RANK}-of-{COUNT}.json").write_text(json.dumps(found))
    if COUNT > 1:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


def in_a_child(rank, count, folder, cases, wait):
    """Another process, which imports nothing again; returns its number."""
    global RANK, COUNT, FOLDER
    child = os.fork()
    if child:
        return child
    for name in [name for name in os.environ if name.startswith(("MASTER_", "TORCHELASTIC_"))]:
        del os.environ[name]
    RANK, COUNT, FOLDER = rank, count, folder
    try:
        main(cases, wait)
    finally:
        os._exit(0)


def besides(alone, gone):
    """In the first process, what one process finds, and two of which one is gone: forked before there are threads."""
    children = {("alone", 0): in_a_child(0, 1, FOLDER, alone, 0.0)}
    for case, wait in gone.items():
        (FOLDER / case).mkdir()
        for rank in range(2):
            children[case, rank] = in_a_child(rank, 2, FOLDER / case, [case], wait)
    return children


def ended(children):
    """Wait for them, and end what does not answer."""
    ends = {}
    for (case, rank), child in children.items():
        if rank == 0:
            ends[case] = os.waitpid(child, 0)[1]
    for (_, rank), child in children.items():
        if rank:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    (FOLDER / "ended").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    given = json.loads(sys.argv[2])
    others = besides(given["alone"], given["gone"]) if RANK == 0 else {}
    main(given["together"])
    ended(others)
