"""Settings of the whole test run: eight virtual CPU devices, Keras on JAX, float64 on request, what may be skipped."""

import gc
import importlib.metadata
import os
import subprocess
import tempfile

# Before the first import of jax or keras; both read them once.
# Most of the suite's time would be compiling; nothing here runs long enough for optimised code, or code in parts, to pay.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *(["--xla_backend_optimization_level=0"] if not os.path.exists("/dev/nvidia0") else []),  # which no GPU has
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
).strip()
# Without the MLIR emitters compiling takes a third of the time. Later versions have no others, and abort on an unknown flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["KERAS_BACKEND"] = "jax"
# Two workers have two cores: a second thread of a library would wait for its turn, and a small QR a hundred times as long.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
# Of what is traced nobody reads where it came from.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# What one worker, or a process that a test starts, has compiled the others need not: they inherit the folder of the first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="s2s_jax-compiled-")  # kept for as long as the run
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis
import jax
import pytest

from s2s_jax.recurrence import cuda
from tests.alone import pytest_runtest_protocol as pytest_runtest_protocol

# The same examples in every run, and no folder of examples left behind.
hypothesis.settings.register_profile("s2s_jax", deadline=None, derandomize=True, database=None, max_examples=25)
hypothesis.settings.load_profile("s2s_jax")

# Tracing makes many small objects, which Python would look through again and again.
gc.set_threshold(200_000, 50, 100)


# Folders whose files take longest go first: a worker would be alone with one of them in the end.
LONG = ("training", "experiments", "recurrence")


def _compiles_fast():
    """Whether there is an nvcc that knows how to: older ones refuse the flag."""
    try:
        told = subprocess.run([*cuda.nvcc(), "--help"], capture_output=True, text=True, check=False).stdout
    except RuntimeError:
        return False
    return "--Ofast-compile" in told


# Without a GPU nothing will run what nvcc makes: that it is made is all that is seen.
if jax.default_backend() == "cpu" and _compiles_fast():
    os.environ["NVCC_APPEND_FLAGS"] = "-Ofc=max"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file is one worker's, where nothing else is asked for: what its tests share, compiled or trained, is made once."""
    from xdist.scheduler import LoadFileScheduling

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False  # the order is ours, see `LONG`
    return LoadFileScheduling(config, log)


def pytest_addoption(parser):
    parser.addoption("--one-of-each", action="store_true", help="of a test's cases run the first alone")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.parent.name not in LONG)
    if config.getoption("one_of_each"):
        first = {}
        for item in items:
            first.setdefault(item.nodeid.partition("[")[0], item)
        kept = set(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = first.values()
    if jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("accelerator"):
                item.add_marker(pytest.mark.skip(reason="there is no accelerator"))


@pytest.fixture(autouse=True)
def _on_cpu(request):
    """The tolerances are those of a CPU; only tests marked `accelerator` run elsewhere."""
    if jax.default_backend() == "cpu" or request.node.get_closest_marker("accelerator"):
        yield
    else:
        with jax.default_device(jax.devices("cpu")[0]):
            yield


@pytest.fixture(scope="module", autouse=True)
def _forgets_what_was_compiled():
    """Each compiled program holds memory maps, and a process has only so many: past them XLA dies of a segmentation fault."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Name of the floating dtype to compute in; float64 is switched on for the test."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield "float64"
