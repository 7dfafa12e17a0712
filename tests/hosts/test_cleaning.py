"""What a job leaves on its hosts, however and whenever it ends: nothing, or what the next run there removes."""

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import mpi as mpis
import pytest
from hosts.cluster import within

LOCAL_FOLDERS = ("dev/shm", "tmp", "var/tmp", "run")
SECONDS = 20
"""More than a busy machine needs to end a job, less than what any rank here waits for."""

HEAD = """\
import os, signal, sys, time
import numpy
from mpi4py import MPI

comm = MPI.COMM_WORLD
last = comm.rank == comm.size - 1

def from_store(name):
    mapped = {line.split()[-1] for line in open("/proc/self/maps") if name in line}
    return bool(mapped) and all(path.startswith("/dev/shm/mpiimport-") for path in mapped)

"""
READY = """\
import scipy.special
ready = all(comm.allgather(from_store("_ufuncs")))
comm.barrier()  # what this imports is in the stores, too
if ready and comm.rank == 0:
    print("ready", flush=True)
comm.barrier()
"""
UNTIL_GO = """\
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """Two hosts for these tests alone: when a job is killed, MPI leaves folders and memory of its own."""
    with new_cluster(hosts=2) as cluster:
        yield cluster


@pytest.fixture
def start(script):
    """Start a program on all ranks of some hosts, with all native code in the node stores."""

    @contextlib.contextmanager
    def start_on(cluster, mpi, hosts, text, *options, name="program.py"):
        program = script(text, name)
        argv = [*cluster.mpi(mpi, 2, hosts=hosts), "python-mpi", "--store", "always", *options, program]
        with cluster.start(argv, timeout_s=6 * SECONDS) as job:
            try:
                yield job
            finally:
                job.kill()

    return start_on


def left(cluster, hosts):
    """Return what is ours of each host's own folders."""
    folders = {host: [cluster.seen_from_here(folder, on=host) for folder in LOCAL_FOLDERS] for host in hosts}
    return {host: sorted(path for one in folders[host] for path in one.glob("*mpiimport*")) for host in hosts}


def with_store(cluster, hosts):
    """Return the hosts that have a store; none has more than one."""
    found = left(cluster, hosts)
    assert all(len(paths) <= 1 for paths in found.values()), found
    return {host for host, paths in found.items() if paths}


@contextlib.contextmanager
def go(cluster, hosts):
    """Let the ranks go on that wait for it."""
    files = [cluster.seen_from_here("tmp/go", on=host) for host in hosts]
    for file in files:
        file.touch()
    try:
        yield
    finally:
        for file in files:
            file.unlink()


def end_of(cluster, job, mpi):
    """Wait until a job has ended. Return what was said, and its exit code."""
    assert within(SECONDS, lambda: not cluster.ranks())
    try:
        return job.communicate(timeout=SECONDS), job.returncode
    except subprocess.TimeoutExpired:
        assert mpi is mpis.OPENMPI, "the launcher stays"  # that one does, now and then, though no rank is left
        return (None, None), None


def run_next(cluster, mpi, hosts, *, in_use=None):
    result = cluster.run([*cluster.mpi(mpi, 2, hosts=hosts), "python-mpi", "-c", ""])
    assert result.returncode == 0, result
    assert "mpiimport: " not in result.stderr, result
    assert left(cluster, hosts) == (in_use or {host: [] for host in hosts})


def launcher_of(job):
    """Return the launcher's process, below `nsenter` and `timeout`."""
    pid = job.pid
    for _ in range(2):
        (pid,) = map(int, Path("/proc/%d/task/%d/children" % (pid, pid)).read_text().split())
    return pid


def kill_ranks(*ranks, number=signal.SIGKILL):
    def kill(cluster, _):
        running = cluster.ranks()
        for pid in [pid for rank in ranks for pid in running[rank]]:
            os.kill(pid, number)

    return kill


WAIT = "comm.recv()"
BOTH, NONE = {"h0", "h1"}, set()
# What the ranks do, what is done to them, and where a rank lives to remove the store, under MPICH and Open MPI.
ENDINGS = {
    "normal": ("", None, BOTH, BOTH),
    "exception": ("if last: raise ValueError('boom')\ncomm.recv()", None, {"h1"}, {"h1"}),
    "MPI_Abort": ("if last: comm.Abort(7)\ncomm.recv()", None, NONE, NONE),
    "sys.exit of one": ("if last: sys.exit(3)", None, BOTH, BOTH),
    "sys.exit of all": ("sys.exit(3)", None, BOTH, BOTH),
    # MPICH ends the ranks of that host alone.
    "os._exit of one": ("if last: os._exit(0)\ntime.sleep(3)", None, {"h0"}, NONE),
    "SIGTERM to a rank": (WAIT, kill_ranks(3, number=signal.SIGTERM), NONE, NONE),
    "SIGTERM to the launcher": (WAIT, lambda _, job: os.kill(launcher_of(job), signal.SIGTERM), NONE, NONE),
    "kill -9 of a rank": (WAIT, kill_ranks(3), NONE, NONE),
    "kill -9 of a host's ranks": (WAIT, kill_ranks(2, 3), NONE, NONE),
    "kill -9 of the launcher": (WAIT, lambda _, job: os.kill(launcher_of(job), signal.SIGKILL), NONE, NONE),
}


@pytest.mark.parametrize(("text", "act", "with_mpich", "with_openmpi"), ENDINGS.values(), ids=ENDINGS)
def test_the_store_is_gone_at_once_where_a_rank_lives_to_remove_it_else_with_the_next_run(
    cluster, two_mpis, start, text, act, with_mpich, with_openmpi
):
    hosts = cluster.hosts
    # MPICH may lose what a rank prints before another aborts the job: they end when it has been read.
    with start(cluster, two_mpis, hosts, HEAD + READY + UNTIL_GO + text) as job:
        assert job.stdout.readline() == "ready\n", job.communicate()
        assert with_store(cluster, hosts) == BOTH
        with go(cluster, hosts):
            if act:
                act(cluster, job)
            end_of(cluster, job, two_mpis)
        cleaned = with_mpich if two_mpis is mpis.MPICH else with_openmpi
        assert with_store(cluster, hosts) == BOTH - cleaned
    run_next(cluster, two_mpis, hosts)


IN_USE = (
    """\
comm.barrier()  # every host has mpi4py's own module by then
if comm.rank == 0:
    print("ready", flush=True)
%s
def further():
    import scipy.ndimage
    return from_store("_nd_image")

import scipy.special
delivered = all(comm.allgather(from_store("_ufuncs")))
copied = all(comm.allgather(further()))
if comm.rank == 0:
    print(delivered, copied, flush=True)
"""
    % UNTIL_GO
)


def test_a_store_in_use_is_not_touched_by_other_runs(cluster, two_mpis, start):
    hosts = cluster.hosts
    with start(cluster, two_mpis, hosts, HEAD + IN_USE, name="in_use.py") as job:
        assert job.stdout.readline() == "ready\n", job.communicate()
        in_use = left(cluster, hosts)
        assert [len(paths) for paths in in_use.values()] == [1, 1]
        contents = {path: sorted(path.rglob("*")) for paths in in_use.values() for path in paths}
        for name, ending in (("ends.py", ""), ("is-killed.py", "os.kill(os.getpid(), signal.SIGKILL)")):
            with start(cluster, two_mpis, hosts, HEAD + READY + ending, name=name) as other:
                assert other.stdout.readline() == "ready\n", other.communicate()
                with contextlib.suppress(subprocess.TimeoutExpired):  # Open MPI's launcher may stay, but no rank
                    other.communicate(timeout=SECONDS)
        assert [len(paths) for paths in left(cluster, hosts).values()] == [2, 2]
        run_next(cluster, two_mpis, hosts, in_use=in_use)
        assert {path: sorted(path.rglob("*")) for path in contents} == contents
        with go(cluster, hosts):
            (stdout, _), status = end_of(cluster, job, two_mpis)
    assert (stdout, status) == ("True True\n", 0)
    assert with_store(cluster, hosts) == NONE


def stores(cluster, host, pattern):
    return cluster.seen_from_here("dev/shm", on=host).glob("mpiimport-*" + pattern)


def is_being_filled(cluster, host):
    """Whether a large library is half way to a host's store."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_size > 8e6 for path in stores(cluster, host, "/root/**/.incoming-*"))
    return False


MOMENTS = [
    is_being_filled,
    lambda cluster, host: any(stores(cluster, host, "")),
    lambda cluster, _: len(cluster.ranks()) == 4,
]


@contextlib.contextmanager
def held_at(cluster, moment, host):
    """Hold all hosts at a moment in the start of this one."""
    assert within(SECONDS, lambda: moment(cluster, host))
    for host in cluster.hosts:
        cluster.freeze(host)
    yield
    for host in cluster.hosts:
        with contextlib.suppress(FileNotFoundError):
            cluster.thaw(host)


@pytest.mark.parametrize("victim", ["h0", "h1"])
def test_whenever_a_host_dies_during_the_start_the_job_ends_and_the_next_run_cleans(
    new_cluster, one_mpi, start, victim
):
    text = HEAD + READY + WAIT
    with new_cluster(hosts=2, mb_per_s=20) as cluster:
        for number, moment in enumerate([*MOMENTS, MOMENTS[0]]):
            dies = number == len(MOMENTS)  # at last with its folders: not only its ranks
            with start(cluster, one_mpi, cluster.hosts, text, name="program_%d.py" % number) as job:
                with held_at(cluster, moment, victim):
                    if dies:
                        cluster.kill_host(victim)
                    else:
                        kill_ranks(*([0, 1] if victim == "h0" else [2, 3]))(cluster, job)
                said, status = end_of(cluster, job, one_mpi)
            stdout, stderr = said
            if status is not None:  # the launcher says what happened
                assert "ready" not in stdout
                assert "Traceback" not in stderr, stderr
                assert "mpiimport: " not in stderr, stderr
                assert stdout or stderr
                assert status or dies  # which Open MPI's launcher calls a success
            run_next(cluster, one_mpi, [host for host in cluster.hosts if not (dies and host == victim)])


def test_a_power_cut_during_the_start_ends_the_job_after_the_time_limit(new_cluster, start):
    options = ["--timeout", "5"]
    with (
        new_cluster(hosts=2, mb_per_s=20) as cluster,
        start(cluster, mpis.MPICH, cluster.hosts, HEAD + READY + WAIT, *options) as job,
    ):
        with held_at(cluster, is_being_filled, "h1"):
            cluster.partition("h1")
            cluster.kill_host("h1")
        _, stderr = job.communicate(timeout=SECONDS)
        assert len(re.findall(r"mpiimport: rank \d on h0 waited 5 s for ", stderr)) == 1, stderr
        assert within(SECONDS, lambda: not cluster.ranks())
        assert with_store(cluster, ["h0"]) == NONE
