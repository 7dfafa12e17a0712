"""Count the file operations of a rank on the interpreter's folder and the environment, and say what they are for.

On a cluster both lie on the shared filesystem. Counted are system calls that take a path, and `fstat`, of all threads
and children of a rank: of plain Python with mpi4py, and of rank 0 and another rank under the algorithm of 2014
(`seed.py`) and under `python-mpi`. Two floors stand beside them: `python -S -c ''`, and a C program that only calls
MPI_Init and MPI_Finalize.

    python benchmarks/operations.py [--mpi mpich openmpi] [--programs numpy+scipy ...]
"""

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
import results
import variants
from variants import BUNDLE, FIRST, PLAIN, SECOND, SEED_2014, Prepared

PROGRAMS = {
    "numpy+scipy": "import numpy.fft, scipy.interpolate\n",
    "pandas": "import pandas\n",
    "matplotlib": "import matplotlib.pyplot\n",
}
PYTHON = mpis.BIN / "python"
ENVIRONMENT = sorted({os.path.normpath(folder) for folder in (sys.prefix, sys.base_prefix)})

ONLY_MPI = "#include <mpi.h>\nint main(int c, char **v) { MPI_Init(&c, &v); MPI_Finalize(); return 0; }\n"

FAR = ("--scan", "always")
STORED = (*FAR, "--store", "always")
RANKS = {
    # the column's name: how the program is started, with which options, and which rank it is
    "plain": (PLAIN, (), 1),
    "seed root": (SEED_2014, (), 0),
    "seed": (SEED_2014, (), 1),
    "root": (FIRST, FAR, 0),
    "leaf": (FIRST, FAR, 1),
    "copied": (FIRST, STORED, 1),
    "root 2nd": (SECOND, STORED, 0),
    "copied 2nd": (SECOND, STORED, 1),
    "root bundle": (BUNDLE, STORED, 0),
    "copied bundle": (BUNDLE, STORED, 1),
}
"""The ranks that are looked at. A first run foresees as it does where Python lies on a shared filesystem; `copied`:
native code is copied to each host, as from there too."""

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

    def __init__(self, events, floors, *, reads_source=False):
        self.counts = Counter()
        self.reads_source = reads_source
        self.in_mpi_folder = 0
        self.searched_in_mpi_folder = 0  # for what the program's libraries need: ld.so follows LD_LIBRARY_PATH
        self.missed = {}
        self.copies = next((event.line for event in events if type(event) is Said and event.line[:6] == "seed: "), "")
        self.listed = {purpose: [] for purpose in ("start", "code", "folders", "data")}
        self.sort(events, {purpose: Counter(operations) for purpose, operations in floors.items()})
        self.total = sum(self.counts.values())

    def summary(self):
        """Return what is worth keeping: no paths."""
        shown = ("total", "counts", "in_mpi_folder", "missed", "copies")
        return {name: getattr(self, name) for name in shown}

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
                self.searched_in_mpi_folder += begun and bool(event.error)
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
        for operation, purpose in zip(pending, purposes_of(pending, reads_source=self.reads_source)):
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


def purposes_of(operations, *, reads_source):
    """Yield `code` or `folders` for what the import system does, `data` for what it never does.

    It reads source only where the bytecode does not do, the algorithm of 2014 aside; linecache reads nothing else.
    """
    read = {operation.path for operation in operations if operation.kind == "open"}
    searches_metadata = False
    for kind, path, _ in operations:
        folder, _, name = path.rpartition("/")
        # importlib.metadata lists all of sys.path, and begins with what is no folder: no finder of modules does.
        searches_metadata = (searches_metadata and path in sys.path) or (kind == "list" and name.endswith(".zip"))
        if kind in ("lstat", "readlink", "access", "execve"):
            yield "data"
        elif re.search(r"\.(py|pyc|so)$", name):
            bytecode = "%s/__pycache__/%s.%s.pyc" % (folder, name[:-3], sys.implementation.cache_tag)
            only_source = name.endswith(".py") and path in read and bytecode not in read
            yield "data" if only_source and not reads_source else "code"
        elif kind == "list" or os.path.isdir(path):
            importable = path in sys.path or os.path.exists(path + "/__init__.py")
            yield "folders" if importable and not searches_metadata else "data"
        else:
            yield "data"


def floors_of(mpi, folder):
    """Return what `python -S -c ''` and a C program do on a rank that is not the root: {purpose: operations}."""
    program = build_only_mpi(mpi, folder)
    return {
        "python": traced(mpi, folder / "python", PYTHON, "-S", "-c", "")[1],
        "mpi": traced(mpi, folder / "mpi", program)[1],
    }


def build_only_mpi(mpi, folder):
    """Build the C program that only starts and ends MPI; return its path."""
    source, program = folder / "only_mpi.c", folder / "only_mpi"
    source.write_text(ONLY_MPI)
    headers = mpis.ROOT / ".mpi" / "impi-devel" if mpi is mpis.IMPI else mpi.prefix
    library = min((mpi.prefix / "lib").glob("libmpi.so*"))
    subprocess.run(["cc", "-I%s" % (headers / "include"), "-o", program, source, library], check=True)
    return program


def traced(mpi, folder, *program, env=None):
    """Run a program on two ranks; return what each of them did in the environment and in the MPI's own folder."""
    folder.mkdir()
    ranks = count.trace(mpi, 2, folder, *program, cwd=folder.parent, env=env, timeout_s=120)
    return [count.below(events, [*ENVIRONMENT, mpi.prefix]) for events in ranks]


def measure(mpi, source, floors, folder, *, ranks=RANKS, report=None):
    """Count what a program costs each of `ranks`, some of `RANKS`: {name: Rank}."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(source)
    with_mpi = folder / "with_mpi.py"
    with_mpi.write_text("from mpi4py import MPI\n" + source)
    mpi.run(1, PYTHON, program)  # writes bytecode
    runs = {}
    found = {}
    for name in ranks:
        variant, options, rank = RANKS[name]
        if (variant, options) not in runs:
            place = folder / ("run-%d" % len(runs))
            place.mkdir()
            started = with_mpi if variant is PLAIN else program
            way = Prepared(variant, started, place, options=("-vv", *options), mpi=mpi)
            env = {**way.env(), "SEED_COUNTS": "1", "SEED_TMPDIR": str(place)}
            try:
                runs[variant, options] = traced(mpi, place / "traces", *way.argv, env=env)
            except RuntimeError as cause:
                if variant is not SEED_2014:
                    raise
                runs[variant, options] = None
                report.line("%s under the algorithm of 2014: %s" % (folder.name, last_error(str(cause))))
        if runs[variant, options]:
            found[name] = Rank(runs[variant, options][rank], floors, reads_source=variant is SEED_2014)
    return found


def last_error(text):
    """Return the last line that names an exception, else the last line: ranks may write into each other's lines."""
    lines = text.splitlines() or [""]
    return [lines[-1], *(line for line in lines if re.match(r"\w*Error: ", line))][-1]


def show(report, mpi, floors, programs):
    """Print the tables of one MPI."""
    for name, found in programs.items():
        rows = [[text, *(one.counts[purpose] for one in found.values())] for purpose, text in PURPOSES.items()]
        rows.append(["all", *(one.total for one in found.values())])
        rows.append(["beside it, in the MPI's own folder", *(one.in_mpi_folder for one in found.values())])
        report.line()
        report.table(["%s, %s" % (mpi, name), *found], rows)
        for rank, one in found.items():
            missed = ", ".join("%s (%d)" % pair for pair in one.missed.items())
            if RANKS[rank][2] and missed:
                report.line("%s, not foreseen: %s" % (rank, missed))
            if RANKS[rank][2] and one.copies:
                report.line(one.copies)
    report.line()
    for purpose, operations in floors.items():
        total = len(count.below(operations, ENVIRONMENT))
        report.line("%s, %s: %d, in the MPI's own folder %d" % (mpi, PURPOSES[purpose], total, len(operations) - total))


def main():
    """Measure, print and write."""
    choices = {str(mpi): mpi for mpi in (mpis.MPICH, mpis.OPENMPI)}
    parser = results.arguments(__doc__)
    parser.add_argument("--mpi", nargs="+", choices=choices, default=[*choices])
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=[*PROGRAMS])
    chosen = parser.parse_args()
    if not shutil.which("strace"):
        sys.exit("operations.py needs strace, which is not on PATH.")
    report = results.Report(chosen.o, "operations")
    known = variants.available(report)
    ranks = [name for name, (variant, *_) in RANKS.items() if variant in known]
    written = {}
    for mpi in map(choices.get, chosen.mpi):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            floors = floors_of(mpi, folder)
            programs = {
                name: measure(mpi, PROGRAMS[name], floors, folder / name, ranks=ranks, report=report)
                for name in chosen.programs
            }
        show(report, mpi, floors, programs)
        written[str(mpi)] = {
            "floors": {
                purpose: {"total": len(count.below(operations, ENVIRONMENT)), "with_mpi_folder": len(operations)}
                for purpose, operations in floors.items()
            },
            "programs": {
                name: {rank: one.summary() for rank, one in found.items()} for name, found in programs.items()
            },
        }
    report.write({"ranks": 2, "mpi": written})


if __name__ == "__main__":
    main()
