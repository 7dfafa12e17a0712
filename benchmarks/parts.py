"""Where the time of mpiimport's own start goes, part by part, on rank 0 and on another rank.

Measured from outside, by `timed_boot.py`: on one host with a warm local disk (medians), and on simulated hosts with a
slow filesystem, one rank each (see `slow_filesystem.py`). A rank that waits for rank 0 is shown as waiting.

    python benchmarks/parts.py [--ranks 4] [--runs 10] [--hosts 4]
"""

import ast
import statistics
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis
import results
import slow_filesystem
import variants
from hosts.cluster import unavailable
from variants import OURS, PYTHON, Prepared

TIMED_BOOT = variants.HERE / "timed_boot.py"
LOAD = (
    "import sys, _frozen_importlib, _frozen_importlib_external; name = sys.argv.pop(1); "
    "_frozen_importlib._load(_frozen_importlib_external.spec_from_file_location('timed_boot', name))"
)
TIMED = 'began=$(date +%s%N) exec "$@"'
ORDER = (
    "start the interpreter",
    "load the core",
    "find libmpi",
    "MPI_Init, communicators",
    "join the other ranks",
    "receive mpiimport",
    "make the node store",
    "site",
    "read the profile",
    "forecast",
    "find and read",
    "native code",
    "pack",
    "broadcast, wait for rank 0",
    "else",
    "the program",
)


def on_clock(argv, file):
    """Return the command line with `python-mpi` replaced by its like on a clock."""
    folder = sysconfig.get_path("platlib")
    return ["sh", "-c", TIMED, "sh", PYTHON, "-S", "-c", LOAD, TIMED_BOOT, folder, file, *argv[1:]]


def read(file, ranks):
    """Return the seconds of each part of rank 0 and the means of the other ranks', as two dicts."""
    found = [ast.literal_eval(Path("%s.%d" % (file, rank)).read_text()) for rank in range(ranks)]
    others = found[1:] or found
    parts = {part for one in found for part in one}
    return found[0], {part: statistics.mean(one.get(part, 0.0) for one in others) for part in parts}


def local(variant, ranks, runs, folder):
    """Return medians of several runs on this host."""

    def run(argv, env):
        result = mpis.MPICH.run(ranks, *argv, env=env, timeout_s=120)
        if result.returncode:
            raise RuntimeError(repr(result))
        return result

    way = Prepared(variant, folder / "program.py", tempfile.mkdtemp(dir=folder))
    run(way.argv, way.env())
    found = []
    for _ in range(runs):
        run(on_clock(way.argv, folder / "parts"), way.env())
        found.append(read(folder / "parts", ranks))
    return [medians([of_run[which] for of_run in found]) for which in (0, 1)]


def medians(found):
    """Return the median of each part."""
    return {part: statistics.median(one.get(part, 0.0) for one in found) for part in found[0]}


def on_hosts(variant, hosts, folder):
    """Return one run on simulated hosts."""
    where = slow_filesystem.Benchmark(hosts, "cache", folder)
    way = Prepared(variant, folder / "program.py", tempfile.mkdtemp(dir=folder))
    where.run(on_clock(way.argv, folder / "parts"), way.env())
    return list(read(folder / "parts", hosts))


def main():
    """Measure, print and write."""
    parser = results.arguments(__doc__)
    parser.add_argument("--ranks", type=int, default=4, help="on one host")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--hosts", type=int, default=4, help="0 for none")
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "parts")
    known = variants.available(report, OURS)
    reason = unavailable() if chosen.hosts else "not asked for"
    if reason:
        report.line("no simulated hosts: %s" % reason)
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "program.py").write_text(slow_filesystem.PROGRAM)
        for variant in known:
            title = "%s, one host, %d ranks" % (variant.name, chosen.ranks)
            measured[title] = local(variant, chosen.ranks, chosen.runs, folder)
            if not reason:
                title = "%s, %d hosts, slow filesystem" % (variant.name, chosen.hosts)
                measured[title] = on_hosts(variant, chosen.hosts, folder)
    for title, (root, other) in measured.items():
        parts = [part for part in ORDER if root.get(part, 0.0) + other.get(part, 0.0) >= 0.0005]
        rows = [[part, *("%.3f" % one.get(part, 0.0) for one in (root, other))] for part in parts]
        rows.append(["all", *("%.3f" % sum(one.values()) for one in (root, other))])
        report.line()
        report.table([title + ", seconds", "rank 0", "another rank"], rows)
    draw(report, measured)
    report.write({"parts": measured})


def draw(report, measured):
    """Draw the parts of each start as one bar."""
    from matplotlib import colormaps

    with report.picture(size=(9, 1 + 0.5 * 2 * len(measured))) as (axes,):
        bars = [
            ("%s, %s" % (title, who), found[which])
            for title, found in measured.items()
            for which, who in enumerate(("rank 0", "another"))
        ]
        left = [0.0] * len(bars)
        colours = colormaps["tab20"].colors
        for part, colour in zip(ORDER, colours):
            widths = [found.get(part, 0.0) for _, found in bars]
            axes.barh(range(len(bars)), widths, left=left, label=part, color=colour)
            left = [start + width for start, width in zip(left, widths)]
        axes.set_yticks(range(len(bars)), [title for title, _ in bars], fontsize="small")
        axes.invert_yaxis()
        axes.set_xlabel("seconds")
        axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    main()
