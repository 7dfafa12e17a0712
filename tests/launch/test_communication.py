"""What programs do with MPI while they import: collectives, threads, an early end, other programs, many ranks."""

import re
import textwrap

import mpi as mpis
import pytest
from compared import PYTHONS, SAY, said, same_as_plain

HEAD = """
import importlib, threading, time
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, size = comm.rank, comm.size
ours = getattr(sys, "mpiimport", None)
NAMES = ["colorsys", "csv", "decimal", "fractions", "ftplib", "plistlib", "wave", "xml.dom.minidom", "pkg.one"]
NAMES += ["cal" + "endar", "xml.sax." + "saxutils", "pkg." + "two", "no_such_" + "module", "sta" + "tistics"]

def fetch(name):
    try:
        return importlib.import_module(name).__file__
    except ImportError as cause:
        return str(cause)

def never():
    import colorsys, csv, decimal, fractions, ftplib, plistlib, wave, xml.dom.minidom, pkg.one, numpy.fft
"""


@pytest.fixture
def program(script):
    """Write a program, and files beside it for it to import."""
    for name in ("__init__", "one", "two"):
        script("", "pkg/%s.py" % name)
    return script


INTERLEAVED = """
first = 0 if os.environ["MPIIMPORT_POLICY"] == "lockstep" else rank
halves, own = comm.Split(rank % 2, rank), comm.Dup()
ring = comm.Create_cart([size], periods=[True])
bridge = halves.Create_intercomm(0, comm, 1 - rank % 2)
memory = bytearray(size)
window = MPI.Win.Create(memory, comm=comm)
heard = []
for turn in range(len(NAMES)):
    name, root = NAMES[(turn + first) % len(NAMES)], turn % size
    data = bytearray([rank])
    begun = [own.Ibcast(data, root), comm.isend((turn, rank), (rank + 1) % size, turn)]
    window.Fence()
    window.Put(bytearray([turn]), (rank + 1) % size, rank)
    found = fetch(name)
    window.Fence()
    received = comm.recv(source=MPI.ANY_SOURCE, tag=MPI.ANY_TAG)
    MPI.Request.Waitall(begun)
    heard.append((
        found, received, list(data), list(memory), halves.allreduce(turn), bridge.allreduce(rank), ring.Shift(0, 1),
        comm.gather(name, root), comm.alltoall([rank] * size),
    ))
    comm.Ibarrier().Wait()
window.Free()
say(rank, heard, comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG))
"""


@pytest.mark.parametrize("policy", ["opening", "locate", "lockstep"])
def test_collectives_and_imports_interleave(two_mpis, program, policy):
    env = {"MPIIMPORT_POLICY": policy, "PYTHONHASHSEED": "0", "MPIIMPORT_TIMEOUT": "20", "OMPI_MCA_osc": "^ucx"}
    assert len(same_as_plain(two_mpis, program, HEAD + INTERLEAVED, ranks=4, env=env)) == 4


# Who may communicate while others import, at each level of MPI.
THREADS = {
    "single": """
        for name in names:
            heard.append((fetch(name), own.allreduce(rank)))
    """,
    "funneled": """
        importer = threading.Thread(target=lambda: found.extend(map(fetch, names)))
        importer.start()
        heard = [own.allreduce(turn) for turn in range(100)]
        importer.join()
    """,
    "serialized": """
        talker = threading.Thread(target=lambda: heard.extend(own.allreduce(turn) for turn in range(100)))
        talker.start()
        found = [*map(fetch, names)]
        talker.join()
    """,
    "multiple": """
        def talk(comm):
            while comm.allreduce(not done.is_set(), MPI.LAND):
                heard.append(comm.sendrecv(rank, (rank + 1) % size, source=MPI.ANY_SOURCE))

        done = threading.Event()
        talkers = [threading.Thread(target=talk, args=[comm.Dup()]) for _ in range(2)]
        for talker in talkers:
            talker.start()
        for name in names:
            found.append(fetch(name))
        if ours:
            ours.deliver("quo" + "pri", "sche" + "d")
            with ours.collective:
                fetch("net" + "rc")
        found += map(fetch, ["quopri", "sched", "netrc"])
        done.set()
        for talker in talkers:
            talker.join()
        heard = sorted(set(heard))
    """,
}


@pytest.mark.parametrize("level", THREADS)
def test_threads_communicate_while_others_import(two_mpis, program, level):
    begin, end = (
        "names, heard, found, own = NAMES[rank:] + NAMES[:rank], [], [], comm.Dup()\n",
        "say(rank, heard, found)\n",
    )
    text = HEAD + begin + textwrap.dedent(THREADS[level]) + end
    env = {"MPI4PY_RC_THREAD_LEVEL": level, "MPIIMPORT_TIMEOUT": "20"}
    assert len(same_as_plain(two_mpis, program, text, ranks=3, env=env)) == 3


# Ends

AFTERWARDS = """
found = [fetch(name) for name in NAMES]
import numpy.fft
say(rank, found, abs(numpy.fft.fft(numpy.ones(4))[0]), numpy.fft.__file__)
"""
STORED = {"MPIIMPORT_STORE": "always"}


@pytest.mark.parametrize("early", [0, 2])
def test_one_rank_ends_long_before_the_others_import(two_mpis, program, early):
    text = HEAD + "if rank == %d:\n    say(rank, 'ends')\n    sys.exit()\ntime.sleep(0.3 * rank)\n" % early
    assert len(same_as_plain(two_mpis, program, text + AFTERWARDS, ranks=3, env=STORED)) == 3


FINALISED = """
seen = []
late = threading.Thread(target=lambda: [time.sleep(0.2), seen.append(fetch("pl" + "istlib"))])
while_waiting = rank == 0 and os.environ["MPIIMPORT_POLICY"] != "lockstep"
if while_waiting:
    late.start()
time.sleep(0.7 * rank)
MPI.Finalize()
if while_waiting:
    late.join()
if ours:
    ours.deliver("json.tool")
    with ours.collective:
        fetch("net" + "rc")
say(rank, seen, MPI.Is_finalized())
"""


@pytest.mark.parametrize("policy", ["opening", "lockstep"])
def test_imports_go_on_after_mpi_was_finalised(two_mpis, program, policy):
    env = {"MPIIMPORT_POLICY": policy, "PYTHONHASHSEED": "0", "MPIIMPORT_TIMEOUT": "20", **STORED}
    assert len(same_as_plain(two_mpis, program, HEAD + FINALISED + AFTERWARDS, env=env)) == 4


# Worlds of several programs

SPAWN = (
    HEAD
    + """
parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    half = comm.Split(rank == 0, rank)
    children = half.Spawn(sys.argv[1], [__file__, sys.argv[1]], maxprocs=2)
    found = [fetch(name) for name in NAMES[rank:]]
    say(rank, found, children.allreduce(1), children.allgather(rank), comm.allreduce(1))
    children.Disconnect()
else:
    assert bool(ours) == sys.argv[1].endswith("python-mpi")
    found = [fetch(name) for name in NAMES[::-1]]
    say(10 + parent.allreduce(2), size, found, parent.allgather(rank))
    parent.Disconnect()
"""
)


@pytest.mark.parametrize("child", PYTHONS)
def test_a_parent_goes_on_importing_while_spawned_processes_start(two_mpis, program, child):
    path = program(SAY + SPAWN)
    env = {"OMPI_MCA_btl": "self,sm,tcp"}
    plain, mine = (
        two_mpis.run(3, python, path, mpis.BIN / spawned, env=env, timeout_s=30)
        for python, spawned in (("python", "python"), ("python-mpi", child))
    )
    assert said(mine) == said(plain)
    assert len(said(mine)) == 7


WORLD = """
from mpi4py import MPI
import pkg.%s
fetched = fetch("pkg." + "two")
say(MPI.COMM_WORLD.rank, sys.argv, sys.path[0], __name__, fetched, MPI.COMM_WORLD.allgather(pkg.__file__))
"""
"""A program of one's own in a world of several."""


def in_one_world(mpi, *programs, python="python-mpi", **keywords):
    """Start each program on one rank of the same world."""
    line = []
    for arguments in programs:
        line += [":", "-n", "1", python, *arguments]
    return mpi.run(1, *line[3:], **keywords)


def test_each_of_several_programs_runs_on_its_ranks(two_mpis, program, tmp_path):
    for folder in ("a", "b"):
        for name in ("__init__", "one", "two", "three"):
            program("", "%s/pkg/%s.py" % (folder, name))
        program(SAY + HEAD + WORLD % "one", "%s/main.py" % folder)
    program(SAY + HEAD + WORLD % "three", "b/__main__.py")
    programs = [
        ["a/main.py", "1"],
        ["b/main.py", "2"],
        ["b", "3"],
        ["-m", "a.main", "4"],
        ["-c", SAY + HEAD + WORLD % "one", "5"],
        ["a/main.py", "6"],
    ]
    for chosen in (programs, programs[::-1], programs[1:3]):
        plain = said(in_one_world(two_mpis, *chosen, python="python", cwd=tmp_path))
        env = {"MPIIMPORT_PROFILE": str(tmp_path / "profile")}
        for _ in range(2):
            assert said(in_one_world(two_mpis, *chosen, cwd=tmp_path, env=env)) == plain


@pytest.mark.parametrize("wrong", [["absent.py"], ["-m", "absent"], ["-c", "x = ("]], ids=" ".join)
def test_a_program_among_others_that_cannot_be_started_ends_the_job(two_mpis, program, tmp_path, wrong):
    right = [program(HEAD + "comm.barrier()\n")]
    message = mpis.run(["python", *wrong], cwd=tmp_path).stderr.splitlines()[-1]
    for programs in ((right, wrong), (wrong, right)):
        result = in_one_world(two_mpis, *programs, cwd=tmp_path, timeout_s=30)
        assert result.returncode not in (0, 124), result
        assert message in result.stderr, result


def test_programs_with_different_policies_are_told_apart(two_mpis, program):
    path = program("print('ran')")
    result = in_one_world(two_mpis, [path], ["--policy", "locate", path], timeout_s=30)
    assert (result.returncode, result.stdout) == (2, ""), result
    assert re.search(r"mpiimport: rank 0 runs .*, but rank 1 on \S+ .* --policy locate\. .*same options", result.stderr)


@pytest.mark.parametrize(("mpi", "other"), [(mpis.MPICH, "true"), (mpis.OPENMPI, "sleep 60")], ids=str)
def test_beside_a_program_without_mpi_local_runs_and_otherwise_the_remedy_is_named(mpi, program, other):
    ours = ["python-mpi", program("print('ran')")]
    result = mpi.run(1, *ours, ":", "-n", "1", "true", env={"MPIIMPORT_LOCAL": "1"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n", ""), result

    both = [*ours, ":", "-n", "1", *ours, ":", "-n", "1", *other.split()]
    result = mpi.run(1, *both, env={"MPIIMPORT_TIMEOUT": "2"}, timeout_s=30)
    assert result.returncode not in (0, 124), result
    for waited in ("has waited 1 s", "waited 2 s"):
        message = r"^mpiimport: a rank on \S+ %s for every rank .*MPIIMPORT_LOCAL=1\.$" % waited
        assert len(re.findall(message, result.stderr, re.MULTILINE)) == 1, result


# Many ranks

MANY = """
found = fetch(NAMES[rank % len(NAMES)])
say(rank, found, comm.allreduce(1), comm.allgather(rank) == [*range(size)])
"""


def test_64_ranks_on_one_machine(one_mpi, program):
    path = program(SAY + HEAD + MANY)
    ours = said(one_mpi.run(64, "python-mpi", path, env={"OMPI_MCA_mpi_yield_when_idle": "1"}, timeout_s=120))
    plain = said(one_mpi.run(1, "python", path))
    assert ours[0][1] == plain[0][1]
    assert [line[0:1] + line[2:] for line in ours] == [[rank, 64, True] for rank in range(64)]
