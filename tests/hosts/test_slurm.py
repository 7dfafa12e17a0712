"""Under a real Slurm: `srun`, `sbatch` and `salloc` start and end jobs of ours as they do those of plain Python."""

import collections
import json
import os
import re

import mpi as mpis
import pytest
from hosts import slurm as slurms
from hosts.cluster import within

RANKS_PER_HOST = 4
SECONDS = 30
LOCAL_FOLDERS = ("dev/shm", "tmp", "var/tmp", "run")
LEAF_OPERATIONS = 400
"""Of a leaf, all files: what MPI opens of its own is most of it."""

SEEN = """\
import json, os, socket, subprocess, sys
import xml.dom.minidom, numpy.fft
from mpi4py import MPI

world = MPI.COMM_WORLD
host = world.Split_type(MPI.COMM_TYPE_SHARED)
child = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
names = lambda variables: sorted(name for name in variables if name.split("_")[0] in ("PMI", "PMIX", "SLURM", "OMPI"))
row = [world.rank, world.size, socket.gethostname(), host.rank, host.size, sys.argv, sys.path, __file__]
row += [abs(numpy.fft.fft(range(world.rank + 3))[0]), world.allreduce(1), names(os.environ)]
row += [names(one.partition("=")[0] for one in child.split("\\0")), os.environ["SLURM_PROCID"]]
rows = world.gather(row)
if world.rank == 0:
    print(json.dumps(rows))
"""

STORES = """\
import json, socket, sys
import numpy, scipy.special
from mpi4py import MPI

world = MPI.COMM_WORLD
mapped = {line.split()[-1] for line in open("/proc/self/maps") if "_multiarray_umath" in line or "_ufuncs" in line}
rows = world.gather([socket.gethostname(), sorted({path.rpartition("/")[0] for path in mapped})])
if world.rank == 0:
    print(json.dumps(rows))
"""

WAITS = """\
import scipy.special
from mpi4py import MPI
MPI.COMM_WORLD.barrier()
if MPI.COMM_WORLD.rank == 0:
    print("ready", flush=True)
MPI.COMM_WORLD.recv()
"""


@pytest.fixture(scope="module")
def slurm(new_cluster):
    """Four hosts with Slurm."""
    reason = slurms.unavailable()
    if reason:
        pytest.skip(reason)
    with slurms.Slurm(new_cluster, hosts=4) as slurm:
        yield slurm


@pytest.fixture(params=[mpis.MPICH, mpis.OPENMPI], ids=["pmi2", "pmix"])
def by(request):
    """MPICH by `--mpi=pmi2`, Open MPI by `--mpi=pmix`."""
    return request.param


def left(cluster):
    """Return what is ours of each host's own folders."""
    folders = [cluster.seen_from_here(folder, on=host) for host in cluster.hosts for folder in LOCAL_FOLDERS]
    return sorted(path for folder in folders for path in folder.glob("*mpiimport*"))


@pytest.mark.parametrize("mpi", mpis.ALL, ids=lambda mpi: "%s-%s" % (mpi, slurms.SPEAKS[mpi.name]))
def test_a_job_step_prints_what_it_prints_under_plain_python(slurm, script, mpi):
    program = script(SEEN)
    plain, ours = (slurm.srun(mpi, RANKS_PER_HOST, one, program, "a", "b c") for one in ("python", "python-mpi"))
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr) == (0, ""), (plain, ours)
    rows = json.loads(ours.stdout)
    assert rows == json.loads(plain.stdout)
    hosts = collections.Counter(row[2] for row in rows)
    assert hosts == dict.fromkeys(slurm.cluster.hosts, RANKS_PER_HOST)


def test_the_ranks_of_a_host_share_a_store_and_leaves_read_little(slurm, script, by):
    program = script(STORES)
    slurm.cluster.filesystem.reset()
    result = slurm.srun(by, RANKS_PER_HOST, "python-mpi", "--require", "--store", "always", program)
    assert result.returncode == 0, result
    stats = slurm.cluster.filesystem.stats()
    folders = collections.defaultdict(set)
    for host, mapped in json.loads(result.stdout):
        folders[host].update(path.split("/")[3] for path in mapped if path.startswith("/dev/shm/mpiimport-"))
        assert all(path.startswith("/dev/shm/mpiimport-") for path in mapped), result
    assert {host: len(stores) for host, stores in folders.items()} == dict.fromkeys(slurm.cluster.hosts, 1)
    counts = [stats.count(rank=rank) for rank in range(RANKS_PER_HOST * len(slurm.cluster.hosts))]
    print(counts)
    assert max(counts[1:]) < LEAF_OPERATIONS, counts
    assert left(slurm.cluster) == []
