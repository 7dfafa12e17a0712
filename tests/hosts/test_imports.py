"""Imports on several hosts: what leaves read from the shared filesystem, and what stays on a host."""

import collections
import json
import os
import sys
from pathlib import Path

import mpi as mpis
import pytest
from hosts.filesystem import CLIENT_CACHE, NO_CACHE

PROGRAM = """
    import json, os, socket
    import numpy.fft, scipy.interpolate
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    x = numpy.linspace(0, 1, 9)
    mine = float(scipy.interpolate.CubicSpline(x, x**3)(0.3)) + abs(numpy.fft.fft(x + world.rank)[0])
    stores = [name for name in os.listdir("/dev/shm") if name.startswith("mpiimport")]
    rows = world.gather([socket.gethostname(), round(mine, 9), stores])
    if world.rank == 0:
        print(json.dumps(rows))
"""


PYTHON = (sys.prefix + os.sep, sys.base_prefix + os.sep)
MODULES = (".py", ".pyc", ".so")
# What each leaf opens where it lies: our bootstrap and core.
EACH_LEAF = ("/site_mpi/", "/mpiimport/_core")


@pytest.mark.parametrize(
    ("mpi", "cache"),
    [
        pytest.param(mpis.MPICH, NO_CACHE, marks=pytest.mark.nightly, id="mpich-no cache"),
        pytest.param(mpis.OPENMPI, CLIENT_CACHE, id="openmpi-client cache"),
    ],
)
def test_leaves_open_only_what_was_not_foreseen_and_one_leaf_of_a_host(new_cluster, script, mpi, cache):
    program = script(PROGRAM)
    with new_cluster(**cache) as cluster:

        def run(*argv):
            cluster.filesystem.reset()
            with cluster.filesystem.trace() as operations:
                result = cluster.run([*cluster.mpi(mpi, 2), *argv], timeout_s=200)
            assert result.returncode == 0, result
            opened = collections.defaultdict(set)
            for one in operations:
                if one.operation == "open" and one.path.startswith(PYTHON) and one.path.endswith(MODULES):
                    opened[one.rank].add(one.path)
            return result.stdout, opened, cluster.filesystem.stats()

        _, opened_bare, _ = run("python", "-S", "-c", "")
        stdout_plain, opened_plain, plain = run("python", program)
        stdout, opened, ours = run("python-mpi", program)
        left = [os.listdir(cluster.seen_from_here("/dev/shm", on=host)) for host in cluster.hosts]

    print("\noperations        root   a leaf      all  megabytes")
    for name, stats in (("python", plain), ("python-mpi", ours)):
        a_leaf = sum(stats.count(rank=rank) for rank in range(1, 8)) / 7
        print("%-12s %9d %8d %8d %10d" % (name, stats.count(rank=0), a_leaf, stats.count(), stats.size_bytes() / 1e6))

    rows, rows_plain = json.loads(stdout), json.loads(stdout_plain)
    assert [row[:2] for row in rows] == [row[:2] for row in rows_plain]
    leaves_of_host = collections.Counter()
    for rank in range(1, 8):
        assert len(opened_plain[rank]) > 600
        for path in opened[rank] - opened_bare[rank]:
            if not any(part in path for part in EACH_LEAF):
                leaves_of_host[rank // 2, path] += 1
    assert [pair for pair, leaves in leaves_of_host.items() if leaves > 1] == []
    assert [path for _, path in leaves_of_host if "/mpi4py/" in path] == []
    unforeseen = sorted({Path(path).name.partition(".")[0] for _, path in leaves_of_host})
    print(len(unforeseen), "unforeseen:", *unforeseen)
    assert len([path for _, path in leaves_of_host if not path.endswith(".so")]) <= 15 * 4

    stores = collections.defaultdict(set)
    for host, _, names in rows:
        stores[host].update(names)
    assert [len(names) for names in stores.values()] == [1] * 4
    assert len(set.union(*stores.values())) == 4
    assert left == [[]] * 4
