"""Count the file operations of a rank on the interpreter's folder and the environment, and say what they are for.

On a cluster both lie on the shared filesystem. Counted are system calls that take a path, and `fstat`, of all threads
and children of a rank: of plain Python with mpi4py, and of rank 0 and another rank under `python-mpi`. Two floors stand
beside them: `python -S -c ''`, and a C program that only calls MPI_Init and MPI_Finalize.

    python benchmarks/operations.py [-o FILE]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import count
from count import Said

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis

PROGRAMS = {
    "numpy+scipy": "import numpy.fft, scipy.interpolate\n",
    "pandas": "import pandas\n",
    "matplotlib": "import matplotlib.pyplot\n",
}
PYTHON = mpis.BIN / "python"
ENVIRONMENT = sorted({os.path.normpath(folder) for folder in (sys.prefix, sys.base_prefix)})

ONLY_MPI = "#include <mpi.h>\nint main(int c, char **v) { MPI_Init(&c, &v); MPI_Finalize(); return 0; }\n"

RANKS = ("plain", "root", "leaf", "copied")
"""Plain Python with mpi4py; rank 0 and another under `python-mpi`; the latter with native code copied to its host."""

START_LIMIT = 25
"""What our start may cost a rank that is not the root."""

PURPOSES = {
    "python": "the interpreter's start (python -S)",
    "mpi": "MPI's start (the C program)",
    "start": "mpiimport's start",
    "libraries": "libraries: opened, copied, searched by ld.so",
    "misses": "modules not foreseen",
    "code": "modules else: .py, .pyc, .so found and read",
    "folders": "folders else: stat, list",
    "data": "what packages look at themselves",
}

# What the finder says of each question: how it was answered, and what was found.
TOLD = re.compile(
    r"mpiimport: rank \d+ on \S+: (?P<name>[^\s:]+): (?P<how>opening|node|local|lockstep)(?:, (?P<kind>\w+))?"
)
SEARCHED_BY_LD_SO = re.compile(r"/(glibc-hwcaps|tls|x86_64|haswell|atomics)(/|$)")


class Rank:
    """What one rank did: how many operations for each purpose, and which modules they were for."""

    def __init__(self, events, floors):
        self.counts = Counter()
        self.in_mpi_folder = 0
        self.missed = {}
        self.listed = {purpose: [] for purpose in ("start", "code", "folders", "data")}
        self.sort(events, {purpose: Counter(operations) for purpose, operations in floors.items()})
        self.total = sum(self.counts.values())

    def sort(self, events, floors):
        """Find the purpose of each operation."""
        begun = not any(type(event) is Said and TOLD.match(event.line) for event in events)
        interpreter = False
        pending = []
        previous = None
        last_told = None
        copied = None
        for event in events:
            if type(event) is Said:
                told = TOLD.match(event.line)
                if told:
                    begun = True
                    asked = told["how"] in ("node", "local")
                    self.settle(pending, told["name"] if asked else last_told)
                    # Each rank asks its own finders afterwards, or where a library lies that it did not foresee.
                    follows = told["kind"] == "local" or (asked and told["kind"] == "extension")
                    last_told = told["name"] if follows else None
                    copied = told["name"].rpartition(".")[2] if told["kind"] == "extension" and not asked else None
                continue
            if not count.below([event], ENVIRONMENT):
                self.in_mpi_folder += 1
                continue
            interpreter = interpreter or (event.kind == "execve" and not event.path.endswith("/python-mpi"))
            floor = next((purpose for purpose, left in floors.items() if interpreter and left[event]), None)
            if floor is not None:
                floors[floor][event] -= 1
                self.counts[floor] += 1
            elif not begun and (not interpreter or is_own(event)):
                self.note("start", event)
            elif is_library(event, previous) or (copied and is_extension(event, copied)):
                self.counts["libraries"] += 1
            elif not begun:
                self.note("start", event)
            else:
                pending.append(event)
            previous = event
        self.settle(pending, last_told)

    def settle(self, pending, missed):
        """Say what these operations were for; those of the import system were for the module that was missed."""
        if missed is not None:
            self.missed.setdefault(missed, 0)
        for operation, purpose in zip(pending, purposes_of(pending)):
            if missed is not None and purpose != "data":
                self.counts["misses"] += 1
                self.missed[missed] += 1
            else:
                self.note(purpose, operation)
        pending.clear()

    def note(self, purpose, operation):
        """Count an operation and remember it."""
        self.counts[purpose] += 1
        self.listed[purpose].append("%s %s %s" % operation)


def is_own(operation):
    """Whether this operation is on a file of mpiimport, or part of the search for libmpi."""
    name = operation.path.rpartition("/")[2]
    own = "/site_mpi" in operation.path or "/mpiimport/" in operation.path
    return own or name.startswith("libmpi") or (name.startswith("MPI.") and operation.path.count("/mpi4py/"))


def is_library(operation, previous):
    """Whether ld.so does this to open a library, or in search of one."""
    if re.search(r"\.so(\.|$)", operation.path):
        return operation.kind in ("open", "fstat")
    if operation.kind == "stat" and SEARCHED_BY_LD_SO.search(operation.path):
        return True
    # ld.so looks whether a folder is there in which it did not find a library.
    missing = previous is not None and previous.error and is_library(previous, None)
    return missing and operation.kind == "stat" and previous.path.rpartition("/")[0] == operation.path


def is_extension(operation, name):
    """Whether this operation is on the extension module with this name."""
    file = operation.path.rpartition("/")[2]
    return file.startswith(name + ".") and file.endswith(".so")


def purposes_of(operations):
    """Yield `code` or `folders` for what the import system does, `data` for what it never does."""
    read = {operation.path for operation in operations if operation.kind == "open"}
    searches_metadata = False
    for kind, path, _ in operations:
        folder, _, name = path.rpartition("/")
        # importlib.metadata lists all of sys.path, and begins with what is no folder: no finder of modules does.
        searches_metadata = (searches_metadata and path in sys.path) or (kind == "list" and name.endswith(".zip"))
        if kind in ("lstat", "readlink", "access", "execve"):
            yield "data"
        elif re.search(r"\.(py|pyc|so)$", name):
            # The import system reads source only where the bytecode does not do; linecache reads nothing else.
            bytecode = "%s/__pycache__/%s.%s.pyc" % (folder, name[:-3], sys.implementation.cache_tag)
            yield "data" if name.endswith(".py") and path in read and bytecode not in read else "code"
        elif kind == "list" or os.path.isdir(path):
            importable = path in sys.path or os.path.exists(path + "/__init__.py")
            yield "folders" if importable and not searches_metadata else "data"
        else:
            yield "data"


def floors_of(mpi, folder):
    """Return what `python -S -c ''` and a C program do on a rank that is not the root: {purpose: operations}."""
    source, program = folder / "only_mpi.c", folder / "only_mpi"
    source.write_text(ONLY_MPI)
    folders = ["-I%s" % (mpi.prefix / "include"), "-L%s" % (mpi.prefix / "lib")]
    subprocess.run(["cc", *folders, "-o", program, source, "-lmpi"], check=True)
    return {
        "python": traced(mpi, folder / "python", PYTHON, "-S", "-c", "")[1],
        "mpi": traced(mpi, folder / "mpi", program)[1],
    }


def traced(mpi, folder, *program):
    """Run a program on two ranks; return what each of them did in the environment and in the MPI's own folder."""
    folder.mkdir()
    ranks = count.trace(mpi, 2, folder, *program, cwd=folder.parent, timeout_s=120)
    return [count.below(events, [*ENVIRONMENT, mpi.prefix]) for events in ranks]


def measure(mpi, source, floors, folder, *, ranks=RANKS):
    """Count what a program costs each of `RANKS`: {name: Rank}."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(source)
    mpi.run(1, PYTHON, program)  # writes bytecode
    root, leaf = traced(mpi, folder / "python-mpi", "python-mpi", "-vv", program)
    found = {"root": Rank(root, floors), "leaf": Rank(leaf, floors)}
    if "copied" in ranks:
        options = ("-vv", "--store", "always")
        found["copied"] = Rank(traced(mpi, folder / "copied", "python-mpi", *options, program)[1], floors)
    if "plain" in ranks:
        program.write_text("from mpi4py import MPI\n" + source)
        found["plain"] = Rank(traced(mpi, folder / "plain", PYTHON, program)[1], floors)
    return found


def show(mpi, floors, programs):
    """Print the table of one MPI."""
    width = max(map(len, PURPOSES.values())) + 2
    print("\n%s" % mpi)
    print(" " * width + "".join("%32s" % name for name in programs))
    print(" " * width + "".join("%8s" % rank for _ in programs for rank in RANKS))
    shown = [found[rank] for found in programs.values() for rank in RANKS]
    for purpose, text in PURPOSES.items():
        print(text.ljust(width) + "".join("%8d" % one.counts[purpose] for one in shown))
    print("all".ljust(width) + "".join("%8d" % one.total for one in shown))
    print("beside it, in the MPI's own folder".ljust(width) + "".join("%8d" % one.in_mpi_folder for one in shown))
    for purpose, operations in floors.items():
        total = len(count.below(operations, ENVIRONMENT))
        print("%s: %d, in the MPI's own folder %d" % (PURPOSES[purpose], total, len(operations) - total))
    for name, found in programs.items():
        missed = ", ".join("%s (%d)" % one for one in found["leaf"].missed.items())
        print("%s, not foreseen: %s" % (name, missed or "nothing"))


def main():
    """Measure and print; write all of it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", metavar="FILE", type=Path, help="write what was counted as JSON")
    chosen = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("operations.py needs strace, which is not on PATH.")
    written = {}
    for mpi in (mpis.MPICH, mpis.OPENMPI):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            floors = floors_of(mpi, folder)
            programs = {name: measure(mpi, source, floors, folder / name) for name, source in PROGRAMS.items()}
        show(mpi, floors, programs)
        written[str(mpi)] = {
            "floors": {
                purpose: {"total": len(count.below(operations, ENVIRONMENT)), "with_mpi_folder": len(operations)}
                for purpose, operations in floors.items()
            },
            "programs": {
                name: {
                    rank: {**vars(one), "listed": one.listed if rank in ("leaf", "copied") else {}}
                    for rank, one in found.items()
                }
                for name, found in programs.items()
            },
        }
    if chosen.o:
        chosen.o.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
