"""The MPI library that is used is the one that mpi4py would use, and it fits the launcher."""

import json
import subprocess
import sysconfig

import mpi as mpis
import pytest

WHICH = "import json, sys; print(json.dumps(sys.mpiimport.stats()), flush=True)\n"
WITH_MPI4PY = WHICH + "from mpi4py import MPI; assert MPI.COMM_WORLD.allreduce(1) == 2\n"
IS_GLOBAL = "import ctypes; assert hasattr(ctypes.CDLL(None), 'MPI_Init') is %s\n"
# The first rank speaks for all; here it comes to it late, when the others have given up.
FIRST_IS_LATE = 'test "${PMI_RANK-$OMPI_COMM_WORLD_RANK}" != 0 || sleep 0.5; exec "$0" "$@"'
FILES = {"mpich": "libmpi.so.12", "openmpi": "libmpi.so.40", "impi": "libmpi.so.12"}


def library_of(mpi):
    return str(mpi.prefix / "lib" / FILES[mpi.name])


def assert_used(library, result):
    """Both ranks used this library, and it made one world of them."""
    assert result.returncode == 0, result
    ranks = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["library"], one["size"]) for one in ranks] == [(str(library), 2)] * 2, result
    assert result.stderr == "", result


def assert_refused(result, *sentences):
    """Nothing ran, and these things were said, once and in this order."""
    assert result.returncode != 0, result
    assert result.stdout == "", result
    assert not result.timed_out, result
    where = 0
    for sentence in sentences:
        assert result.stderr.count(sentence) == 1, (sentence, result)
        where = result.stderr.index(sentence, where)


@pytest.mark.parametrize("variable", ["MPIIMPORT_LIBMPI", "MPI4PY_LIBMPI"])
def test_a_library_can_be_named_in_the_environment(mpi, variable):
    library = library_of(mpi)
    env = {"LD_LIBRARY_PATH": "", variable: "/no/such/libmpi.so:%s" % library}
    assert_used(library, mpi.run(2, "python-mpi", "-c", WITH_MPI4PY, env=env))


def test_of_two_libraries_on_the_path_the_launchers_is_used(two_mpis):
    folders = [str(mpi.prefix / "lib") for mpi in (mpis.OPENMPI, mpis.MPICH)]
    for order in (folders, folders[::-1]):
        env = {"LD_LIBRARY_PATH": ":".join(order)}
        assert_used(library_of(two_mpis), two_mpis.run(2, "python-mpi", "-c", WITH_MPI4PY, env=env))


def test_an_implementation_can_be_chosen_and_its_symbols_are_global(two_mpis):
    program = WHICH + IS_GLOBAL % True
    assert_used(library_of(two_mpis), two_mpis.run(2, "python-mpi", "-I", two_mpis.name, "-c", program))


def test_symbols_are_not_global_unless_asked_for(two_mpis):
    env = {"MPI4PY_MPIABI": two_mpis.name}
    result = two_mpis.run(2, "python-mpi", "-c", WHICH + IS_GLOBAL % False, env=env)
    assert_used(library_of(two_mpis), result)


@pytest.mark.parametrize("mpi", [mpis.MPICH, mpis.IMPI], ids=str)
def test_the_standard_abi_works(mpi):
    library = mpi.prefix / "lib" / "libmpi_abi.so.1"
    env = {"LD_LIBRARY_PATH": "", "MPIIMPORT_LIBMPI": str(library)}
    result = mpi.run(2, "python-mpi", "-c", "import decimal\n" + WHICH, env=env)
    assert_used(library, result)
    assert all(json.loads(line)["modules"]["opening"] for line in result.stdout.splitlines())


def test_a_library_that_is_loaded_already_is_used(two_mpis, tmp_path):
    library = library_of(two_mpis)
    env = {"LD_LIBRARY_PATH": "", "MPIIMPORT_LIBMPI": "/no/such/libmpi.so"}
    assert_used(library, two_mpis.run(2, "python-mpi", "-c", WHICH, env={**env, "LD_PRELOAD": library}))
    loads = "import ctypes; ctypes.CDLL(%r)\nimport mpiimport; mpiimport.install()\n" % library
    assert_used(library, two_mpis.run(2, "python", "-c", loads + WHICH, env=env, cwd=tmp_path))


def test_the_library_that_a_built_mpi4py_is_linked_to_is_used(two_mpis, tmp_path):
    package = tmp_path / "site" / "mpi4py"
    package.mkdir(parents=True)
    (tmp_path / "lib").symlink_to(two_mpis.prefix / "lib")
    (tmp_path / "empty.c").write_text("#include <mpi.h>\nint used(void) { return MPI_Finalize(); }\n")
    module = package / ("MPI" + sysconfig.get_config_var("EXT_SUFFIX"))
    folders = ["-I%s" % (two_mpis.prefix / "include"), "-L%s" % (two_mpis.prefix / "lib")]
    rpath = "-Wl,-rpath,/no/such/folder:$ORIGIN/../../lib"
    build = ["cc", "-shared", "-fPIC", *folders, rpath, "-o", module, tmp_path / "empty.c", "-lmpi"]
    subprocess.run(build, check=True)
    env = {"LD_LIBRARY_PATH": "", "PYTHONPATH": str(tmp_path / "site")}
    library = package / ".." / ".." / "lib" / FILES[two_mpis.name]
    result = two_mpis.run(2, "python-mpi", "-c", WHICH, env=env)
    assert_used(library, result)


def test_every_attempt_is_listed_when_none_works(tmp_path):
    text, old, none = tmp_path / "text.so", tmp_path / "old.so", tmp_path / "none.so"
    text.write_text("INPUT(libmpi.so.12)\n")
    (tmp_path / "old.c").write_text("int MPI_Initialized(int *flag) { return *flag = 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", old, tmp_path / "old.c"], check=True)
    other = library_of(mpis.OPENMPI)
    env = {"MPIIMPORT_LIBMPI": ":".join(map(str, (none, text, old, other)))}
    assert_refused(
        mpis.MPICH.run(2, "sh", "-c", FIRST_IS_LATE, "python-mpi", "-c", WHICH, env=env),
        "mpiimport: no usable MPI library found. Tried:\n",
        "%s: cannot open shared object file" % none,
        "%s: file too short" % text,
        "%s: lacks the function or object `MPI_Finalized`" % old,
        "%s: this is an openmpi library, but the launcher belongs to mpich" % other,
        "Set MPIIMPORT_LIBMPI to",
    )


@pytest.mark.parametrize(
    ("launcher", "library"), [(mpis.MPICH, mpis.OPENMPI), (mpis.OPENMPI, mpis.IMPI)], ids=["mpich", "openmpi"]
)
def test_a_library_of_another_launcher_never_makes_worlds_of_one_rank(launcher, library):
    family = "openmpi" if library is mpis.OPENMPI else "mpich"
    chosen = ["-I", family]  # against the launcher's own choice
    env = {"LD_LIBRARY_PATH": str(library.prefix / "lib")}
    assert_refused(
        launcher.run(2, "sh", "-c", FIRST_IS_LATE, "python-mpi", *chosen, "-c", WHICH, env=env),
        "mpiimport: --implementation or MPIIMPORT_IMPLEMENTATION is `%s`, but the launcher belongs to" % family,
    )


@pytest.mark.parametrize(
    ("launcher", "library"), [(mpis.MPICH, mpis.OPENMPI), (mpis.OPENMPI, mpis.IMPI)], ids=["mpich", "openmpi"]
)
def test_a_loaded_library_of_another_launcher_never_makes_worlds_of_one_rank(launcher, library):
    loaded = "LD_PRELOAD=%s" % library_of(library)
    env = {"LD_LIBRARY_PATH": str(library.prefix / "lib")}
    assert_refused(
        launcher.run(2, "sh", "-c", FIRST_IS_LATE, "env", loaded, "python-mpi", "-c", WHICH, env=env),
        "the launcher started 2 ranks, but `%s` sees only itself" % library_of(library),
    )
