"""Every test starts from double precision, an empty param store and a known seed."""

import gc
import importlib.util
import os
import re
import zlib
from collections import defaultdict
from pathlib import Path

import pytest

from tests.libraries import LIBRARIES

# Compilation is most of the time of the tests: let XLA do it quickly rather than well. The flags after
# the first halve it; they are those of jaxlib in constraints.txt, and another may not know them.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the kernels of notebooks, too
os.environ.setdefault(
    "NPROC", "1"
)  # the threads of XLA: the workers of pytest-xdist are the parallelism
# A trace is many small objects that live as long as it: at Python's 700 their passes through the
# collector are a tenth of the time.
gc.set_threshold(100_000)


FEW = 4  # a test with fewer cases runs each in both libraries
NAME = re.compile(r"\b(numpyro|pyro)\b")
SLOW = Path(__file__).parent / "slow.txt"


def pytest_addoption(parser):
    parser.addoption(
        "--short",
        action="store_true",
        help=f"leave out the cases of {SLOW.name}, and run each case of a test that has {FEW} and more in one library",
    )


def pytest_collection_modifyitems(config, items):
    """What `--short` leaves out; each test keeps a case."""
    if not config.getoption("--short"):
        return
    slow = {case: i for i, case in enumerate(SLOW.read_text().splitlines())}  # the quickest first
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    out = set()
    for test, cases in tests.items():
        left_out = {item for item in cases if item.nodeid in slow} | set(_in_turn(test, cases))
        if len(left_out) == len(cases):
            left_out.remove(min(cases, key=lambda item: slow.get(item.nodeid, -1)))
        out |= left_out
    config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = [item for item in items if item not in out]


def _in_turn(test, items):
    """The case of one library of each that is in both: they share the core, and the hash says in which it runs."""
    cases = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and NAME.search(item.callspec.id):
            cases[NAME.sub("", item.callspec.id)].append(item)
    pairs = {case: both for case, both in cases.items() if len(both) == 2}
    if len(pairs) < FEW:
        return []
    return [both[zlib.crc32((test + case).encode()) % 2] for case, both in pairs.items()]


# `make matrix` has environments with one of them.
INSTALLED = [name for name in LIBRARIES if importlib.util.find_spec(name)]


@pytest.fixture(params=INSTALLED)
def lib(request):
    """Each library in turn, in the words of `tests.libraries`."""
    return LIBRARIES[request.param]()


if "pyro" in INSTALLED:

    @pytest.fixture(autouse=True, scope="session")
    def one_thread_per_worker():
        import torch

        torch.set_num_threads(1)  # the workers of pytest-xdist are the parallelism

    @pytest.fixture(autouse=True)
    def clean_pyro():
        import pyro
        import torch

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        previous = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(previous)
        pyro.clear_param_store()
