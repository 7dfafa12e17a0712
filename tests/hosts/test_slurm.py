"""Under a real Slurm: `srun`, `sbatch` and `salloc` start and end jobs of ours as they do those of plain Python."""

import collections
import json
import re

import mpi as mpis
import pytest
from hosts import slurm as slurms
from hosts.cluster import within

SECONDS = 30
LOCAL_FOLDERS = ("dev/shm", "tmp", "var/tmp", "run")
LEAF_OPERATIONS = 600
"""Of a leaf, all files: what MPI opens of its own is most of it."""

# Where ranks of plain Python come to MPI_Init one by one, as after imports, Open MPI 5.0.11 under Slurm's PMIx crashes
# in it now and then: in 12 of 47 runs with 16 ranks, and in none of 14 with MPI first, where python-mpi always has it.
SEEN = """\
from mpi4py import MPI
import json, os, socket, subprocess, sys
import ctypes, decimal, xml.dom.minidom

world = MPI.COMM_WORLD
host = world.Split_type(MPI.COMM_TYPE_SHARED)
child = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
names = lambda variables: sorted(name for name in variables if name.split("_")[0] in ("PMI", "PMIX", "SLURM", "OMPI"))
row = [world.rank, world.size, socket.gethostname(), host.rank, host.size, sys.argv, sys.path, __file__]
row += [str(decimal.Decimal(world.rank).sqrt()), world.allreduce(1), names(os.environ)]
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
    ranks_per_host = 2 if mpi is mpis.IMPI else 4
    plain, ours = (slurm.srun(mpi, ranks_per_host, one, program, "a", "b c") for one in ("python", "python-mpi"))
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr) == (0, ""), (plain, ours)
    rows = json.loads(ours.stdout)
    assert rows == json.loads(plain.stdout)
    hosts = collections.Counter(row[2] for row in rows)
    assert hosts == dict.fromkeys(slurm.cluster.hosts, ranks_per_host)


def test_the_ranks_of_a_host_share_a_store_and_leaves_read_little(slurm, script, by):
    program = script(STORES)
    slurm.cluster.filesystem.reset()
    result = slurm.srun(by, 2, "python-mpi", "--require", "--store", "always", program)
    assert result.returncode == 0, result
    stats = slurm.cluster.filesystem.stats()
    folders = collections.defaultdict(set)
    for host, mapped in json.loads(result.stdout):
        folders[host].update(path.split("/")[3] for path in mapped if path.startswith("/dev/shm/mpiimport-"))
        assert all(path.startswith("/dev/shm/mpiimport-") for path in mapped), result
    assert {host: len(stores) for host, stores in folders.items()} == dict.fromkeys(slurm.cluster.hosts, 1)
    counts = [stats.count(rank=rank) for rank in range(2 * len(slurm.cluster.hosts))]
    assert max(counts[1:]) < LEAF_OPERATIONS, counts
    assert left(slurm.cluster) == []


FAILURES = {
    "exception": (
        "raise ValueError('boom')",
        1,
        ["ValueError: boom", "mpiimport: rank 7 on h3 ended with ValueError; ending the job with status 1."],
    ),
    "sys.exit with --abort-on-exit": ("sys.exit(3)", 3, []),
}


@pytest.mark.parametrize(("text", "status", "said"), FAILURES.values(), ids=FAILURES)
def test_a_rank_that_fails_ends_the_job_step_with_its_exit_code_and_says_why_once(
    slurm, script, by, text, status, said
):
    head = "import sys\nfrom mpi4py import MPI\nworld = MPI.COMM_WORLD\n"
    program = script(head + "if world.rank == world.size - 1:\n    %s\nworld.recv()\n" % text)
    result = slurm.srun(by, 2, "python-mpi", "--abort-on-exit", program)
    # By pmi2, Slurm kills the others, and srun returns the highest code: 128 and the number of SIGKILL.
    assert result.returncode in ((status, 137) if by is mpis.MPICH else (status,)), result
    assert [result.stderr.count(line) for line in said] == [1] * len(said), result
    assert result.stderr.count("mpiimport: ") == len(said[1:]), result
    assert within(SECONDS, slurm.is_idle)


def run_next(slurm, mpi):
    """Run a job on all hosts, and see that it leaves nothing, and nothing of others."""
    result = slurm.srun(mpi, 2, "python-mpi", "-c", "")
    assert (result.returncode, "mpiimport: " in result.stderr) == (0, False), result
    assert left(slurm.cluster) == []


def job_number(slurm):
    (number,) = slurm.run(["squeue", "--noheader", "--format=%i"]).stdout.split()
    return number


@pytest.mark.parametrize("how", ["scancel", pytest.param("scancel --signal=KILL", marks=pytest.mark.nightly)])
def test_what_a_cancelled_job_leaves_the_next_one_removes(slurm, script, by, how):
    with slurm.start_srun(by, 2, "python-mpi", "--store", "always", script(WAITS), timeout_s=2 * SECONDS) as job:
        assert job.stdout.readline() == "ready\n", job.communicate()
        assert len(left(slurm.cluster)) == len(slurm.cluster.hosts)
        assert slurm.run([*how.split(), job_number(slurm)]).returncode == 0
        _, stderr = job.communicate(timeout=SECONDS)
        assert job.returncode != 0, stderr
    assert "mpiimport: " not in stderr
    assert within(SECONDS, slurm.is_idle)
    run_next(slurm, by)


@pytest.mark.nightly  # Slurm counts in minutes
def test_what_a_job_leaves_at_its_time_limit_the_next_one_removes(slurm, script, by):
    options = ["--time=1"]
    program = script(WAITS)
    result = slurm.srun(by, 2, "python-mpi", "--store", "always", program, options=options, timeout_s=200)
    assert (result.stdout, "TIME LIMIT" in result.stderr) == ("ready\n", True), result
    assert result.returncode != 0
    assert within(SECONDS, slurm.is_idle)
    run_next(slurm, by)


@pytest.mark.parametrize("form", ['-c "$(cat %s)"', "- < %s"])
def test_a_program_comes_from_the_command_line_or_from_standard_input(slurm, script, by, form):
    program = script("import sys, colorsys\nfrom mpi4py import MPI\nprint(MPI.COMM_WORLD.rank, sys.argv)\n")
    command = " ".join(slurm.srun_command(by, 2))
    plain, ours = (
        slurm.run(["sh", "-c", "%s %s %s" % (command, python, form % program)], env=slurms.settings(by))
        for python in ("python", "python-mpi --require")
    )
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr) == (0, ""), (plain, ours)
    assert sorted(ours.stdout.splitlines()) == sorted(plain.stdout.splitlines())
    assert len(ours.stdout.splitlines()) == 2 * len(slurm.cluster.hosts)


def test_doctor_names_srun_and_the_ranks_of_each_host(slurm, by):
    result = slurm.srun(by, 2, "mpiimport", "doctor", "--json")
    assert result.returncode == 0, result
    report = json.loads(result.stdout)
    (said,) = (one["text"] for one in report["findings"] if one["subject"] == "launcher")
    variable = {"pmi2": "PMI_RANK", "pmix": "PMIX_RANK"}[slurms.SPEAKS[by.name]]
    assert said == "srun, which sets %s" % variable
    assert (report["mpi"]["launcher"], report["mpi"]["ranks"]) == (variable, 8)
    assert report["hosts"] == [{"host": host, "ranks": 2} for host in slurm.cluster.hosts]


def test_doctor_on_the_login_node_names_srun(slurm):
    result = slurm.run(["mpiimport", "doctor"], env=slurms.settings(mpis.MPICH))
    assert "launcher   /usr/bin/srun (of Slurm)" in result.stdout, result


WRONG = [(mpis.MPICH, "none"), (mpis.OPENMPI, "pmi2"), (mpis.IMPI, "pmix")]


@pytest.mark.parametrize(("mpi", "kind"), WRONG, ids=str)
def test_an_mpi_that_does_not_understand_srun_is_told_what_to_ask_for(slurm, mpi, kind):
    result = slurm.srun(mpi, 2, "python-mpi", "-c", "print('runs')", options=["--mpi=" + kind])
    assert result.returncode == 1, result
    assert "runs" not in result.stdout
    messages = set(re.findall(r"mpiimport: .*", result.stderr))
    assert len(messages) == 1, result
    assert re.match(r"mpiimport: srun started 8 ranks, but `.*` sees only itself: .* `--mpi=pmix`", *messages), messages


def test_the_job_script_of_the_page_runs_under_sbatch(slurm, script, by, tmp_path):
    page = (mpis.ROOT / "docs" / "how-to" / "job-scripts.md").read_text()
    body = re.search(r"^## Slurm\n.*?^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    ranks = "import sys, json\nfrom mpi4py import MPI\nstats = sys.mpiimport.stats()\n"
    script(
        ranks + "assert stats['size'] == MPI.COMM_WORLD.size\nstats['rank'] or print('ranks', stats['size'])\n",
        "script.py",
    )
    for there, here in {
        "--nodes=64": "--nodes=4",
        "--ntasks-per-node=64": "--ntasks-per-node=2",
        "~/env/bin/activate": str(mpis.BIN / "activate"),
        "--mpi=pmi2": "--mpi=" + slurms.SPEAKS[by.name],
    }.items():
        assert there in body, there
        body = body.replace(there, here)
    body += 'python-mpi -c \'import sys; print("plain", hasattr(sys, "mpiimport"))\'\n'
    body += "%s/bin/mpiexec -n 8 python-mpi script.py\n" % by.prefix
    job = script(body, "job.sh")
    sbatch = ["sbatch", "--chdir=%s" % tmp_path, "--output=%s/out" % tmp_path, job]
    submitted = slurm.run(sbatch, env=slurms.settings(by))
    assert submitted.returncode == 0, submitted
    assert within(2 * SECONDS, lambda: not slurm.run(["squeue", "--noheader"]).stdout)
    # MPICH's mpiexec starts its own processes by srun, one on each host, and srun is told what was asked for the ranks.
    warning = "srun: Warning: can't honor --ntasks-per-node"
    lines = [line for line in (tmp_path / "out").read_text().splitlines() if not line.startswith(warning)]
    assert lines == ["ranks 8", "plain False", "ranks 8"]


def test_bench_starts_srun_in_an_allocation(slurm, script, by, tmp_path):
    program = script("import json, colorsys\n")
    salloc = ["salloc", "--quiet", "--nodes=4", "--ntasks-per-node=2"]
    bench = ["mpiimport", "bench", "--rounds", "1", "--json"]
    srun = ["srun", "--mpi=" + slurms.SPEAKS[by.name], "python-mpi", "--require", program]
    env = {**slurms.settings(by), "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
    result = slurm.run([*salloc, *bench, *srun], env=env)
    assert result.returncode == 0, result
    (measured,) = json.loads(result.stdout)["rounds"]
    assert [len(measured[name]["ranks"]) for name in ("plain", "python_mpi")] == [8, 8]
