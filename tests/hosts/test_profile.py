"""The profile holds what the ranks of all hosts asked."""

import json

import mpi as mpis
import pytest

PROGRAM = """
    import json, os, sys
    stats = sys.mpiimport.stats
    __import__(["wave", "colorsys", "xml.dom", "cmd"][stats()["rank"]])
    os.write(1, (json.dumps({key: stats()[key] for key in ("rank", "host", "missed")}) + "\\n").encode())
"""


@pytest.mark.parametrize("mpi", [mpis.MPICH, mpis.OPENMPI], ids=str)
def test_each_rank_of_each_host_finds_what_it_asked_before(cluster, script, tmp_path, mpi):
    program = script(PROGRAM)
    options = ["--profile", tmp_path / "profile", "--scan", "never"]
    rows = []
    for _ in range(2):
        result = cluster.run([*cluster.mpi(mpi, 2, hosts=cluster.hosts[:2]), "python-mpi", *options, program])
        assert result.returncode == 0, result
        rows.append(sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda row: row["rank"]))
    first, second = rows
    assert len({row["host"] for row in first}) == 2
    assert all(row["missed"] for row in first)
    assert [row["missed"] for row in second] == [[]] * 4
