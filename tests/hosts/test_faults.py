"""Hosts, ranks and filesystems that fail at a known point of a job: it ends, or goes on as plain Python does, in time.

A job is brought to that point by a file that the filesystem does not hand out: whoever needs it stands still.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal

import mpi as mpis
import pytest
from hosts.cluster import within
from hosts.filesystem import NO_CACHE

SECONDS = 20
"""More than a busy machine needs, less than what any rank here waits for."""
TIMEOUT_S = 3
PADDING_BYTES = 40 << 20
HOSTS = ["h0", "h1"]
NIGHTLY = pytest.mark.nightly

PROGRAM = """
import atexit, os, sys, time
from mpi4py import MPI
import foreseen, _lsprof

folder = os.path.dirname(__file__)
comm = MPI.COMM_WORLD
open(folder + "/gate-program").close()
comm.barrier()
atexit.register(lambda: open(folder + "/gate-end").close())
"""

# A stage of a job, the host that stands still there, the file that it waits for, and the operation.
STAGES = {
    "before MPI_Init": ("h1", "_core.abi3.so", "lookup"),
    "opening": ("h0", "foreseen.py", "read"),
    "native code": ("h0", "_lsprof.so", "read"),
    "program": ("h1", "gate-program", "open"),
    "end": ("h1", "gate-end", "open"),
    "profile": ("h0", "cache", "create"),
}


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """Two hosts that look at the filesystem each time, so that they can be stopped there."""
    with new_cluster(hosts=len(HOSTS), **NO_CACHE) as cluster:
        yield cluster


@pytest.fixture
def start(script, tmp_path):
    """Start the program with a file that one host does not get; the job stands still there when the block begins."""

    @contextlib.contextmanager
    def start_on(cluster, stage, *options):
        host, name, operation = STAGES[stage]
        program = script(PROGRAM)
        script("VALUE = 1\n", "foreseen.py")
        shutil.copy(importlib.util.find_spec("_lsprof").origin, tmp_path / "_lsprof.so")
        os.truncate(tmp_path / "_lsprof.so", PADDING_BYTES)
        for gate in ("gate-program", "gate-end"):
            (tmp_path / gate).touch()
        (tmp_path / "cache").mkdir(exist_ok=True)
        held = tmp_path / name
        if stage == "before MPI_Init":
            held = os.path.join(os.path.dirname(importlib.util.find_spec("mpiimport").origin), name)
        env = {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
        launch = [*cluster.mpi(mpis.MPICH, 2, env=env), "python-mpi", "--store", "always", *options, program]
        cluster.filesystem.hang(host, held, operation)
        try:
            with cluster.start(launch, timeout_s=3 * SECONDS) as job:
                assert within(SECONDS, lambda: cluster.filesystem.held(host) or job.poll() is not None)
                assert job.poll() is None, job.communicate()
                try:
                    yield job, lambda: cluster.filesystem.heal(host)
                finally:
                    cluster.filesystem.heal(host)
                    job.kill()
        finally:
            cluster.filesystem.heal(host)

    return start_on


def ours(stderr):
    """Return what we said."""
    return [line for line in stderr.splitlines() if line.startswith("mpiimport: ")]


def stores(cluster):
    return [path.name for host in HOSTS for path in cluster.seen_from_here("dev/shm", on=host).glob("mpiimport-*")]


def check_next_run(cluster):
    """See that the next run works and leaves no store."""
    result = cluster.run([*cluster.mpi(mpis.MPICH, 2), "python-mpi", "-c", "print(1)"])
    assert (result.returncode, result.stdout, ours(result.stderr)) == (0, "1\n" * 4, []), result
    assert stores(cluster) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "victims",
    [[0], [3], pytest.param([1], marks=NIGHTLY), pytest.param([2, 3], marks=NIGHTLY)],
    ids=str,
)
def test_a_job_whose_ranks_are_killed_at_any_stage_ends_and_the_next_run_cleans(cluster, start, stage, victims):
    with start(cluster, stage) as (job, heal):
        running = cluster.ranks()
        for pid in [pid for rank in victims for pid in running.get(rank, ())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        heal()  # who waits for a filesystem dies when it is answered
        stdout, stderr = job.communicate(timeout=SECONDS)
        assert within(SECONDS, lambda: not cluster.ranks())
    assert job.returncode or stage in ("end", "profile"), (stdout, stderr)  # where some ranks may have ended
    assert "Traceback" not in stderr
    assert len(ours(stderr)) <= 1, stderr
    check_next_run(cluster)


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_whose_filesystem_hangs_for_a_while_goes_on(cluster, start, stage):
    with start(cluster, stage) as (job, heal):
        heal()
        stdout, stderr = job.communicate(timeout=SECONDS)
    assert (job.returncode, stdout, ours(stderr)) == (0, "", []), stderr
    assert stores(cluster) == []


@pytest.mark.parametrize("stage", ["opening", pytest.param("native code", marks=NIGHTLY)])
@pytest.mark.parametrize("frozen", [None, "h0", "h1"], ids=["filesystem", "root's host", "other host"])
def test_who_waits_for_a_host_that_stands_still_says_so_once_and_ends_in_time(cluster, start, stage, frozen):
    with start(cluster, stage, "--timeout", TIMEOUT_S) as (job, heal):
        if frozen:
            cluster.freeze(frozen)
            heal()
        waiting = {None: [1, 2, 3], "h0": [2, 3], "h1": [0, 1]}[frozen]
        ended = within(SECONDS, lambda: not set(waiting) & set(cluster.ranks()))
        heal()
        if frozen:
            cluster.thaw(frozen)
        _, stderr = job.communicate(timeout=SECONDS)
        assert within(SECONDS, lambda: not cluster.ranks())
    assert ended, stderr
    assert job.returncode
    assert "Traceback" not in stderr
    host = "h0" if 1 in waiting else "h1"
    told = [line for line in ours(stderr) if " has waited " not in line]
    assert len(told) == 1, stderr
    assert re.fullmatch(r"mpiimport: rank \d on %s waited \d s for \S.*\." % host, told[0]), told
    check_next_run(cluster)


def test_the_end_does_not_wait_for_a_profile_that_cannot_be_written(cluster, start):
    with start(cluster, "profile") as (job, heal):
        ended = within(SECONDS, lambda: not cluster.ranks())  # but for the thread that waits for the filesystem
        heal()
        _, stderr = job.communicate(timeout=SECONDS)
    assert ended, stderr
    told = (
        r"mpiimport: the filesystem of the profile `\S*` did not answer within 10 s; the next run is like a first one\."
    )
    assert job.returncode == 0, stderr
    assert len(ours(stderr)) == 1, stderr
    assert re.fullmatch(told, ours(stderr)[0]), stderr
    assert stores(cluster) == []


UNREACHABLE = """
import json
from mpi4py import MPI

def foresees():
    import %s

found = []
for name in %r:
    try:
        found.append(__import__(name, fromlist=["x"]).VALUE)
    except Exception as cause:
        found.append("%%s: %%s" %% (type(cause).__name__, cause))
rows = MPI.COMM_WORLD.gather(found)
if rows is not None:
    print(json.dumps(rows))
"""
NAMES = ("alone", "package", "package.inner", "package.absent", "both", "portion.of", "linked")
PLACES = ("first", "first/alone.py", "first/both.py", "first/package", "first/package/__init__.py", "target.py")


@pytest.mark.parametrize("host", ["h0", pytest.param("h1", marks=NIGHTLY)])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stable", [True, pytest.param(False, marks=NIGHTLY)], ids=["stable", "watched"])
def test_what_one_host_cannot_read_other_hosts_find_as_plain_python_does(
    cluster, script, tmp_path, host, place, stable
):
    files = {
        "first": ("alone", "package/__init__", "package/inner", "both", "portion/of"),
        "second": ("alone", "package/__init__", "both", "portion/of", "linked"),
    }
    for folder, names in files.items():
        for name in names:
            script("VALUE = '%s/%s'\n" % (folder, name), "%s/%s.py" % (folder, name))
    (tmp_path / "first/linked.py").symlink_to(script("VALUE = 'first/linked'\n", "target.py"))
    for path in tmp_path.rglob("*"):
        os.utime(path, (1e9, 1e9))
    program = script(UNREACHABLE % (", ".join(NAMES), NAMES))
    env = {"PYTHONPATH": str(tmp_path / "first") + ":" + str(tmp_path / "second")}
    if stable:
        env["MPIIMPORT_STABLE"] = env["PYTHONPATH"]
    launch = cluster.mpi(mpis.MPICH, 2, env=env)

    def found(how):
        result = cluster.run([*launch, how, program])
        assert (result.returncode, ours(result.stderr)) == (0, []), result
        return json.loads(result.stdout)

    healthy = found("python")
    cluster.filesystem.eio(host, tmp_path / place)
    try:
        plain, delivered = found("python"), found("python-mpi")
    finally:
        cluster.filesystem.heal(host)
    assert plain != healthy
    for values in zip(delivered, plain, healthy):  # what is delivered can be had where it cannot be read
        assert [one for one in zip(*values) if one[0] not in one[1:]] == [], (delivered, plain)


CHANGES = """
import os
from mpi4py import MPI
import changing
print(MPI.COMM_WORLD.rank, changing.VALUE)
"""


@pytest.mark.parametrize("operation", ["lookup", "open", "read"])
@pytest.mark.parametrize("what", ["source", "bytecode"])
@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_a_module_that_changes_while_the_root_reads_it_is_the_new_one(cluster, script, tmp_path, operation, what, how):
    program = script(CHANGES)
    module = script("VALUE = 'old'\n", "changing.py")
    held = module
    if what == "bytecode":
        os.utime(module, (1e9, 1e9))
        held = importlib.util.cache_from_source(str(module))
        mpis.run(["python", "-c", "import changing"], cwd=tmp_path)
        assert os.path.exists(held)
    cluster.filesystem.hang("h0", held, operation)
    try:
        with cluster.start([*cluster.mpi(mpis.MPICH, 2), "python-mpi", program]) as job:
            assert within(SECONDS, lambda: cluster.filesystem.held("h0") or job.poll() is not None)
            assert job.poll() is None, job.communicate()
            if how == "in place":
                module.write_text("VALUE = 'written anew'\n")
            else:
                script("VALUE = 'written anew'\n", "changing.new").replace(module)
            cluster.filesystem.heal("h0")
            stdout, stderr = job.communicate(timeout=SECONDS)
    finally:
        cluster.filesystem.heal("h0")
    assert sorted(stdout.splitlines()) == ["%d written anew" % rank for rank in range(4)], stderr


@pytest.mark.parametrize("how", ["python", "python-mpi"])
def test_a_host_that_cannot_read_modules_any_more_has_those_that_were_delivered(cluster, script, tmp_path, how):
    script("", "modules/early.py")
    script("", "modules/delivered.py")
    script("", "modules/unforeseen.py")
    program = script(
        """
        import os, time
        from mpi4py import MPI
        import early

        comm = MPI.COMM_WORLD
        comm.barrier()
        if comm.rank == 0:
            print("ready", flush=True)
        while not os.path.exists("/tmp/go"):
            time.sleep(0.02)
        try:
            import delivered
            print(comm.rank, "delivered")
            __import__("unfore" + "seen")
            print(comm.rank, "unforeseen")
        except OSError as cause:
            print(comm.rank, cause.strerror)
        """
    )
    modules = str(tmp_path / "modules")
    launch = cluster.mpi(mpis.MPICH, 2, env={"PYTHONPATH": modules, "MPIIMPORT_STABLE": modules})
    go = [cluster.seen_from_here("tmp/go", on=host) for host in HOSTS]
    try:
        with cluster.start([*launch, how, program]) as job:
            assert job.stdout.readline() == "ready\n", job.communicate()
            cluster.filesystem.eio("h1", modules)
            for file in go:
                file.touch()
            stdout, stderr = job.communicate(timeout=SECONDS)
    finally:
        cluster.filesystem.heal("h1")
        for file in go:
            file.unlink(missing_ok=True)
    expected = ["0 delivered", "0 unforeseen", "1 delivered", "1 unforeseen"]
    for rank in (2, 3):
        expected += (["%d delivered" % rank] if how == "python-mpi" else []) + ["%d Input/output error" % rank]
    assert sorted(stdout.splitlines()) == sorted(expected), stderr
    assert stores(cluster) == []
