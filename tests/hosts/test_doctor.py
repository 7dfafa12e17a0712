"""`mpiimport doctor` on several hosts names those that differ, and the filesystem that they share."""

import json

import mpi as mpis
import pytest

LOCAL_FOLDERS = ("/dev/shm", "/tmp")


@pytest.mark.parametrize("mpi", [mpis.MPICH, mpis.OPENMPI], ids=str)
def test_a_host_without_a_store_is_named(cluster, script, mpi):
    program = script("import wave, _ctypes_test\n")
    hosts = cluster.hosts[:3]
    launch = [*cluster.mpi(mpi, 2, hosts=hosts), "mpiimport", "doctor"]
    healthy = cluster.run([*launch, "--json", program])
    try:
        for folder in LOCAL_FOLDERS:
            cluster.remount(hosts[1], folder, "noexec")
        sick = cluster.run([*launch, "--json"])
        text = cluster.run(launch)
    finally:
        for folder in LOCAL_FOLDERS:
            cluster.remount(hosts[1], folder, "exec")

    report = json.loads(healthy.stdout.splitlines()[0])
    assert (healthy.returncode, report["status"]) == (0, "ok"), healthy
    assert report["hosts"] == [{"host": host, "ranks": 2} for host in hosts]
    shared = [entry["filesystem"] for entry in report["path"] if entry["shared"]]
    assert set(shared) == {"fuse"}, report["path"]
    plain, ours = report["program"]["operations"]["plain"], report["program"]["operations"]["python_mpi"]
    assert plain["shared"] == plain["all"] > 30
    assert ours["shared"] == ours["all"] == 14, "native code is copied from there"

    assert sick.returncode != 0, sick
    report = json.loads(sick.stdout.splitlines()[0])
    (problem,) = (one for one in report["findings"] if one["level"] == "problem")
    assert (problem["subject"], problem["hosts"]) == ("store", [hosts[1]])
    assert "`/dev/shm`: it is mounted noexec; `/tmp`: it is mounted noexec" in problem["text"]
    assert "problem  store      on h1: this host can have no node store" in text.stdout, text
