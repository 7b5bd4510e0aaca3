"""A fit by two processes is that of one on whole minibatches, and ends in both."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "ranks.py"
SAME = [
    *("rows", "all_rows", "uneven", "float32", "analytic", "loader", "sampler", "own_batches"),
    *("moving_average", "restarts", "rule", "callback", "neural_baseline", "stationary"),
    "averaged",
]
REFUSED = {
    "refused_seed": ("ObjectiveError", "seed: 0 in process 0, 1 in process 1"),
    "refused_optimizer": (
        "ObjectiveError",
        "got:      optimizer lr: 0.1 in process 0, 0.2 in process 1\n",
    ),
    "refused_data": ("ObjectiveError", "the data differ between the processes"),
    "refused_whole_data": ("ObjectiveError", "the data differ between the processes"),
    "refused_unknown_size": ("ObjectiveError", "how many rows there are in all is not known"),
    "refused_data_size": ("ObjectiveError", "data_size: 4 in process 0, 8 in process 1"),
    "refused_scale": ("ObjectiveError", "that of 24 rows over the 8 of a step"),
    "refused_scale_of_one": ("ObjectiveError", "'data' some statements count for all rows"),
    "refused_subsample": ("ObjectiveError", "4 rows; observed sites 'x'"),
    "refused_group": ("ObjectiveError", "got:      'WORLD'\n"),
    "refused_sampler": ("ObjectiveError", "num_replicas=[3, 3] in 2 processes"),
    "refused_few_rows": ("ObjectiveError", "fewer rows than there are processes"),
    "refused_bound": ("ObjectiveError", "plates ['data'] are summed"),
    "refused_fixed": ("ObjectiveError", "fixed_draws"),
    "refused_unsaid": ("ObjectiveError", "process_group=False for a fit of its own in each"),
    "refused_noise": ("ProcessError", "no longer the same in each process"),
    "refused_late": ("ObjectiveError", "param late"),
}
FAILING = {"raises": "RuntimeError", "callback_raises": "KeyError", "loader_raises": "OSError"}
MUTANTS = [
    f"mutant_{name}"
    for name in (
        *("no_average", "scale", "unweighted", "same_noise", "same_local_noise", "baseline"),
        "last_iterate",
    )
]
TOGETHER = [
    *(*SAME, "buffers", "noise", "local_noise", "interrupted", "resumed", "nan", "nan_params"),
    *("nan_reference", *FAILING, *REFUSED, *MUTANTS, "alone", "compiled"),
    "of_the_docs",
]
GONE = {"killed": 60.0, "stuck": 4.0}
"""With the seconds for which a process that does not answer is waited for."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each case found, by process, and what one process finds: all are run once for all workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "distributed"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            run_all(folder)
            (folder / "done").touch()

    def read(case, rank=0, count=2):
        own = folder / case if case in GONE else folder
        return json.loads((own / f"{case}-{rank}-of-{count}.json").read_text())

    return read


def run_all(folder):
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    cases = {"together": TOGETHER, "alone": [*SAME, "buffers"], "gone": GONE}
    subprocess.run([*launch, SCRIPT, folder, json.dumps(cases)], env=env, check=True, timeout=550)


def params(one):
    return np.concatenate([np.ravel(value) for value in one["params"].values()])


@pytest.mark.parametrize("case", SAME)
def test_two_processes_are_one(found, case):
    one, *two = found(case, 0, 1), found(case, 0), found(case, 1)
    assert two[0]["losses"] == two[1]["losses"]
    assert two[0]["params"] == two[1]["params"]
    assert two[0]["stopped"] == two[1]["stopped"] == one["stopped"]
    assert len(one["losses"]) >= 6
    tolerance = 1e-6 if case == "float32" else 1e-12
    for name in ("losses", "norms"):
        np.testing.assert_allclose(two[0][name], one[name], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(params(two[0]), params(one), rtol=tolerance, atol=tolerance)
    assert two[0]["state"] == two[1]["state"]
    assert two[0]["state"].keys() == one["state"].keys()
    for name, value in one["state"].items():
        np.testing.assert_allclose(two[0]["state"][name], value, rtol=1e-12)


def test_what_is_kept_is_averaged(found):
    """What baselines keep (in the cases above, where it is not nothing), and the means of batch normalisation."""
    assert found("moving_average")["state"]
    one, *two = found("buffers", 0, 1), found("buffers", 0), found("buffers", 1)
    for other in two:
        np.testing.assert_allclose(other["mean"], one["mean"], rtol=1e-12)
        assert other["count"] == one["count"] == 3


def test_compiled_steps_are_those_of_one_process(found):
    """Which takes its own uncompiled."""
    one = found("neural_baseline", 0, 1)
    for rank in range(2):
        two = found("compiled", rank)
        np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-12)
        np.testing.assert_allclose(params(two), params(one), rtol=1e-10)


def test_rules_of_the_library_end_all_at_once(found):
    """With what they find, in the case above: before the last step, and the mean of iterates is not the last."""
    for case, says in {
        "stationary": "no longer improves",
        "averaged": "the mean of the last",
    }.items():
        assert says in found(case)["stopped"] and len(found(case)["losses"]) < 300


def test_mutants_are_rejected(found):
    one = found("rows", 0, 1)
    assert found("mutant_no_average")["error"] == "ProcessError"
    assert abs(np.subtract(found("mutant_scale")["losses"], one["losses"])).max() > 1.0
    one = found("neural_baseline", 0, 1)
    assert abs(params(found("mutant_baseline")) - params(one)).max() > 0.01
    assert abs(params(found("mutant_last_iterate")) - params(found("averaged"))).max() > 0.01
    uneven = found("uneven", 0, 1)
    assert abs(np.subtract(found("mutant_unweighted")["losses"], uneven["losses"])).max() > 0.1


@pytest.mark.parametrize(
    ("case", "mean", "variance"),
    [
        # loss 3 z - 4.5, z ~ N(3, 1), the mean of that of two processes
        ("noise", 4.5, 9 / 2),
        # 24 / 8 times the sum of that of 8 rows, whichever process has them
        ("local_noise", 108.0, 648.0),
    ],
)
def test_processes_draw_their_own(found, case, mean, variance):
    losses = np.array(found(case)["losses"])
    assert losses.tolist() == found(case, 1)["losses"]

    def z_of_variance(losses):
        return (np.var(losses) / variance - 1) / np.sqrt(2 / len(losses))

    assert abs(losses.mean() - mean) < 5 * np.sqrt(variance / len(losses))
    assert abs(z_of_variance(losses)) < 5
    assert z_of_variance(found(f"mutant_same_{case}")["losses"]) > 8


def test_ctrl_c_of_one_ends_all(found):
    ends = [found("interrupted", rank) for rank in range(2)]
    assert ends[0]["losses"] == ends[1]["losses"]
    assert 6 <= len(ends[0]["losses"]) < 500
    assert all(end["stopped"].startswith("interrupted") for end in ends)


def test_it_goes_on_from_a_checkpoint_of_the_first(found):
    ends = [found("resumed", rank) for rank in range(2)]
    for end in ends:
        assert end["first"] == 12
        assert end["again"]["losses"] == end["whole"]["losses"]
        assert end["again"]["params"] == end["whole"]["params"]
        assert end["again"]["state"] == end["whole"]["state"] == ends[0]["whole"]["state"] != {}
    assert [len(end["files"]) for end in ends] == [2, 0]
    other = ends[0]["alone"]
    assert other["losses"][:20] == ends[0]["whole"]["losses"]
    assert len(other["losses"]) == 24
    assert any("from a checkpoint of 2" in note for note in other["notes"])


def test_a_loss_that_is_no_number_in_one(found):
    ends = [found("nan", rank) for rank in range(2)]
    assert [end["error"] for end in ends] == ["NotFiniteError"] * 2
    assert "in process 1 of 2: step 4" in ends[0]["text"]
    assert "argument 'x' has 8 nan" in ends[0]["text"]
    kept, reference = [found("nan_params", rank) for rank in range(2)], found("nan_reference")
    assert [one["steps"] for one in kept] == [2, 2]  # the step before is undone
    assert kept[0]["params"] == kept[1]["params"] == reference["params"]


@pytest.mark.parametrize("case", FAILING)
def test_an_error_in_one_ends_all(found, case):
    here, there = found(case, 1), found(case, 0)
    assert here["error"] == FAILING[case]
    assert there["error"] == "ProcessError"
    assert f"in process 1 of 2: {FAILING[case]}" in there["text"]
    assert here["steps"] == there["steps"] > 0


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_all(found, case):
    kind, text = REFUSED[case]
    for rank in range(2):
        end = found(case, rank)
        assert (end["error"], text in end["text"]) == (kind, True)


def test_processes_may_fit_alone(found):
    ends = [found("alone", rank) for rank in range(2)]
    assert ends[0]["losses"] == found("rows", 0, 1)["losses"]
    assert ends[0]["params"] != ends[1]["params"]


def test_the_script_of_the_docs(found):
    """By its two processes, with a result in each."""
    ends = [found("of_the_docs", rank) for rank in range(2)]
    assert ends[0]["losses"] == ends[1]["losses"] and len(ends[0]["losses"]) == 200
    assert [end["count"] for end in ends] == [2, 2]
    assert any("2 processes has its share of the rows" in note for note in ends[0]["notes"])


def test_a_process_that_is_killed_ends_the_others(found):
    end = found("killed")
    assert end["error"] == "ProcessError"
    assert "another process of the group is gone, or does not answer" in end["text"]
    assert end["seconds"] < 60  # at once, and not when it is no longer waited for
    assert end["steps"] >= 6


def test_a_process_that_does_not_answer_is_not_waited_for_for_ever(found):
    end = found("stuck")
    assert end["error"] == "ProcessError"
    assert "is gone, or does not answer" in end["text"]
    assert end["steps"] >= 3
