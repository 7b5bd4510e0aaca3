"""Every test starts from double precision, an empty param store and a known seed."""

import gc
import os

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


@pytest.fixture(params=LIBRARIES)
def lib(request):
    """Each library in turn, in the words of `tests.libraries`."""
    return LIBRARIES[request.param]()


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
