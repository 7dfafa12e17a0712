"""Programs that use packages from PyPI cannot tell that they run under `python-mpi`.

Neither the modules that they see, nor their order, nor what importing them did, printed, warned of or raised differs
from plain Python, on any rank, in a first run and in one with the profile of an earlier.
"""

import re
import shutil
import textwrap

import pytest
from compare.packages import FEW, GROUPS, PROGRAMS
from mpi import BIN
from pythons import Environment, environment_of
from snapshots import PROGRAM, differences, expected, take

VERSIONS = ("3.9", "3.11", "3.14", "3.15")
"""The main version, the oldest, and the newest for which most and some packages have wheels."""

LIMIT_S = 300
RANKS = 2
TAKES_LONG = "mpiimport: rank [0-9]+ (on .* has waited [0-9]+ s for |.*, [0-9]+ s$)"
"""What is said of what takes long, as on a busy machine."""
OF_LAUNCHER = ("PMI_", "MPI_LOCAL", "MPIR_", "HYD")
OWN_OUTPUT = """
"$@" > "$SNAPSHOT_TO/$PMI_RANK.out" 2> "$SNAPSHOT_TO/$PMI_RANK.err" && exit
status=$?; cat "$SNAPSHOT_TO/$PMI_RANK.err" >&2; exit $status
"""
# Ranks that use pytest's folder for temporary files together hinder each other when they remove what is old there.
OWN_TEMPORARY_FILES = """
export PYTEST_DEBUG_TEMPROOT="$SNAPSHOT_TO/$PMI_RANK"; mkdir "$PYTEST_DEBUG_TEMPROOT"
"""
SETTINGS = {
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "always",
    "OMP_NUM_THREADS": "1",
    "SNAPSHOT_MODULES": "1",
    "MPIIMPORT_PROFILE": "always",
}


OWN_TESTS = {
    "numpy": ["numpy.linalg.tests.test_regression", "numpy.tests.test_lazyloading", "numpy.tests.test_ctypeslib"],
    "scipy": ["scipy.constants"],
    "pandas": ["pandas.tests.libs"],
    "scikit-learn": ["sklearn.tests.test_init", "sklearn.utils.tests.test_deprecation"],
    "networkx": ["networkx.algorithms.tests.test_core", "networkx.tests.test_lazy_imports"],
    "sympy": ["sympy.core.tests.test_symbol"],
    "h5py": ["h5py.tests.test_h5"],
    "astropy": ["astropy.units.tests.test_units"],
    "dask[array,dataframe]>=2024": ["dask.tests.test_utils"],
    "xarray": ["xarray.tests.test_utils"],
    "pyarrow": ["pyarrow.tests.test_scalars"],
    "numba": ["numba.tests.test_range"],
    "zope.interface": ["zope.interface.tests.test_verify"],
}
"""Modules of quick tests, which the packages bring."""


def observe(environment, folder, executable, program, ranks, env):
    """Run a program on all ranks. Return what each rank was like in the end, and what it wrote."""
    arguments = ["-c", OWN_OUTPUT, "sh", executable, program, "an argument"]
    observed, _ = take(environment, folder, "sh", *arguments, ranks=ranks, env=env, timeout_s=LIMIT_S)
    for rank, one in enumerate(observed):
        one["environ"] = {name: value for name, value in one["environ"].items() if not name.startswith(OF_LAUNCHER)}
        for stream in ("out", "err"):
            lines = (folder / ("%d.%s" % (rank, stream))).read_text().splitlines()
            one[stream] = [line for line in lines if not re.match(TAKES_LONG, line)]
    return observed


def assert_cannot_tell(environment, folder, names, sizes, env=()):
    """Compare a program that uses these packages with plain Python, once for each number of ranks."""
    shutil.copy(PROGRAM, folder)
    parts = ["import snapshot", "import importlib.metadata, sys, traceback", *map(PROGRAMS.get, names)]
    program = folder / "program.py"
    program.write_text("\n".join([*map(textwrap.dedent, parts), "snapshot.main()"]))
    env = {**SETTINGS, "HOME": str(folder), "MPIIMPORT_CACHE_DIR": str(folder / "cache"), **dict(env)}
    (plain,) = observe(environment, folder / "plain", environment.python, program, 1, env)
    assert set(names) == {"none"} or len(plain["described"]) > 100
    found = []
    for number, ranks in enumerate(sizes):
        ours = observe(environment, folder / str(number), environment.python_mpi, program, ranks, env)
        for rank, one in enumerate(ours):
            lines = differences(expected(plain, one, rank), one)
            found += ["run %d, rank %d of %d: %.2000s" % (number, rank, ranks, line) for line in lines]
    assert not found, "\n".join(found)
    assert len([*folder.glob("cache/profiles/*.profile")]) == 1


def test_a_program_cannot_tell(tmp_path):
    assert_cannot_tell(Environment(BIN), tmp_path, FEW, sizes=(2, 2))


FAILING = """
    from mpi4py import MPI
    import sqlalchemy

    MPI.COMM_WORLD.Split()
    if MPI.COMM_WORLD.rank < MPI.COMM_WORLD.size - 1:
        MPI.COMM_WORLD.recv(source=MPI.COMM_WORLD.size - 1)
    with sqlalchemy.create_engine("sqlite://").connect() as connection:
        connection.execute(sqlalchemy.text("select missing"))
"""


def test_an_uncaught_error_of_a_package_reads_the_same(script):
    environment, program = Environment(BIN), script(FAILING)
    plain = environment.run(1, environment.python, program)
    ours = environment.run(2, environment.python_mpi, program)
    text, end, _ = ours.stderr.partition("mpiimport: rank 1 ")
    assert "sqlalchemy.exc.OperationalError" in text
    assert end
    assert (ours.returncode, text, ours.stdout) == (plain.returncode, plain.stderr, plain.stdout)


@pytest.fixture(scope="module", params=VERSIONS)
def packages(request):
    """An environment of each version in turn, with all packages that have a wheel for it."""
    return environment_of(request.param, tuple(PROGRAMS), "-packages")


def available(environment, requirements):
    """Return those that are installed. Skip where none is."""
    names = [name for name in requirements if not (environment.bin.parent / ("no-" + name)).exists()]
    if not names:
        pytest.skip("no wheel of %s for this version" % ", ".join(requirements))
    return names


@pytest.mark.nightly
@pytest.mark.parametrize("group", GROUPS)
def test_a_program_cannot_tell_with_any_package(packages, tmp_path, group):
    assert_cannot_tell(packages, tmp_path, available(packages, GROUPS[group]), sizes=(2, 2, 4, 1))


@pytest.mark.nightly
def test_a_program_cannot_tell_while_nothing_is_compiled_yet(packages, tmp_path):
    env = {"PYTHONPYCACHEPREFIX": str(tmp_path / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert_cannot_tell(packages, tmp_path, available(packages, FEW), sizes=(2, 2), env=env)


@pytest.mark.nightly
@pytest.mark.parametrize("name", OWN_TESTS)
def test_the_tests_that_a_package_has_end_the_same(packages, tmp_path, name):
    available(packages, [name])
    arguments = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "--pyargs", *OWN_TESTS[name]]
    plain, ours = (
        reports_of_pytest(packages, tmp_path / kind, executable, ranks, arguments)
        for kind, executable, ranks in (("plain", packages.python, 1), ("ours", packages.python_mpi, RANKS))
    )
    assert re.search("[0-9] passed", plain[0][1]), plain
    for rank, report in enumerate(ours):
        assert report == plain[0], "rank %d: %d\n%s%s" % (rank, *report)


def reports_of_pytest(environment, folder, executable, ranks, arguments):
    """Return for each rank what pytest wrote, without the time it took."""
    folder.mkdir()
    env = {"SNAPSHOT_TO": str(folder), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HOME": str(folder.parent)}
    command = ["sh", "-c", OWN_TEMPORARY_FILES + OWN_OUTPUT, "sh", executable, *arguments]
    result = environment.run(ranks, *command, cwd=folder.parent, env=env, timeout_s=LIMIT_S)
    texts = [[(folder / ("%d.%s" % (rank, name))).read_text() for name in ("err", "out")] for rank in range(ranks)]
    return [(result.returncode, re.sub(r"=+ (.*) in [0-9.]+s\b.*", r"\1", out), err) for err, out in texts]


def test_each_package_is_in_a_group():
    assert sorted(PROGRAMS) == sorted(name for names in GROUPS.values() for name in names)
