"""A host whose local folders have no room for a node store, or forbid it, costs speed and nothing else."""

import importlib.util
import json
import os
import shutil
import time

import mpi as mpis
import pytest

PADDING_BYTES = 100 << 20
LOCAL_FOLDERS = ("/dev/shm", "/tmp", "/var/tmp")

PROGRAM = """
    import json, os, socket, sys
    import numpy.fft, numpy.random
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    if sys.argv[1:] and world.Split_type(MPI.COMM_TYPE_SHARED).rank == 0:
        with open(sys.argv[1] + "/filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(1 << 16)):
                    pass
            except OSError as error:
                assert error.strerror == "No space left on device"
    world.Barrier()
    unforeseen = [__import__("".join(name)).__file__ for name in (["wave"], ["_lsprof"], ["_struct"], ["curses"])]
    numbers = numpy.random.default_rng(world.rank).random(8)
    rows = world.gather([socket.gethostname(), abs(numpy.fft.fft(numbers)[1]), unforeseen])
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if ".so" in line}
    stored = len([path for path in mapped if "/mpiimport-" in path])
    stores = [folder for folder in %r if any(name.startswith("mpiimport-") for name in os.listdir(folder))]
    seen = world.gather([stores, stored])
    if world.rank == 0:
        print(json.dumps(rows))
        print(json.dumps(seen))
""" % (LOCAL_FOLDERS,)

FULL, FORBIDS, READ_ONLY = (
    ("size=1m", "it has 1 MB free, and 64 MB are left for MPI"),
    ("noexec", "noexec"),
    ("ro", "Read-only file system"),
)


@pytest.fixture
def run(cluster, script):
    """Start the program on two hosts with a fault of local folders; see that it says what it does under plain Python,
    and that no store is left. Return what each rank saw of stores, and our messages.
    """
    program = script(PROGRAM)
    hosts = cluster.hosts[:2]

    def run(mpi, folders, fault, broken, *options, arguments=()):
        launch = cluster.mpi(mpi, 2, hosts=hosts)
        plain = cluster.run([*launch, "python", program])
        broken = [(host, folder) for host in broken for folder in folders]
        try:
            for host, folder in broken:
                cluster.remount(host, folder, fault)
            ours = cluster.run([*launch, "python-mpi", *options, program, *arguments])
            seen = [cluster.seen_from_here(folder, on=host) for host in hosts for folder in LOCAL_FOLDERS]
            left = [name for folder in seen for name in os.listdir(folder) if name.startswith("mpiimport-")]
        finally:
            for host, folder in broken:
                cluster.remount(host, folder, "size=1g,nr_inodes=100k,exec,rw")
                cluster.run(["rm", "-f", folder + "/filler"], on=host)
        assert (plain.returncode, ours.returncode, left) == (0, 0, []), (plain, ours)
        rows, seen = ours.stdout.splitlines()
        assert rows == plain.stdout.splitlines()[0]
        return json.loads(seen), [line for line in ours.stderr.splitlines() if "mpiimport" in line]

    return run


@pytest.mark.parametrize(("fault", "reason"), [FULL, FORBIDS, READ_ONLY])
@pytest.mark.parametrize(("mpi", "broken"), [(mpis.MPICH, ["h0", "h1"]), (mpis.OPENMPI, ["h1"])], ids=["all", "one"])
def test_hosts_that_can_have_no_store_are_named_once(run, mpi, broken, fault, reason):
    seen, (message,) = run(mpi, ["/var/tmp"], fault, broken, "--tmpdir", "/var/tmp")
    first = 0 if "h0" in broken else 2
    hosts = "mpiimport: %d of 2 hosts share nothing among their ranks (rank %d: " % (len(broken), first)
    assert message.startswith(hosts)
    assert "`/var/tmp`: " in message
    assert reason in message
    assert message.endswith("). Set --tmpdir to a folder on each host that has room and is not mounted noexec.")
    for rank, (stores, stored) in enumerate(seen):
        assert (stores, stored > 0) == (([], False) if rank >= first else (["/var/tmp"], True))


def test_each_folder_that_was_tried_is_named_once(run):
    _, (message,) = run(mpis.MPICH, ["/dev/shm", "/tmp"], "noexec", ["h0"])
    assert "in `/dev/shm`: it is mounted noexec, `/tmp`: it is mounted noexec). Set" in message


@pytest.mark.parametrize(
    ("mpi", "fault"),
    # MPICH needs some of this folder for itself.
    [(mpis.OPENMPI, "size=1m"), (mpis.OPENMPI, "ro"), (mpis.MPICH, "size=32m"), (mpis.MPICH, "noexec")],
)
def test_a_host_that_cannot_have_a_store_in_memory_has_it_elsewhere(run, mpi, fault):
    seen, messages = run(mpi, ["/dev/shm"], fault, ["h1"])
    assert messages == []
    assert [stores for stores, _ in seen] == [["/dev/shm"]] * 2 + [["/tmp"]] * 2
    assert all(stored > 0 for _, stored in seen)


def test_what_has_no_room_is_opened_where_it_lies(run):
    seen, messages = run(mpis.MPICH, ["/var/tmp"], "size=76m", ["h1"], "--tmpdir", "/var/tmp")
    assert messages == []
    assert 0 < seen[2][1] == seen[3][1] < seen[0][1]


def test_a_store_that_becomes_full_serves_no_more(run):
    options = ["--tmpdir", "/var/tmp"]
    seen, messages = run(mpis.MPICH, ["/var/tmp"], "size=150m", ["h0", "h1"], *options, arguments=["/var/tmp"])
    assert messages == []
    assert all(stored > 0 for _, stored in seen)


def test_a_store_without_room_for_links_serves_no_native_code(run):
    options = ["--tmpdir", "/var/tmp", "--store-limit", "10"]  # what is beyond it is linked to
    seen, messages = run(mpis.MPICH, ["/var/tmp"], "nr_inodes=12", ["h1"], *options)
    assert messages == []
    assert [stored > 0 for _, stored in seen] == [True, True, False, False]


@pytest.mark.parametrize(
    "statement", ["import _lsprof", "_lsprof = __import__('_ls' + 'prof')"], ids=["opening", "miss"]
)
def test_a_file_that_is_cut_off_while_it_is_copied_is_never_opened_as_it_was_copied(cluster, script, statement):
    program = script(
        """
        import os
        from mpi4py import MPI
        %s
        with open("/proc/self/maps") as maps:
            mapped = {line.split()[-1] for line in maps if "_lsprof" in line}
        print(MPI.COMM_WORLD.rank, _lsprof.__file__, *map(os.path.getsize, mapped))
        """
        % statement
    )
    module = program.with_name("_lsprof.so")
    shutil.copy(importlib.util.find_spec("_lsprof").origin, module)
    size_bytes = module.stat().st_size
    os.truncate(module, size_bytes + PADDING_BYTES)
    hosts = cluster.hosts[:2]
    launch = cluster.mpi(mpis.MPICH, 2, hosts=hosts)
    plain = cluster.run([*launch, "python", program])
    cluster.filesystem.set(mb_per_s=50)
    try:
        with cluster.start([*launch, "python-mpi", program]) as job:
            stores = [cluster.seen_from_here("/dev/shm", on=host) for host in hosts]
            limit = time.monotonic() + 30
            incoming = "mpiimport-*/root%s/.incoming-*" % module.parent
            while not all(any(store.glob(incoming)) for store in stores) and time.monotonic() < limit:
                time.sleep(0.01)
            os.truncate(module, size_bytes)
            stdout, stderr = job.communicate()
    finally:
        cluster.filesystem.set(mb_per_s=0)
    assert (plain.returncode, job.returncode) == (0, 0), (plain, stderr)
    for result, size in ((plain.stdout, size_bytes + PADDING_BYTES), (stdout, size_bytes)):
        assert sorted(result.splitlines()) == ["%d %s %d" % (rank, module, size) for rank in range(4)]
