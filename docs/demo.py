"""A job as users have them: each rank transforms and interpolates its part of a signal, then all sum up.

Run it with `make demo`, or with your own `mpiexec -n 4 python-mpi docs/demo.py`. It checks its result, and shows how
each rank came by its modules.
"""

import sys

import numpy as np
import scipy.interpolate
from mpi4py import MPI

comm = MPI.COMM_WORLD

# Parseval: the energy of a signal is the same in time and in frequency, here of a cosine that a spline has resampled.
times = np.linspace(comm.rank, comm.rank + 1, 513)
spline = scipy.interpolate.CubicSpline(times, np.cos(2 * np.pi * 5 * times))
samples = spline(np.linspace(comm.rank, comm.rank + 1, 4096, endpoint=False))
energy = np.sum(np.abs(np.fft.fft(samples)) ** 2) / samples.size**2
total = comm.allreduce(energy)
if abs(total - comm.size / 2) > 1e-6 * comm.size:
    sys.exit("the sum over %d ranks is %.9f, but should be %.1f" % (comm.size, total, comm.size / 2))


def opened_libraries():
    """Count the extension modules and libraries of the Python environment that this process has open."""
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line}
    return sum(path.startswith((sys.prefix, sys.base_prefix)) for path in mapped)


mpiimport = getattr(sys, "mpiimport", None)
stats = mpiimport.stats() if mpiimport else None
rows = comm.gather((comm.rank, stats, opened_libraries()))
if comm.rank == 0:
    print("%d ranks, sum %.6f as it should be" % (comm.size, total))
    if stats is None:
        print("started by plain Python: every rank searched and read for itself")
        sys.exit()
    print("MPI: %s" % stats["library"].rpartition("/")[2])
    print()
    print("              modules answered by                    received   opened itself")
    print("rank   opening   other rank   own search   missing     (MB)      .so     .py")
    for rank, counted, libraries in rows:
        modules = counted["modules"]
        print(
            "%4d %9d %12d %12d %9d %8.1f %9d %7d"
            % (
                rank,
                modules["opening"],
                modules["node"],
                modules["local"],
                modules["missing"],
                counted["broadcast_bytes"] / 1e6,
                libraries,
                counted["sources_read"],
            )
        )
    print()
    print("The root's forecast took %.2f s. It did not foresee:" % stats["seconds"]["forecast"])
    print("  " + "\n  ".join(stats["missed"]))
