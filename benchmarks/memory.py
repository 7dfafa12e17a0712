"""Measure what the ranks of one host have in memory together, and say what it is.

Counted is the proportional set size (PSS), which charges each of n processes with 1/n of a page that they share: its
sum over the ranks is what they occupy. It is read while all ranks have imported the same and initialised mpi4py, of
plain Python, and of `python-mpi` on its first and second run, with native code opened where it lies and copied to the
host.

    python benchmarks/memory.py [-n RANKS] [-o FOLDER]
"""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis
import results

PROGRAM = """
import numpy.fft, scipy.interpolate
from mpi4py import MPI

MPI.COMM_WORLD.Barrier()
with open("/proc/self/smaps", "rb") as file:
    mappings = file.read()
MPI.COMM_WORLD.Barrier()
with open("%s/%d" % (__import__("sys").argv[1], MPI.COMM_WORLD.rank), "wb") as file:
    file.write(mappings)
"""

WAYS = {
    "plain": ["python"],
    "first run": ["python-mpi", "--store", "never"],
    "first run, copied": ["python-mpi", "--store", "always"],
    "second run": ["python-mpi", "--store", "never", "--profile", "{profile}"],
    "second run, copied": ["python-mpi", "--store", "always", "--profile", "{profile}"],
}
"""The second run has the profile of a first one."""

KINDS = {
    "private": "private: the heap, what libraries write to",
    "libraries": "libraries: as in their files",
    "openings": "mpiimport's openings",
    "mpi": "MPI's shared memory",
    "other": "other files",
}
HEADER = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ (?P<inode>\d+) *(?P<path>.*)")


def kind_of(path):
    """Return what a mapping of this file is, of `KINDS`."""
    if re.search(r"/mpiimport-[^/]*/shared( \(deleted\))?$", path):
        return "openings"
    if re.search(r"\.so(\.|$)|/bin/python[\d.]*$", path):
        return "libraries"
    return "mpi" if path.startswith(("/dev/shm/", "/dev/zero", "/SYSV", "/memfd:")) else "other"


def sizes_of(mappings):
    """Sum the PSS of a rank's mappings by kind, in bytes: pages of its own are private, whatever file they are of."""
    sizes = Counter()
    kind = None
    for line in mappings.splitlines():
        header = HEADER.match(line)
        if header:
            kind = kind_of(header["path"]) if header["inode"] != "0" else "private"
            continue
        name, _, value = line.partition(":")
        if name == "Pss":
            sizes[kind] += int(value.split()[0]) << 10
        elif name == "Anonymous" and kind != "private":
            size_bytes = int(value.split()[0]) << 10
            sizes[kind] -= size_bytes
            sizes["private"] += size_bytes
    return sizes


def measure(mpi, ranks, argv):
    """Run the program; return the sizes of each rank."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(PROGRAM)
        argv = [word.format(profile=folder + "/profile") for word in argv]
        for _ in range(2 if "--profile" in argv else 1):
            result = mpi.run(ranks, *argv, program, folder, env={"OMP_NUM_THREADS": "1"}, timeout_s=120)
            if result.returncode != 0:
                raise RuntimeError("`%s` failed: %r" % (" ".join(argv), result))
        return [sizes_of(Path(folder, str(rank)).read_text()) for rank in range(ranks)]


def show(report, mpi, found):
    """Print the table of one MPI: megabytes of the root, of another rank, and of all."""
    sums = {name: [rank[kind] for rank in ranks for kind in KINDS] for name, ranks in found.items()}
    plain = sum(sums["plain"])
    for name, ranks in found.items():
        leaves = ranks[1:]
        rows = [
            [
                text,
                *(
                    "%.1f" % (value / 1e6)
                    for value in (ranks[0][kind], mean(leaves, kind), sum(r[kind] for r in ranks))
                ),
            ]
            for kind, text in KINDS.items()
        ]
        rows.append(["all", "", "", "%.1f" % (sum(sums[name]) / 1e6)])
        rows.append(["against plain Python", "", "", "%.3f" % (sum(sums[name]) / plain)])
        report.table(["%s, %s, megabytes" % (mpi, name), "rank 0", "another rank", "all"], rows)
        report.line()


def mean(ranks, kind):
    """Return the mean size of a kind."""
    return sum(rank[kind] for rank in ranks) / len(ranks)


def main():
    """Measure, print and write."""
    parser = results.arguments(__doc__)
    parser.add_argument("-n", metavar="RANKS", type=int, default=8)
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "memory")
    measured = {}
    for mpi in (mpis.MPICH, mpis.OPENMPI):
        found = measured[str(mpi)] = {name: measure(mpi, chosen.n, argv) for name, argv in WAYS.items()}
        show(report, mpi, found)
    report.write({"program": PROGRAM, "ranks": measured})


if __name__ == "__main__":
    main()
