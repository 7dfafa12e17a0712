"""Start-up on several hosts with one slow shared filesystem: wall time, and how long the metadata server is busy.

The hosts and the filesystem are simulated (`tests/hosts`): one metadata server takes 200 us for each operation, one
after another; bytes cost nothing but what FUSE takes to move them. Sizes are hosts x ranks per host. Two cache
profiles: `cache` keeps names and attributes for 5 s and contents, as real clients do; `no cache` asks the server for
every part of every path, each time. mpi4py is imported first everywhere. Beside the variants stand:

- `MPI's start`: a C program that only calls MPI_Init and MPI_Finalize; `python -S`: an empty interpreter without MPI
- `tmpfs`: plain Python whose packages were copied to each host's memory before; MPI lies where it lies for all. How
  long the copying takes is the last table: one archive, read once by each host and unpacked there.

All hosts share the cores of one machine, so wall times grow with their number even where nothing is read. They differ
from run to run: with `--rounds`, the variants are started by turns so many times, and the medians are shown.

    python benchmarks/slow_filesystem.py [--mpi mpich] [--cache 1x1 2x1 4x1 8x1 16x1] [--no-cache 1x1 4x1 16x1]
"""

import os
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis
import operations
import results
import variants
from hosts import filesystem
from hosts.cluster import Cluster, unavailable
from variants import PYTHON, Prepared, Variant

PROGRAM = "from mpi4py import MPI\nimport numpy.fft, scipy.interpolate\n"
SERVICE_US = 200
CACHES = {"cache": filesystem.CLIENT_CACHE, "no cache": filesystem.NO_CACHE}
PACKAGES = ("numpy", "numpy.libs", "scipy", "scipy.libs", "mpi4py")
STAGED = "/tmp/environment"
LIMIT_S = 280

TMPFS = Variant("tmpfs", (STAGED + "/bin/python",))
PYTHON_S = Variant("python -S", (PYTHON, "-S", "-c", ""))
ONLY_MPI = Variant("MPI's start", ("{folder}/only_mpi",))


def stage(folder):
    """Pack the interpreter and the packages of the program into one archive, as one would before a job."""
    library = "lib/python%d.%d" % sys.version_info[:2]
    unneeded = ("test", "tests", "idlelib", "ensurepip", "lib2to3", "site-packages", "turtledemo")

    def wanted(member):
        name = member.name.rpartition("/")[2]
        return None if name in unneeded or name.startswith("config-") else member

    with tarfile.open(folder / "environment.tar", "w") as archive:
        archive.add(os.path.realpath(PYTHON), "bin/python", filter=wanted)
        for file in Path(sys.base_prefix, "lib").glob("libpython*.so*"):
            archive.add(file, "lib/" + file.name)
        archive.add(sysconfig.get_path("stdlib"), library, filter=wanted)
        for name in PACKAGES:
            found = Path(sysconfig.get_path("platlib"), name)
            if found.exists():
                archive.add(found, "%s/site-packages/%s" % (library, name), filter=wanted)
    return folder / "environment.tar"


class Benchmark:
    """Starts of `program.py` in a folder, on some hosts with one cache profile.

    Each is on a new cluster: every host is cold. `env` is for all variants; `archive` is what `TMPFS` unpacks.
    """

    def __init__(self, hosts, cache, folder, *, mpi=mpis.MPICH, ranks_per_host=1, env=None, archive=None):
        self.mpi = mpi
        self.hosts = hosts
        self.ranks_per_host = ranks_per_host
        self.cache = cache
        self.folder = folder
        self.env = env
        self.archive = archive

    def cluster(self):
        """Return a new cluster, to be entered."""
        settings = {"service_us": SERVICE_US, **CACHES[self.cache]}
        return Cluster(self.hosts, writable=[self.folder], shared=[variants.HERE], tmp_size="2g", **settings)

    def run(self, argv, env):
        """Run a job on a cluster of its own; return its result."""
        with self.cluster() as cluster:
            return self.job(cluster, argv, env)

    def job(self, cluster, argv, env):
        """Run a job."""
        result = cluster.run([*cluster.mpi(self.mpi, self.ranks_per_host, env=env), *argv], timeout_s=LIMIT_S)
        if result.returncode:
            raise RuntimeError(repr(result))
        return result

    def measure(self, variant):
        """Return what a start of this variant takes, and for `TMPFS` also what takes place before."""
        found = {}
        if variant in (ONLY_MPI, PYTHON_S):
            argv, env = [str(word).format(folder=self.folder) for word in variant.command], {}
        else:
            place = tempfile.mkdtemp(dir=self.folder)
            way = Prepared(variant, self.folder / "program.py", place, env=self.env, mpi=self.mpi)
            argv, env = way.argv, way.env()
        with self.cluster() as cluster:
            if variant is TMPFS:
                found["staging"] = self.stage(cluster)
                env["LD_LIBRARY_PATH"] = "%s/lib:%s/lib" % (STAGED, self.mpi.prefix)
            cluster.filesystem.reset()
            result = self.job(cluster, argv, env)
            return {**summary(cluster, result.seconds, self.hosts * self.ranks_per_host), **found}

    def stage(self, cluster):
        """Unpack the archive on each host; return what that takes."""
        unpack = ["sh", "-c", "mkdir %s && exec tar -x -b 2048 -C %s -f %s" % (STAGED, STAGED, self.archive)]
        cluster.filesystem.reset()
        began = time.monotonic()
        programs = [cluster.start(unpack, on=host, timeout_s=LIMIT_S) for host in cluster.hosts]
        for program in programs:
            _, said = program.communicate()
            if program.returncode:
                raise RuntimeError("cannot unpack the environment: %s" % said)
        return summary(cluster, time.monotonic() - began, self.hosts)


def summary(cluster, seconds, ranks):
    """Return what is kept of one start."""
    stats = cluster.filesystem.stats()

    def metadata(**wanted):
        return stats.count(**wanted) - sum(stats.count(operation=one, **wanted) for one in ("read", "write"))

    leaves = [metadata(rank=rank) for rank in range(1, ranks)]
    return {
        "wall_s": round(seconds, 3),
        "metadata_busy_s": round(stats.metadata_busy_s, 3),
        "metadata_operations": metadata(),
        "root_operations": metadata(rank=0),
        "leaf_operations": round(sum(leaves) / len(leaves)) if leaves else None,
        "read_bytes": stats.size_bytes(operation="read"),
    }


def median(found):
    """Return of several starts the one whose wall time is the median, or the next above."""
    return sorted(found, key=lambda one: one["wall_s"])[len(found) // 2]


def main():
    """Measure, print and write."""
    parser = results.arguments(__doc__)
    parser.add_argument("--mpi", choices=[mpi.name for mpi in mpis.ALL], default=mpis.MPICH.name)
    parser.add_argument("--cache", nargs="*", default=["1x1", "2x1", "4x1", "8x1", "16x1"])
    parser.add_argument("--no-cache", nargs="*", default=["1x1", "4x1", "16x1"])
    parser.add_argument("--variants", nargs="+", help="only these, by name")
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    if unavailable():
        sys.exit("slow_filesystem.py is not run: %s" % unavailable())
    mpi = next(mpi for mpi in mpis.ALL if mpi.name == chosen.mpi)
    kind = ("_" + mpi.name if mpi is not mpis.MPICH else "") + ("_by_turns" if chosen.rounds > 1 else "")
    report = results.Report(chosen.o, "slow_filesystem" + kind)
    known = [ONLY_MPI, PYTHON_S, *variants.available(report, [*variants.ALL]), TMPFS]
    known = [variant for variant in known if not chosen.variants or variant.name in chosen.variants]
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "program.py").write_text(PROGRAM)
        mpi.run(1, PYTHON, folder / "program.py")  # writes bytecode
        operations.build_only_mpi(mpi, folder)
        archive = stage(folder)
        for cache, sizes in ("cache", chosen.cache), ("no cache", chosen.no_cache):
            if sizes:
                measured[cache] = {size: {} for size in sizes}
            for size in sizes:
                hosts, ranks_per_host = map(int, size.split("x"))
                where = Benchmark(hosts, cache, folder, mpi=mpi, ranks_per_host=ranks_per_host, archive=archive)
                found = {variant.name: [] for variant in known}
                for turn in range(chosen.rounds):
                    for variant in known[turn % len(known) :] + known[: turn % len(known)]:
                        began = time.monotonic()
                        found[variant.name].append(where.measure(variant))
                        seconds = time.monotonic() - began
                        print("%s, %s, %s: %.1f s" % (cache, size, variant.name, seconds), flush=True)
                measured[cache][size] = {name: median(starts) for name, starts in found.items()}
        size_bytes = archive.stat().st_size
    show(report, mpi, measured, size_bytes, chosen.rounds)
    draw(report, measured)
    report.write(
        {
            "service_us": SERVICE_US,
            "program": PROGRAM,
            "rounds": chosen.rounds,
            "staged_bytes": size_bytes,
            "caches": measured,
        }
    )


def show(report, mpi, measured, size_bytes, rounds):
    """Print the tables."""
    report.line(
        "%s, %d us per metadata operation, load %.1f on %d cores, rounds: %d"
        % (mpi.name, SERVICE_US, os.getloadavg()[0], os.cpu_count(), rounds)
    )
    shown = {
        "wall time, s": lambda one: "%.2f" % one["wall_s"],
        "metadata server busy, s": lambda one: "%.2f" % one["metadata_busy_s"],
        "metadata operations of rank 0": lambda one: one["root_operations"],
        "metadata operations of another rank, mean": lambda one: one["leaf_operations"],
        "read from the filesystem, MB": lambda one: round(one["read_bytes"] / 1e6),
    }
    for cache, sizes in measured.items():
        for title, text in shown.items():
            names = list(next(iter(sizes.values()), {}))
            rows = [[name, *(text(found[name]) for found in sizes.values())] for name in names]
            report.line()
            report.table(["%s: %s" % (cache, title), *sizes], rows)
    for cache, sizes in measured.items():
        staged = [found[TMPFS.name]["staging"]["wall_s"] for found in sizes.values() if TMPFS.name in found]
        if staged:
            report.line()
            report.table(
                ["%s: copying %d MB to each tmpfs" % (cache, size_bytes / 1e6), *sizes],
                [["wall time, s", *("%.1f" % wall_s for wall_s in staged)]],
            )


def draw(report, measured):
    """Draw wall time and busy time over the number of hosts, with one rank each."""
    with report.picture(2 * len(measured), size=(14, 4)) as axes:
        places = iter(axes)
        for cache, sizes in measured.items():
            hosts = {int(size[:-2]): found for size, found in sizes.items() if size.endswith("x1")}
            for key, title in (("wall_s", "wall time, s"), ("metadata_busy_s", "metadata server busy, s")):
                here = next(places)
                for name in next(iter(hosts.values())):
                    values = [found[name][key] for found in hosts.values()]
                    here.plot(list(hosts), values, "o-", label=name, markersize=3)
                here.set(xscale="log", yscale="log", xlabel="hosts", title="%s: %s" % (cache, title))
                here.set_xticks(list(hosts), list(map(str, hosts)))
                here.minorticks_off()
        axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    main()
