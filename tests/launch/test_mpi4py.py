"""mpi4py finds MPI running, on the same library and as it would have started it; what we do there cannot be seen."""

import mpi as mpis
import pytest
from compared import PYTHONS, SAY, said, same_as_plain

COMMUNICATORS = """
import pickle
from mpi4py import MPI

for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
    errors = comm.Get_errhandler()
    say(
        MPI.COMM_WORLD.rank, comm.size, comm.Get_name(), comm.group.size, comm.is_inter, comm.topology,
        [errors == known for known in (MPI.ERRORS_RETURN, MPI.ERRORS_ARE_FATAL)],
        [comm.Get_attr(key) for key in (MPI.TAG_UB, MPI.WTIME_IS_GLOBAL, MPI.UNIVERSE_SIZE, MPI.APPNUM)],
        sorted(comm.Get_info().items()) if comm == MPI.COMM_SELF else None,
    )
say(
    MPI.COMM_WORLD.rank, MPI.Is_initialized(), MPI.Is_finalized(), MPI.Is_thread_main(), MPI.Query_thread(),
    MPI.Get_version(), MPI.Get_library_version(), MPI.Get_processor_name(), MPI.__file__, MPI.__spec__.origin,
    [getattr(MPI.rc if hasattr(MPI, "rc") else __import__("mpi4py").rc, name) for name in ("initialize", "finalize")],
)
say(MPI.COMM_WORLD.rank, len(pickle.dumps(MPI.__spec__)) > 0, vars(MPI.__loader__))
maps = {line.split()[-1] for line in open("/proc/self/maps") if "/libmpi" in line}
say(MPI.COMM_WORLD.rank, sorted(maps))
assert len(maps) == 1, maps
"""


@pytest.mark.parametrize("policy", ["opening", "lockstep"])
def test_communicators_and_library_are_what_plain_python_sees(mpi, script, policy):
    env = {"MPIIMPORT_POLICY": policy, "PYTHONHASHSEED": "0"}
    same_as_plain(mpi, script, COMMUNICATORS, env=env)


def test_extension_module_is_opened_from_the_node_store(mpi, script):
    program = """
import ctypes, pickle
from mpi4py import MPI

maps = {line.split()[-1] for line in open("/proc/self/maps") if "/MPI." in line or "/libmpi" in line}
stored = [path for path in maps if "/mpiimport-" in path]
ours = hasattr(sys, "mpiimport")
assert len(maps) == 2 and len(stored) == ours and all(path.endswith(MPI.__file__) for path in stored), maps
assert bool(ctypes.CDLL(MPI.__file__).PyInit_MPI)
assert maps == {line.split()[-1] for line in open("/proc/self/maps") if "/MPI." in line or "/libmpi" in line}
spec = pickle.loads(pickle.dumps(MPI.__spec__))
say(MPI.COMM_WORLD.rank, repr(MPI), [getattr(spec, name) for name in ("name", "origin", "cached", "has_location")])
say(MPI.COMM_WORLD.rank, MPI.__loader__.path)
say(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1))
"""
    same_as_plain(mpi, script, program, env={"MPIIMPORT_STORE": "always"})


def test_our_messages_are_not_the_programs(two_mpis, script):
    program = """
from mpi4py import MPI

comm = MPI.COMM_WORLD
if comm.rank == 0:
    import wave, xml.dom.minidom, numpy.fft
    __import__("ftp" + "lib")
quiet = [one.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG) for one in (comm, MPI.COMM_SELF) for _ in range(100)]
comm.Barrier()
if hasattr(sys, "mpiimport"):
    sys.mpiimport.deliver("json.tool")
requests = [comm.isend((comm.rank, turn), (comm.rank + 1) % comm.size, turn) for turn in range(20)]
received = [comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG) for _ in requests]
MPI.Request.waitall(requests)
import csv, decimal
say(comm.rank, any(quiet), received, comm.Dup().allgather(comm.rank), comm.Iprobe())
"""
    assert len(same_as_plain(two_mpis, script, program, ranks=3)) == 3


INITIALISE = """
import mpi4py
%s
from mpi4py import MPI
before = MPI.Is_initialized()
result = MPI.%s
say(MPI.COMM_WORLD.rank, MPI.Is_initialized(), result, MPI.COMM_WORLD.allreduce(1), MPI.%s.__name__)
if not hasattr(sys, "mpiimport"):
    assert not before
%s
say(MPI.COMM_WORLD.rank if not MPI.Is_finalized() else -1, MPI.Is_finalized())
import wave
"""


@pytest.mark.parametrize("end", ["MPI.Finalize()", ""], ids=["finalize", "no-finalize"])
@pytest.mark.parametrize("call", ["Init()", "Init_thread()", "Init_thread(required=MPI.THREAD_MULTIPLE)"])
def test_program_may_initialise_mpi_itself(two_mpis, script, call, end):
    chosen = "mpi4py.rc.initialize = False" if end else "mpi4py.rc.initialize, mpi4py.rc.finalize = False, True"
    same_as_plain(two_mpis, script, INITIALISE % (chosen, call, call.partition("(")[0], end))


def test_program_may_ask_before_it_initialises(two_mpis, script):
    program = """
from mpi4py import MPI
if not MPI.Is_initialized():
    MPI.Init_thread()
say(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(1))
MPI.Finalize()
"""
    same_as_plain(two_mpis, script, program, env={"MPI4PY_RC_INITIALIZE": "0"})


def test_program_may_use_sessions_beside_the_world(two_mpis, script):
    program = """
from mpi4py import MPI
session = MPI.Session.Init()
group = session.Create_group("mpi://WORLD")
comm = MPI.Intracomm.Create_from_group(group)
import wave
say(MPI.COMM_WORLD.rank, comm.rank, comm.allreduce(1), __import__("color" + "sys").__file__)
comm.Free()
group.Free()
session.Finalize()
"""
    same_as_plain(two_mpis, script, program)


def test_second_initialisation_fails_as_without_us(script):
    program = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
MPI.Init()
try:
    MPI.Init()
except MPI.Exception as cause:
    say(MPI.COMM_WORLD.rank, cause.Get_error_class())
"""
    path = script(SAY + program)
    results = [mpis.MPICH.run(2, python, path) for python in PYTHONS]
    assert len({result.returncode for result in results}) == 1, results
    assert sorted(results[0].stdout) == sorted(results[1].stdout)


LEVEL = "from mpi4py import MPI\nsay(MPI.COMM_WORLD.rank, MPI.Query_thread())\n"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"MPI4PY_RC_THREADS": "0"},
        {"MPI4PY_RC_THREADS": "false", "MPI4PY_RC_THREAD_LEVEL": "multiple"},
        {"MPI4PY_RC_THREADS": "1", "MPI4PY_RC_THREAD_LEVEL": "single"},
        {"MPI4PY_RC_THREAD_LEVEL": "funneled"},
        {"MPI4PY_RC_THREAD_LEVEL": "serialized"},
    ],
    ids=lambda env: " ".join(name[10:] + "=" + value for name, value in env.items()),
)
def test_thread_level_is_the_one_mpi4py_would_ask_for(two_mpis, script, env):
    same_as_plain(two_mpis, script, LEVEL, env=env)


@pytest.mark.parametrize(("name", "level"), [*enumerate(["single", "funneled", "serialized", "multiple"])])
def test_thread_level_of_our_option_comes_first(script, name, level):
    result = mpis.MPICH.run(
        2, "python-mpi", "--thread-level", level, script(SAY + LEVEL), env={"MPI4PY_RC_THREAD_LEVEL": "multiple"}
    )
    assert said(result) == [[0, name], [1, name]]


RUN = """
from mpi4py import MPI
comm = MPI.COMM_WORLD
if comm.rank == 1:
    with open(os.path.dirname(__file__) + "/said", "a") as file:  # MPICH may lose what a rank prints before it aborts
        print(sys.argv[1:], __name__, file=file)
    %s
comm.recv(source=1)
"""


@pytest.mark.parametrize("end", ["raise ValueError('the cause')", "sys.exit(3)", "import raises", "comm.Abort(4)"])
def test_mpi4py_run_ends_the_job_when_one_rank_fails(two_mpis, script, end):
    script("raise ValueError('the cause')", "raises.py")
    path = script(SAY + RUN % end)
    results = [two_mpis.run(2, python, "-m", "mpi4py.run", path, "a", "-b", timeout_s=30) for python in PYTHONS]
    assert not any(result.timed_out for result in results), results
    assert len({result.returncode for result in results}) == 1, results
    assert results[0].returncode != 0
    assert (path.parent / "said").read_text() == "['a', '-b'] __main__\n" * 2, results
    assert "raise" not in end or "ValueError: the cause" in results[1].stderr, results


def test_mpi4py_run_passes_options_modules_and_commands_on(script, tmp_path):
    script(
        SAY + "from mpi4py import MPI\nsay(MPI.COMM_WORLD.rank, sys.argv, __name__, __spec__ and __spec__.name)\n",
        "mod.py",
    )
    code = "import mod; mod.say(mod.MPI.COMM_WORLD.rank, mod.sys.argv)"
    for arguments in (["-m", "mod", "a"], ["-c", code, "b"], ["--rc", "recv_mprobe=0", "mod.py", "c"]):
        results = [mpis.MPICH.run(2, python, "-m", "mpi4py.run", *arguments, cwd=tmp_path) for python in PYTHONS]
        assert said(results[1]) == said(results[0])


FUTURES = """
from mpi4py import MPI
from mpi4py.futures import MPICommExecutor, MPIPoolExecutor

def square(x):
    import colorsys, beside
    return x * x, colorsys.__name__, beside.__name__

if __name__ == "__main__":
    with %s as executor:
        if executor is not None:
            say(0, list(executor.map(square, range(6))), executor.submit(pow, 2, 5).result())
            try:
                executor.submit(int, "no number").result()
            except ValueError as cause:
                say(1, str(cause))
"""


@pytest.mark.parametrize(
    ("executor", "options"), [("MPIPoolExecutor()", ["-m", "mpi4py.futures"]), ("MPICommExecutor()", [])]
)
def test_mpi4py_futures(two_mpis, script, executor, options):
    script("", "beside.py")
    heard = same_as_plain(two_mpis, script, FUTURES % executor, *options, ranks=3, timeout_s=30)
    assert len(heard) == 2


def test_benchmark_of_mpi4py_says_the_same():
    results = [mpis.MPICH.run(3, python, "-m", "mpi4py.bench", "helloworld") for python in PYTHONS]
    assert results[1].returncode == 0, results
    assert sorted(results[0].stdout.splitlines()) == sorted(results[1].stdout.splitlines())
