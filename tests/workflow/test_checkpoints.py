"""Checkpoints: a fit goes on bit for bit wherever it was killed, and nothing that is found is lost."""

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import vi_kit as vi
from vi_kit.workflow import checkpoints
from vi_kit.workflow.checkpoints import read, write

ROWS = np.random.default_rng(0).normal(1.0, 1.0, 60)
NUM_KILLS = int(os.environ.get("VI_KIT_NUM_KILLS", "20")) // 2


class Stopped(Exception):
    """Of the test."""


def programs(lib, prior=1.0):
    """A discrete site with a baseline that keeps something, in minibatches."""

    def model(x):
        b = lib.sample("b", lib.dist.Bernoulli(0.5))
        z = lib.sample("z", lib.dist.Normal(0.0, prior))
        with lib.plate("data", len(x)):
            lib.sample("x", lib.dist.Normal(z + b, 1.0), obs=x)

    def guide(x):
        theta = lib.theta(np.array([0.1, 0.0]))
        lib.sample("b", lib.dist.Bernoulli(logits=theta[1]))
        lib.sample("z", lib.dist.Normal(theta[0], 0.3))

    return model, guide


def fit(lib, *, data="rows", stop_at=None, clear=True, rows=ROWS, prior=1.0, **given):
    """A fit of 60 steps, which an exception ends before if asked to."""
    if lib.name == "pyro" and clear:
        import pyro

        pyro.clear_param_store()

    def look(moment):
        if stop_at is not None and moment.step >= stop_at:
            raise Stopped

    args, batches = (lib.array(rows),), {"batch_size": 20}
    if data == "stream":
        args, batches = (), {"batches": loader(), "data_size": len(ROWS)}
    if data == "whole":
        batches = {}
    given = {"num_steps": 60, "estimators": {"b": vi.Score(vi.MovingAverage())}, **given}
    given = {"callbacks": look, "callback_every": 5, "optimizer": 0.05, **batches, **given}
    return lib.fit(*programs(lib, prior), *args, **given)


def loader():
    own = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.as_tensor(ROWS))
    return DataLoader(data, batch_size=16, shuffle=True, generator=own)


def same(one, other):
    params = all(
        np.array_equal(np.asarray(v), np.asarray(other.params[k])) for k, v in one.params.items()
    )
    return np.array_equal(one.losses, other.losses) and params


@pytest.mark.parametrize("data", ["rows", "stream", "whole"])
def test_it_goes_on_bit_for_bit(lib, data, tmp_path):
    whole = fit(lib, data=data)
    settings = vi.Checkpoint(tmp_path, every=7)
    with pytest.raises(Stopped) as caught:
        fit(lib, data=data, stop_at=35, checkpoint=settings)
    assert caught.value.fit.num_steps == 35
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-000000021.npz", "step-000000028.npz"]
    again = fit(lib, data=data, checkpoint=settings)
    assert same(whole, again)
    # a mutant: the same steps without the checkpoint's random numbers and order of the data
    other = fit(lib, data=data, seed=1)
    assert not np.array_equal(whole.losses[28:], other.losses[28:])
    # what is finished is not done again
    done = fit(lib, data=data, checkpoint=settings)
    assert same(whole, done) and done.seconds["steps"] == 0


def test_it_goes_on_with_more_steps(lib, tmp_path):
    fit(lib, checkpoint=tmp_path, num_steps=30)
    assert same(fit(lib), fit(lib, checkpoint=tmp_path, num_steps=60))


def test_settings_that_are_functions(lib, tmp_path):
    """Made anew, they are at another place in memory."""

    def estimators():
        return vi.Annealed(vi.Score(), vi.MeasureValued(), lambda t: 0.5)

    first = fit(lib, checkpoint=tmp_path, num_steps=6, estimators=estimators())
    again = fit(lib, checkpoint=tmp_path, num_steps=9, estimators=estimators())
    assert again.num_steps == 9 and list(again.losses[:6]) == list(first.losses)


def test_optimisers_go_on(lib, tmp_path):
    for number, optimizer in enumerate(optimizers(lib)):
        folder = vi.Checkpoint(tmp_path / str(number), every=10)
        whole = fit_with(lib, optimizer())
        with pytest.raises(Stopped):
            fit_with(lib, optimizer(), stop_at=25, checkpoint=folder)
        assert same(whole, fit_with(lib, optimizer(), checkpoint=folder))


def fit_with(lib, optimizer, stop_at=None, **given):
    if lib.name == "pyro":
        import pyro

        pyro.clear_param_store()

    def look(moment):
        if moment.step == stop_at:
            raise Stopped

    x, optimizer = lib.array(ROWS), optimizer
    given = {"callbacks": look, "callback_every": 5, "num_steps": 40, **given}
    return lib.fit(*programs(lib), x, optimizer=optimizer, **given)


def optimizers(lib):
    if lib.name == "pyro":
        import pyro
        import torch

        def scheduled(params):
            made = torch.optim.SGD(params, lr=0.01, momentum=0.9)
            return made, torch.optim.lr_scheduler.StepLR(made, 7, 0.5)

        def scheduled_by_pyro():
            args = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
            return pyro.optim.ExponentialLR(args)

        return [
            lambda: scheduled,
            lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}),
            scheduled_by_pyro,
        ]
    import numpyro
    import optax

    return [
        lambda: optax.sgd(optax.exponential_decay(0.01, 7, 0.5), momentum=0.9),
        lambda: numpyro.optim.ClippedAdam(0.05),
    ]


def test_restarts_go_on(lib, tmp_path):
    whole = fit(lib, num_restarts=2)
    with pytest.raises(Stopped):
        fit(lib, num_restarts=2, stop_at=35, checkpoint=vi.Checkpoint(tmp_path, every=7))
    again = fit(lib, num_restarts=2, checkpoint=vi.Checkpoint(tmp_path, every=7))
    assert same(whole, again)
    assert all(map(np.array_equal, whole.restarts, again.restarts))


# Files


def test_a_file_that_is_not_whole_is_left_alone(lib, tmp_path):
    whole = fit(lib)
    settings = vi.Checkpoint(tmp_path, every=7)
    with pytest.raises(Stopped):
        fit(lib, stop_at=35, checkpoint=settings)
    broken = tmp_path / "step-000000028.npz"
    content = broken.read_bytes()
    for spoilt in (content[: len(content) // 2], b"", b"something else", flipped(content)):
        for path in tmp_path.iterdir():
            if path.name not in ("step-000000021.npz", broken.name):
                path.unlink()
        broken.write_bytes(spoilt)
        with pytest.warns(vi.CheckpointWarning, match="no whole checkpoint"):
            again = fit(lib, checkpoint=vi.Checkpoint(tmp_path, every=7, keep=10))
        assert same(whole, again) and broken.read_bytes() == spoilt


def flipped(content):
    """One byte in the midst of the largest array is another."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def test_another_fit_is_refused(lib, tmp_path):
    fit(lib, checkpoint=tmp_path, num_steps=10)
    with pytest.raises(vi.CheckpointError, match=r"(?s)later step.*10 steps.*num_steps=5"):
        fit(lib, checkpoint=tmp_path, num_steps=5)
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    for given, pattern in (
        ({"seed": 1}, "seed: 0.*seed: 1"),
        ({"estimators": vi.MeasureValued()}, "loss: .*MovingAverage.*MeasureValued"),
        ({"data": "whole"}, "batches: 'Rows'.*batches: 'Whole'"),
        ({"batch_size": 15}, r"got: +batch_size: 20\n.*batch_size: 15"),
        ({"rows": ROWS + 5}, "data: "),
        ({"prior": 2.0}, "model: "),
        ({"optimizer": 0.1}, "optimizer.*: "),
    ):
        with pytest.raises(vi.CheckpointError, match=f"(?s)checkpoint of another fit.*{pattern}"):
            fit(lib, checkpoint=tmp_path, **given)
    assert files == {p: p.read_bytes() for p in tmp_path.iterdir()}


@pytest.mark.filterwarnings("ignore:fit. minibatches of")
def test_other_minibatches_are_refused(lib, tmp_path):
    """Of a list all are known; of a loader the first, and their number; of an iterator the first."""
    parts = np.split(lib.array(ROWS), [16, 32, 48])
    others = np.split(lib.array(ROWS), [16, 36, 48])
    loaders = [DataLoader(TensorDataset(torch.as_tensor(ROWS)), n) for n in (16, 20)]
    longer = DataLoader(TensorDataset(torch.as_tensor(ROWS)), 16, drop_last=True)
    for i, (first, other, pattern) in enumerate(
        (
            (parts, others, "data: "),
            (parts, parts[:3], "batches in an epoch: 4.*batches in an epoch: 3"),
            (loaders[0], loaders[1], "batches in an epoch: 4.*batches in an epoch: 3"),
            (loaders[0], longer, "batches in an epoch: 4.*batches in an epoch: 3"),
            (iter(parts * 9), iter([x[:9] for x in parts]), "data: "),
        )
    ):
        given = {"data": "stream", "checkpoint": tmp_path / str(i)}
        fit(lib, **given, batches=first, num_steps=6)
        with pytest.raises(vi.CheckpointError, match=f"(?s)checkpoint of another fit.*{pattern}"):
            fit(lib, **given, batches=other)
        with pytest.raises(vi.CheckpointError, match=r"data_size: '60'(?s:.*)data_size: '99'"):
            fit(lib, **given, batches=first, data_size=99)
        if not isinstance(first, Iterator):
            assert fit(lib, **given, batches=first, num_steps=8).num_steps == 8


SCALE = 1.0


@pytest.mark.parametrize("how", ["partial", "global"])
def test_another_number_in_a_program_is_refused(lib, tmp_path, monkeypatch, how):
    """That a program is given beforehand, or finds among its globals."""

    def model(scale=None):
        lib.sample("z", lib.dist.Normal(3.0, SCALE if scale is None else scale))

    def guide(scale=None):
        lib.sample("z", lib.dist.Normal(lib.theta(np.zeros(1))[0], 1.0))

    def fit(scale):
        if how == "global":
            monkeypatch.setitem(globals(), "SCALE", scale)
            return lib.fit(model, guide, num_steps=3, checkpoint=tmp_path)
        own = functools.partial(model, scale=scale)
        return lib.fit(own, guide, num_steps=3, checkpoint=tmp_path)

    fit(1.0)
    assert fit(1.0).seconds["steps"] == 0
    with pytest.raises(vi.CheckpointError, match=r"(?s)checkpoint of another fit.*model: "):
        fit(2.0)


def test_parameters_that_programs_close_over_are_no_part_of_a_checkpoint(tmp_path):
    """They are others after a fit, which the same call goes on with."""
    import pyro

    from vi_kit.pyro import fit

    loc = torch.zeros((), requires_grad=True)

    def model():
        pyro.sample("z", pyro.distributions.Normal(3.0, 1.0))

    def guide():
        pyro.sample("z", pyro.distributions.Normal(pyro.param("loc", loc), 1.0))

    fit(model, guide, num_steps=3, checkpoint=tmp_path)
    with torch.no_grad():
        loc += 1.0
    assert fit(model, guide, num_steps=5, checkpoint=tmp_path).num_steps == 5


def test_a_folder_that_cannot_be_written_to(lib, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(vi.CheckpointError, match=r"(?s)cannot be written to.*file.*fix: "):
        fit(lib, checkpoint=tmp_path / "file" / "folder")


@pytest.mark.parametrize("stop_on_error", [False, True])
def test_a_full_disk(lib, tmp_path, monkeypatch, stop_on_error):
    whole, written = fit(lib), []

    def full(file, **arrays):
        if len(written) >= 2:
            file.write(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(1)
        return savez(file, **arrays)

    savez = checkpoints.np.savez
    monkeypatch.setattr(checkpoints.np, "savez", full)
    settings = vi.Checkpoint(tmp_path, every=7, stop_on_error=stop_on_error)
    if stop_on_error:
        with pytest.raises(vi.CheckpointError, match="No space left") as caught:
            fit(lib, checkpoint=settings)
        assert np.array_equal(caught.value.fit.losses, whole.losses[:21])
    else:
        with pytest.warns(
            vi.CheckpointWarning, match=r"(?s)No space left.*the fit goes on"
        ) as seen:
            assert same(whole, fit(lib, checkpoint=settings))
        assert len(seen) == 1
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["step-000000007.npz", "step-000000014.npz"]


def test_what_is_written_is_read(tmp_path):
    content = {
        "state": {
            "a": np.arange(6.0).reshape(2, 3),
            3: [1, 2.5, None, "text", True, (1, (2, np.float32(1.5)))],
            "empty": np.zeros((0, 2), np.int32),
            "nan": float("nan"),
        }
    }
    write(tmp_path / "x.npz", content)
    found = read(tmp_path / "x.npz")["state"]
    assert np.array_equal(found["a"], content["state"]["a"]) and found["empty"].shape == (0, 2)
    assert found[3][:5] == [1, 2.5, None, "text", True]
    assert found[3][5] == (1, (2, np.float32(1.5))) and np.isnan(found["nan"])
    with pytest.raises(TypeError, match="object cannot be in a checkpoint"):
        write(tmp_path / "y.npz", {"state": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_nothing_in_a_file_is_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    np.savez(tmp_path / "step-000000001.npz", tree=np.array([Harmful()], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        read(tmp_path / "step-000000001.npz")
    assert not (tmp_path / "made").exists()


# Killed at any moment


@pytest.mark.slow
def test_it_goes_on_wherever_it_was_killed(lib, tmp_path):
    script = Path(__file__).parent / "killed.py"
    command = [sys.executable, str(script), lib.name, str(tmp_path), str(NUM_KILLS)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200 + 20 * NUM_KILLS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    whole, again = (np.load(tmp_path / f"{name}.npy") for name in ("whole", "again"))
    assert len(whole) == 1500 and np.array_equal(whole, again)
    assert int((tmp_path / "kills").read_text()) == NUM_KILLS
