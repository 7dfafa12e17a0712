"""A model of a start: seconds from file operations, bytes, hosts and ranks; fitted, checked, and drawn to 16,384 ranks.

One start takes

    fixed                                            what does not depend on the shared filesystem
    + root * (way + service)                         what rank 0 does alone, while the others wait
    + max(each * (way + service), all * service)     what all do at the same time
    + bytes read / filesystem's rate + bytes broadcast / network's rate

with `root`, `each` and `all` the operations of rank 0 alone, of one rank, and of all ranks. The maximum is the usual
bound of a queue: either a rank is busy with its own operations one after another, or the one server with all.

1. Compared with what `slow_filesystem.py` measured. There, operations are those that reach the server, `fixed` is the
   measured time of the environment in tmpfs at the same size, without what the server works for it, and the true
   `service` is known.
2. Calibrated with the published times of plain Python on Blue Waters (README of mpiimport, 2014) and the published
   system calls, to predict the published times with mpiimport of 2014: these are not used in the calibration.
3. With the constants of 2 and the system calls that `operations.py` counts today, from 32 to 16,384 ranks.

    python benchmarks/model.py [--measured FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import results
from scipy.optimize import least_squares

LEADS = ("seed", "first run", "second run", "bundle")
"""The variants in which rank 0 works alone first."""


class Start(NamedTuple):
    """The operations of a start: `root` is 0 where rank 0 does nothing that others do not. `fixed` in s, if known."""

    root: float
    each: float
    all: float
    fixed: float = 0.0


class Machine(NamedTuple):
    """What a machine takes: `fixed` in s, `way` and `service` in s per operation."""

    fixed: float
    way: float
    service: float

    def seconds(self, start):
        """Return the seconds of a start, bytes aside."""
        own = self.way + self.service
        together = max(start.each * own, start.all * self.service)
        return self.fixed + start.fixed + start.root * own + together


def calibrate(points, *, free):
    """Return the `Machine` that fits [(Start, seconds)] best, by relative error; what is not `free` is 0."""

    def machine(logarithms):
        values = dict(zip(free, np.exp(logarithms)))
        return Machine(*(values.get(name, 0.0) for name in Machine._fields))

    def errors(logarithms):
        one = machine(logarithms)
        return [np.log(one.seconds(start) / seconds) for start, seconds in points]

    first = {"fixed": 1.0, "way": 1e-3, "service": 1e-4}
    begins = [np.log([first[name] * factor for name in free]) for factor in (0.1, 1, 10)]
    found = min((least_squares(errors, begin) for begin in begins), key=lambda one: one.cost)
    return machine(found.x)


# 1. What was measured here


def measured_points(measured):
    """Return what was measured with one rank per host: [(cache, size, variant, Start, wall seconds)]."""
    found = []
    for cache, sizes in measured["caches"].items():
        for size, starts in sizes.items():
            for name in ("plain", *LEADS):
                # On one rank python-mpi is plain Python.
                if name not in starts or not size.endswith("x1") or (size == "1x1" and name not in ("plain", "seed")):
                    continue
                one = starts[name]
                fixed = starts["tmpfs"]["wall_s"] - starts["tmpfs"]["metadata_busy_s"]
                total, root, leaf = (one[key] for key in ("metadata_operations", "root_operations", "leaf_operations"))
                alone = root - leaf if name in LEADS and leaf is not None else 0
                start = Start(alone, root - alone, total - alone, fixed)
                found.append((cache, size, name, start, one["wall_s"]))
    return found


def compare_measured(report, measured):
    """Compare with what is known beforehand; then find the two constants as if they were not."""
    points = measured_points(measured)
    known = Machine(0.0, 0.0, measured["service_us"] / 1e6)
    report.line("1. Simulated hosts, one rank each: nothing fitted (way 0, service %d us)" % measured["service_us"])
    report.line()
    errors = [known.seconds(start) / wall_s - 1 for *_, start, wall_s in points]
    report.table(
        ["cache, variant", "size", "measured, s", "modelled, s", "error"],
        [
            ["%s, %s" % (cache, name), size, "%.1f" % wall_s, "%.1f" % known.seconds(start), "%+.0f%%" % (100 * error)]
            for (cache, size, name, start, wall_s), error in sorted(zip(points, errors), key=lambda one: one[0][:3:2])
        ],
    )
    without = [(start, wall_s) for _, _, name, start, wall_s in points if name != "seed"]
    machine = calibrate(without, free=("way", "service"))
    left = [100 * (machine.seconds(start) / wall_s - 1) for start, wall_s in without]
    report.line()
    found = (machine.way * 1e6, machine.service * 1e6)
    report.line("fitted to all but the seed's: way %.0f us, service %.0f us" % found)
    spread = (np.median(np.abs(left)), min(left), max(left))
    report.line("half of the errors are then within %.0f%%, all from %+.0f%% to %+.0f%%" % spread)
    return {"machine": machine._asdict(), "errors_unfitted": errors, "errors_percent": left}


# 2. Blue Waters, 2014. The times and the counts are those of the README of mpiimport of that year.

PUBLISHED_OPERATIONS = {
    # program: plain, rank 0, another rank
    "numpy": (4557, 4772, 1194),
    "numpy+scipy": (8089, 8624, 1541),
}
PUBLISHED_SECONDS = (
    # program, ranks, plain, with mpiimport of 2014; two runs are averaged
    ("numpy", 32, 19.71, 15.50),
    ("numpy", 1024, 32.26, 33.19),
    ("numpy+scipy", 1024, 50.60, 39.05),
    ("numpy", 16384, 416.4, 123.5),
    ("numpy+scipy", 16384, 530.1, 221.0),
)
RANKS_PER_HOST = 32


def check_published(report):
    """Calibrate with plain Python's times, predict the others, and show both beside what was published."""
    points = []
    predicted = []
    for program, ranks, plain_s, seed_s in PUBLISHED_SECONDS:
        plain, root, leaf = PUBLISHED_OPERATIONS[program]
        points.append((Start(0, plain, plain * ranks), plain_s))
        predicted.append((Start(root, leaf, leaf * ranks), seed_s))
    machine = calibrate(points, free=("fixed", "way", "service"))
    report.line()
    report.line("2. Blue Waters, 2014: calibrated with plain Python's times, the others predicted")
    report.line()
    report.line(
        "fixed %.1f s, way %.2f ms, service %.2f us" % (machine.fixed, machine.way * 1e3, machine.service * 1e6)
    )
    report.line()
    rows = []
    kept = []
    for (program, ranks, *_), fitted, others in zip(PUBLISHED_SECONDS, points, predicted):
        row = [program, ranks]
        for start, seconds in (fitted, others):
            modelled = machine.seconds(start)
            row += ["%.1f" % seconds, "%.1f" % modelled, "%+.0f%%" % (100 * (modelled / seconds - 1))]
        rows.append(row)
        kept.append(row)
    head = ["program", "ranks", "plain: published, s", "fitted", "error", "2014: published, s", "predicted", "error"]
    report.table(head, rows)
    return machine, {"machine": machine._asdict(), "head": head, "rows": kept}


# 3. Today's system calls on that machine

FILESYSTEM_BYTES_PER_S = 10e9
BROADCAST_BYTES_PER_S = 1e9
RANKS = (32, 128, 512, 1024, 4096, 16384)
COUNTED = {
    # the variant: what `operations.py` calls its rank 0, if that works alone first, and another rank
    "plain": (None, "plain"),
    "seed": ("seed root", "seed"),
    "first run": ("root", "copied"),
    "second run": ("root 2nd", "copied 2nd"),
    "bundle": ("root bundle", "copied bundle"),
}


def predict(report, machine, counted, measured):
    """Show and return the seconds of each variant from 32 to 16,384 ranks."""
    mpich = counted["mpi"]["mpich"]
    ranks_of = mpich["programs"]["numpy+scipy"]
    two, four = (measured["caches"]["cache"][size] for size in ("2x1", "4x1"))
    rates = (FILESYSTEM_BYTES_PER_S / 1e9, BROADCAST_BYTES_PER_S / 1e9)
    report.line()
    report.line(
        "3. Today's system calls (numpy+scipy) on a machine of those constants, %d ranks to a host" % RANKS_PER_HOST
    )
    report.line("assumed: the filesystem reads %g GB/s for all hosts together, a broadcast goes at %g GB/s" % rates)
    report.line()

    def calls(name):
        return ranks_of[name]["total"] + ranks_of[name]["in_mpi_folder"]

    floor = sum(one["with_mpi_folder"] for one in mpich["floors"].values())
    found = {"python -S, MPI's start": {"root": 0, "each": floor, "read_bytes": 0, "broadcast_bytes": 0}}
    for name, (root, each) in COUNTED.items():
        if each not in ranks_of or name not in four:
            continue
        # A further host costs this much; what rank 0 reads beyond it is broadcast.
        read_bytes = (four[name]["read_bytes"] - two[name]["read_bytes"]) / 2
        sent_bytes = two[name]["read_bytes"] - 2 * read_bytes if root else 0
        alone = calls(root) - calls(each) if root else 0
        found[name] = {"root": alone, "each": calls(each), "read_bytes": read_bytes, "broadcast_bytes": sent_bytes}
    for of in found.values():
        of["seconds"] = [
            machine.seconds(Start(of["root"], of["each"], of["each"] * ranks))
            + of["read_bytes"] * (ranks // RANKS_PER_HOST) / FILESYSTEM_BYTES_PER_S
            + of["broadcast_bytes"] / BROADCAST_BYTES_PER_S
            for ranks in RANKS
        ]
    report.table(
        ["seconds on ranks", *RANKS], [[name, *("%.0f" % one for one in of["seconds"])] for name, of in found.items()]
    )
    report.line()
    report.table(
        ["", "rank 0 alone", "each rank", "read, MB per host", "broadcast, MB"],
        [
            [name, of["root"], of["each"], "%.0f" % (of["read_bytes"] / 1e6), "%.0f" % (of["broadcast_bytes"] / 1e6)]
            for name, of in found.items()
        ],
    )
    with report.picture(size=(6, 4)) as (axes,):
        for name, of in found.items():
            axes.plot(RANKS, of["seconds"], "o-", label=name, markersize=3)
        axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="seconds, modelled")
        axes.set_xticks(RANKS, list(map(str, RANKS)))
        seconds = (10, 20, 50, 100, 200, 500)
        axes.set_yticks(seconds, list(map(str, seconds)))
        axes.minorticks_off()
        axes.legend(fontsize="small")
    return {"ranks": RANKS, "variants": found}


def main():
    """Compare, check, predict, print and write."""
    parser = results.arguments(__doc__)
    parser.add_argument("--measured", type=Path, default=results.FOLDER, help="the results of the two that are read")
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "model")
    read = {}
    for name in ("slow_filesystem", "operations"):
        file = chosen.measured / (name + ".json")
        if not file.exists():
            sys.exit("model.py needs the results of %s.py. Run that first." % name)
        read[name] = json.loads(file.read_text())
    compared = compare_measured(report, read["slow_filesystem"])
    machine, published = check_published(report)
    predicted = predict(report, machine, read["operations"], read["slow_filesystem"])
    report.write({"measured": compared, "published": published, "predicted": predicted})


if __name__ == "__main__":
    main()
