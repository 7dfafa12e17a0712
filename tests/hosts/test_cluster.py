"""Simulated hosts are what tests on them take for granted: apart, on a counted filesystem, breakable, then gone."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import mpi as mpis
import pytest
from hosts import cluster as harness
from hosts.cluster import within
from hosts.filesystem import CLIENT_CACHE, NO_CACHE

FILE_BYTES = 1 << 20

WHO_AM_I = """
    import json, os, pathlib, socket
    namespaces = {name: os.readlink("/proc/self/ns/" + name) for name in ("net", "uts", "mnt", "ipc", "pid")}
    files = [pathlib.Path(name).read_text() for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")]
    before = {folder: os.listdir(folder) for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run")}
    for folder in before:
        pathlib.Path(folder, socket.gethostname()).touch()
    identity = [socket.gethostname(), socket.gethostbyname(socket.gethostname()), *namespaces.values(), *files]
    print(json.dumps([identity, before]))
"""

WHAT_IS_MAPPED = """
    import json, os, numpy
    mounts = [line.split(" - ") for line in open("/proc/self/mountinfo")]
    kinds = {left.split()[2]: right.split()[0] for left, right in mounts}
    paths = {line.split()[5] for line in open("/proc/self/maps") if line.count("/")}
    device = lambda path: "%d:%d" % (os.major(os.stat(path).st_dev), os.minor(os.stat(path).st_dev))
    print(json.dumps({path: kinds[device(path)] for path in paths}))
"""

GROUPS = """
    import json, socket
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    received = bytearray(b"x" * (1 << 20) if world.rank == 0 else 1 << 20)
    world.Bcast(received)
    rows = world.gather([world.rank, socket.gethostname(), host.rank, host.size, received.count(b"x")])
    if world.rank == 0:
        print(json.dumps(rows))
"""

WAITS_FOR_EVER = """
    import time
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.rank == 0:
        print("ready", flush=True)
    MPI.COMM_WORLD.recv(source=(MPI.COMM_WORLD.rank + 1) % MPI.COMM_WORLD.size)
"""


@pytest.mark.parametrize(
    ("name", "result", "reason"),
    [
        ("os.geteuid", lambda: 1000, "need root"),
        ("os.path.exists", lambda path: path != "/dev/fuse", "need /dev/fuse"),
        ("shutil.which", lambda tool: tool if tool != "nsenter" else None, "need `nsenter`"),
        ("hosts.filesystem.build", lambda: subprocess.run(["false"], check=True), "need their filesystem"),
    ],
)
@pytest.mark.usefixtures("new_cluster")
def test_what_is_missing_is_named(monkeypatch, name, result, reason):
    monkeypatch.setattr(name, result)
    assert reason in harness.unavailable()


def test_nodes_share_neither_identity_nor_local_folders(cluster, script):
    program = script(WHO_AM_I)
    nodes = [harness.LOGIN, *cluster.hosts]
    seen = [json.loads(cluster.run(["python", program], on=node).stdout) for node in nodes]
    assert [identity[0] for identity, _ in seen] == nodes
    hosts_apart = zip(*[identity for identity, _ in seen[1:]])
    assert all(len(set(values)) == len(cluster.hosts) for values in hosts_apart)
    assert all(
        before == {"/dev/shm": [], "/tmp": before["/tmp"], "/var/tmp": [], "/run": ["cluster"]} for _, before in seen
    )
    assert not any(set(before["/tmp"]) & set(nodes) for _, before in seen)


def test_nodes_see_nothing_of_the_machine_but_its_system_and_what_is_shared(cluster, script):
    mapped = json.loads(cluster.run(["python", script(WHAT_IS_MAPPED)], on="h0").stdout)
    elsewhere = {path for path, kind in mapped.items() if kind != "fuse"}
    assert all(path.startswith(("/usr/", "/etc/")) and "python" not in path for path in elsewhere)
    assert any("numpy" in path for path in mapped)
    for node in (harness.LOGIN, "h0"):
        assert cluster.run(["ls", mpis.ROOT], on=node).stdout == ""
        assert cluster.run(["ls", "-A", mpis.ROOT], on=node).stdout.split() == [".mpi", ".venv"]


def test_shared_paths_are_one_filesystem(cluster, tmp_path):
    assert cluster.run(["sh", "-c", "echo from h0 > %s/note" % tmp_path], on="h0").returncode == 0
    assert cluster.run(["cat", tmp_path / "note"], on="h1").stdout == "from h0\n"
    assert "Read-only" in cluster.run(["touch", Path(sys.prefix) / "note"], on="h0").stderr


def test_ranks_are_grouped_by_host(cluster, mpi, script):
    result = cluster.run([*cluster.mpi(mpi, 4), "python", script(GROUPS)])
    expected = [[rank, "h%d" % (rank // 4), rank % 4, 4, 1 << 20] for rank in range(16)]
    assert json.loads(result.stdout or "[]") == expected, result


@pytest.mark.parametrize("cache", [NO_CACHE, CLIENT_CACHE], ids=["no cache", "client cache"])
def test_operations_are_counted_by_host_and_rank(new_cluster, tmp_path, cache):
    looked_up, read = tmp_path / "missing", tmp_path / "file"
    read.write_bytes(bytes(FILE_BYTES))
    program = "i=0; while [ $i -lt 100 ]; do [ -e %s ]; i=$((i+1)); done; exec cat %s > /dev/null" % (looked_up, read)
    with new_cluster(hosts=2, service_us=20, **cache) as cluster:
        launch = cluster.mpi(mpis.MPICH, 2)
        cluster.filesystem.reset()
        with cluster.filesystem.trace() as operations:
            result = cluster.run([*launch, "/bin/sh", "-c", program])
        stats = cluster.filesystem.stats()
    assert result.returncode == 0, result
    for rank, host in enumerate(("h0", "h0", "h1", "h1")):
        assert stats.count(rank=rank, operation="open") == stats.count(rank=rank, host=host, operation="open") == 1
        assert stats.count(rank=rank) == len([one for one in operations if one.rank == rank])
    missed = [(one.host, one.operation) for one in operations if one.path == str(looked_up)]
    asked = 1 if cache is CLIENT_CACHE else 200
    assert sorted(missed) == [("h0", "lookup_missing")] * asked + [("h1", "lookup_missing")] * asked
    # What one rank has read, the other finds in their host's memory, where that may be kept.
    for ranks in ((0, 1), (2, 3)):
        transferred_bytes = sum(stats.size_bytes(rank=rank) for rank in ranks)
        assert FILE_BYTES <= transferred_bytes <= (FILE_BYTES if cache is CLIENT_CACHE else 2 * FILE_BYTES)
    metadata = stats.count() - stats.count(operation="read")
    assert stats.metadata_busy_s == pytest.approx(metadata * 20e-6)
    assert result.seconds > stats.metadata_busy_s


def test_the_metadata_server_serves_one_after_another_and_the_way_is_side_by_side(new_cluster, tmp_path):
    look = ["sh", "-c", "i=0; while [ $i -lt 100 ]; do [ -e %s/missing ]; i=$((i+1)); done" % tmp_path]
    with new_cluster(hosts=2, **NO_CACHE) as cluster:

        def look_on_both():
            cluster.filesystem.reset()
            began = time.monotonic()
            programs = [cluster.start(look, on=host) for host in cluster.hosts]
            for program in programs:
                with program:
                    assert program.wait() == 0
            seconds = time.monotonic() - began
            return seconds, [cluster.filesystem.stats().count(host=host) for host in cluster.hosts]

        cluster.filesystem.set(service_us=1000, latency_us=0)
        seconds, counts = look_on_both()
        assert seconds > sum(counts) * 1e-3 > 0.2
        cluster.filesystem.set(service_us=0, latency_us=1000)
        seconds, counts = look_on_both()
        assert seconds > max(counts) * 1e-3 > 0.1


def test_the_filesystem_fails_or_hangs_for_one_host(cluster, tmp_path):
    (tmp_path / "file").write_text("here")
    show = ["cat", tmp_path / "file"]
    cluster.filesystem.eio("h0")
    failing, well = cluster.run(show, on="h0"), cluster.run(show, on="h1")
    cluster.filesystem.heal("h0")
    assert "Input/output error" in failing.stderr
    assert well.stdout == "here"
    cluster.filesystem.hang("h0")
    with cluster.start(show, on="h0", timeout_s=30) as hanging:
        with pytest.raises(subprocess.TimeoutExpired):
            hanging.wait(timeout=1)
        assert cluster.run(show, on="h1").stdout == "here"
        cluster.filesystem.heal("h0")
        assert hanging.communicate(timeout=10)[0] == "here"
    with pytest.raises(ValueError, match="there is no host `h9`"):
        cluster.filesystem.hang("h9")


@pytest.mark.parametrize("who", ["rank", "host"])
def test_a_killed_rank_or_host_ends_the_job(new_cluster, two_mpis, script, who):
    with new_cluster(hosts=2) as cluster:
        launch = [*cluster.mpi(two_mpis, 2), "python", script(WAITS_FOR_EVER)]
        with cluster.start(launch, timeout_s=30) as job:
            assert job.stdout.readline() == "ready\n", job.communicate()
            assert sorted(cluster.ranks()) == [0, 1, 2, 3]
            if who == "rank":
                cluster.kill_rank(3)
            else:
                cluster.kill_host("h1")
            assert within(20, lambda: not cluster.ranks())
            if two_mpis is mpis.MPICH:
                job.communicate(timeout=20)
                assert job.returncode
            else:  # whose launcher calls the loss of a host a success, and now and then survives the loss of a rank
                job.kill()
        assert (cluster.run(["true"], on="h1").returncode == 0) == (who == "rank")


def test_a_host_freezes_and_thaws(cluster):
    count = "trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done"
    counted = cluster.seen_from_here("/tmp/count", on="h0")
    with cluster.start(["sh", "-c", count], on="h0", timeout_s=30) as program:
        assert within(10, lambda: counted.exists() and counted.read_text())
        cluster.freeze("h0")
        before = counted.read_text()
        time.sleep(0.3)
        assert counted.read_text() == before
        cluster.thaw("h0")
        assert within(10, lambda: counted.read_text() not in ("", before))
        program.terminate()


def test_a_host_is_cut_off_and_rejoins(cluster, script):
    knock = script("""
        import socket, sys
        try:
            socket.create_connection(("h1", 1), timeout=1)
        except OSError as error:
            print(type(error).__name__)
    """)

    def answer():
        return cluster.run(["python", knock], on="h0").stdout.strip()

    assert answer() == "ConnectionRefusedError"
    cluster.partition("h1")
    assert answer() in ("TimeoutError", "OSError")
    cluster.rejoin("h1")
    assert answer() == "ConnectionRefusedError"


def test_local_folders_can_be_small_or_read_only_or_forbid_execution(new_cluster):
    fill = ["dd", "if=/dev/zero", "of=/dev/shm/big", "bs=1M", "count=2"]
    execute = ["sh", "-c", "cp /bin/true /tmp/true; /tmp/true"]
    write = ["touch", "/var/tmp/file"]
    with new_cluster(hosts=2) as cluster:
        cluster.remount("h0", "/dev/shm", "size=1m")
        cluster.remount("h0", "/tmp", "noexec")
        cluster.remount("h0", "/var/tmp", "ro")
        refusals = [cluster.run(argv, on="h0").stderr for argv in (fill, execute, write)]
        assert [cluster.run(argv, on="h1").returncode for argv in (fill, execute, write)] == [0, 0, 0]
    expected = ["No space left on device", "Permission denied", "Read-only file system"]
    assert [text for refusal, text in zip(refusals, expected) if text not in refusal] == []


def descendants(pid):
    """Return the processes below one."""
    below = {pid}
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parents[int(name)] = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
    while found := {child for child, parent in parents.items() if parent in below} - below:
        below |= found
    return below - {pid}


@pytest.mark.usefixtures("new_cluster")
@pytest.mark.parametrize("how", ["kill -9", "with block"])
def test_nothing_is_left_behind(script, how):
    script(WAITS_FOR_EVER, "waits.py")
    program = script("""
        import sys
        sys.path.insert(0, sys.argv[1])
        import mpi
        from hosts.cluster import Cluster
        with Cluster(hosts=2, writable=[sys.argv[2]]) as cluster:
            job = cluster.start([*cluster.mpi(mpi.MPICH, 2), "python", sys.argv[2] + "/waits.py"])
            job.stdout.readline()
            cluster.filesystem.hang("h0")
            stuck = cluster.start(["ls", sys.argv[2]], on="h0")
            print("started", flush=True)
            sys.stdin.readline()
        print(job.wait() != 0, stuck.wait() != 0)
    """)
    argv = [sys.executable, program, mpis.ROOT / "tests", program.parent]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as creator:
        assert creator.stdout.readline() == "started\n"
        assert within(10, lambda: len(descendants(creator.pid)) >= 15)
        started = descendants(creator.pid)
        if how == "kill -9":
            creator.kill()
        assert creator.communicate("\n", timeout=20)[0] == ("" if how == "kill -9" else "True True\n")
    assert within(10, lambda: not any(os.path.exists("/proc/%d" % pid) for pid in started))
    assert "slowfs" not in Path("/proc/self/mounts").read_text()
    assert "switch" not in os.listdir("/sys/class/net")
