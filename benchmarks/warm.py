"""What mpiimport costs where the filesystem costs nothing: whole jobs on one host with a warm local disk.

Each round runs every variant once, beginning with another one each time; a variant is compared with the plain Python of
its round. mpi4py is imported first in all of them. Shown is the median of the ratios with an interval that holds the
true median in 95 of 100 cases, whatever the distribution is (by order statistics).

    python benchmarks/warm.py [--ranks 1 2 4] [--rounds 30]
"""

import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import mpi as mpis
import results
import variants
from variants import OURS, PLAIN, Prepared

PROGRAM = "from mpi4py import MPI\nimport numpy.fft, scipy.interpolate\n"


def interval(values):
    """Return the values between which the median lies in at least 95 of 100 cases, or None for too few values."""
    ordered = sorted(values)
    for low in reversed(range(len(ordered) // 2)):
        outside = 2 * sum(math.comb(len(ordered), below) for below in range(low + 1)) / 2 ** len(ordered)
        if outside <= 0.05:
            return ordered[low], ordered[-1 - low]
    return None


def measure(ranks, rounds, known, folder):
    """Return the seconds of each round: {variant's name: list}."""
    folder.mkdir()
    program = folder / "program.py"
    program.write_text(PROGRAM)
    ways = []
    for number, variant in enumerate(known):
        place = folder / ("variant-%d" % number)
        place.mkdir()
        ways.append(Prepared(variant, program, place))
    for way in ways:
        run(ranks, way.argv, way.env())  # warms the caches
    seconds = {variant.name: [] for variant in known}
    for turn in range(rounds):
        for way in [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]:
            seconds[way.variant.name].append(run(ranks, way.argv, way.env()).seconds)
    return seconds


def run(ranks, argv, env):
    """Run one job."""
    result = mpis.MPICH.run(ranks, *argv, env=env, timeout_s=120)
    if result.returncode:
        raise RuntimeError(repr(result))
    return result


def main():
    """Measure, print and write."""
    parser = results.arguments(__doc__)
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "warm")
    known = variants.available(report, [PLAIN, *OURS])
    measured = {}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for ranks in chosen.ranks:
            seconds = measure(ranks, chosen.rounds, known, Path(temporary) / str(ranks))
            plain = seconds[PLAIN.name]
            measured[ranks] = {}
            for name, values in seconds.items():
                ratios = [one / other for one, other in zip(values, plain)]
                found = {"seconds": values, "median_s": statistics.median(values), "ratio": statistics.median(ratios)}
                found["interval"] = interval(ratios)
                measured[ranks][name] = found
                between = "%.3f to %.3f" % found["interval"] if found["interval"] and name != PLAIN.name else ""
                rows.append([name, ranks, "%.3f" % found["median_s"], "%.3f" % found["ratio"], between])
    report.line("%d rounds, load %.1f on %d cores" % (chosen.rounds, os.getloadavg()[0], os.cpu_count()))
    report.line()
    report.table(["variant", "ranks", "median, s", "ratio to plain", "95% interval"], rows)
    draw(report, measured)
    report.write({"program": PROGRAM, "ranks": measured})


def draw(report, measured):
    """Draw the ratios."""
    with report.picture(size=(6, 3.5)) as (axes,):
        names = [name for name in next(iter(measured.values())) if name != PLAIN.name]
        for number, name in enumerate(names):
            found = [of_ranks[name] for of_ranks in measured.values()]
            places = [place + 0.12 * (number - (len(names) - 1) / 2) for place in range(len(found))]
            ratios = [one["ratio"] for one in found]
            spans = [one["interval"] or (one["ratio"], one["ratio"]) for one in found]
            errors = [
                [r - low for r, (low, _) in zip(ratios, spans)],
                [high - r for r, (_, high) in zip(ratios, spans)],
            ]
            axes.errorbar(places, ratios, yerr=errors, fmt="o", capsize=3, label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(measured)), ["%s" % ranks for ranks in measured])
        axes.set_xlabel("ranks, on one host with a warm local disk")
        axes.set_ylabel("time, plain Python = 1")
        axes.legend()


if __name__ == "__main__":
    main()
