"""A program starts on every rank, with each way to name it."""

import json

import pytest
from mpi import MPICH, without_codecs

NUMPY = """
    import json, sys
    import numpy.fft, scipy.interpolate
    import numpy as np
    from mpi4py import MPI

    spline = scipy.interpolate.CubicSpline(np.arange(10.0), np.arange(10.0) ** 2)
    mine = float(abs(np.fft.fft(np.ones(8)))[0]) + float(spline(2.5)) + MPI.COMM_WORLD.rank
    total = MPI.COMM_WORLD.allreduce(mine)
    print(json.dumps([MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, total, sys.mpiimport.stats()]))
"""


def lines_of(result):
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("ranks", [2, 4])
def test_numpy_and_scipy_compute_the_same_on_every_rank(mpi, script, ranks):
    result = mpi.run(ranks, "python-mpi", script(NUMPY))
    lines = lines_of(result)
    assert sorted(line[0] for line in lines) == list(range(ranks))
    assert {line[1] for line in lines} == {ranks}
    expected = sum(8 + 6.25 + rank for rank in range(ranks))
    assert all(abs(line[2] - expected) < 1e-9 for line in lines)
    for *_, stats in lines:
        assert stats["modules"]["opening"] > 500
        assert len(without_codecs(stats["missed"])) <= 15


def test_a_namespace_package_inside_a_package_is_foreseen(script):
    script("", "pkg/__init__.py")
    script("value = 42\n", "pkg/sub/m.py")
    program = script(
        """
        import sys
        import pkg.sub.m

        print(pkg.sub.m.value, list(pkg.sub.__path__), sys.mpiimport.stats()["missed"])
        """
    )
    result = MPICH.run(2, "python-mpi", program)
    assert result.returncode == 0, result
    assert result.stdout == "42 %r []\n" % [str(program.parent / "pkg" / "sub")] * 2
