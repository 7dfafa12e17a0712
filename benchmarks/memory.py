"""Measure what the ranks of one host have in memory together, and say what it is.

Counted is the proportional set size (PSS), which charges each of n processes with 1/n of a page that they share: its
sum over the ranks is what they occupy. It is read while all ranks have imported the same and initialised mpi4py, of
plain Python, and of `python-mpi` on its first and second run, with native code opened where it lies and copied to the
host.

    python benchmarks/memory.py [-n RANKS] [-o FILE]
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis

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


def show(mpi, found):
    """Print the table of one MPI, in megabytes."""
    columns = {
        "root": lambda ranks, kind: ranks[0][kind],
        "leaf": lambda ranks, kind: sum(rank[kind] for rank in ranks[1:]) / (len(ranks) - 1),
        "all": lambda ranks, kind: sum(rank[kind] for rank in ranks),
    }
    width = max(map(len, KINDS.values())) + 2
    print("\n%s, megabytes" % mpi)
    print(" " * width + "".join("%30s" % name for name in found))
    print(" " * width + "".join("%10s" % column for _ in found for column in columns))
    for kind, text in KINDS.items():
        cells = [column(ranks, kind) for ranks in found.values() for column in columns.values()]
        print(text.ljust(width) + "".join("%10.1f" % (cell / 1e6) for cell in cells))
    cells = [sum(column(ranks, kind) for kind in KINDS) for ranks in found.values() for column in columns.values()]
    print("all".ljust(width) + "".join("%10.1f" % (cell / 1e6) for cell in cells))
    totals = {name: sum(sum(rank.values()) for rank in ranks) for name, ranks in found.items()}
    for name, total in totals.items():
        print("%s: %.3f of plain Python" % (name, total / totals["plain"]))


def main():
    """Measure and print; write all of it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-n", metavar="RANKS", type=int, default=8)
    parser.add_argument("-o", metavar="FILE", type=Path, help="write what was measured as JSON")
    chosen = parser.parse_args()
    written = {}
    for mpi in (mpis.MPICH, mpis.OPENMPI):
        found = {name: measure(mpi, chosen.n, argv) for name, argv in WAYS.items()}
        show(mpi, found)
        written[str(mpi)] = found
    if chosen.o:
        chosen.o.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
