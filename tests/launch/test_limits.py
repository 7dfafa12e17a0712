"""A rank at its limits, of open files or of memory: the job does what it does without them, or ends and says why."""

import mpi as mpis
import pytest

LIMITED = """
import os, resource
rank = int(os.environ["PMI_RANK"])
room = int(os.environ["TEST_ROOM"])
if str(rank) in os.environ["TEST_RANKS"].split():
    if os.environ["TEST_LIMIT"] == "files":
        limit = max(map(int, os.listdir("/proc/self/fd"))) + room
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    else:
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (room << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""
PROGRAM = """
import json.tool, sys, wave, xml.dom.pulldom
import numpy.fft
late = __import__("cs" + "v")
print(abs(numpy.fft.fft(numpy.ones(4))[0]), late.__name__, wave.__name__)
"""
# It is foreseen and not imported: more than there is room for.
FORESEEN = """
def never():
    import pandas, scipy.interpolate, sklearn.linear_model
"""


def run(script, tmp_path, kind, room, ranks, program=PROGRAM):
    script(LIMITED, "site/sitecustomize.py")
    store = tmp_path / "store"
    store.mkdir(exist_ok=True)
    env = {
        "PYTHONPATH": str(tmp_path / "site"),
        "MPIIMPORT_TMPDIR": str(store),
        "OPENBLAS_NUM_THREADS": "1",  # each takes some memory
        "TEST_LIMIT": kind,
        "TEST_ROOM": str(room),
        "TEST_RANKS": ranks,
    }
    result = mpis.MPICH.run(3, "python-mpi", "--store", "always", script(program), env=env, timeout_s=40)
    return result, [one.name for one in store.iterdir()]


@pytest.mark.parametrize("ranks", ["0 1 2", *(pytest.param(rank, marks=pytest.mark.nightly) for rank in "01")])
@pytest.mark.parametrize(("kind", "room"), [("files", 1), ("files", 4), ("files", 12), ("memory", 200)])
def test_a_rank_with_room_for_plain_python_has_room_for_us(script, tmp_path, kind, room, ranks):
    result, left = run(script, tmp_path, kind, room, ranks)
    assert (result.returncode, result.stderr, left) == (0, "", []), result
    assert result.stdout == "4.0 csv wave\n" * 3


@pytest.mark.parametrize("ranks", ["0", "1", pytest.param("0 1 2", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("kind", "room"), [("files", 0), ("memory", 3)])
def test_a_rank_without_room_ends_the_job_with_one_message(script, tmp_path, kind, room, ranks):
    result, _ = run(script, tmp_path, kind, room, ranks, PROGRAM + FORESEEN)
    assert result.returncode, result
    assert "4.0" not in result.stdout
    assert not result.timed_out
    said = [line for line in result.stderr.splitlines() if not line.startswith(("Abort(", "note: "))]
    assert len(said) == 1, result
    _, left = run(script, tmp_path, "files", 1000, "")
    assert left == []


@pytest.mark.parametrize("ranks", ["0", pytest.param("0 1 2", marks=pytest.mark.nightly)])
def test_a_root_with_room_for_the_start_but_not_for_the_program_fails_as_the_program_does(script, tmp_path, ranks):
    result, _ = run(script, tmp_path, "memory", 3, ranks)
    assert result.returncode, result
    assert not result.timed_out
    assert ": failed to map segment from shared object" in result.stderr, result
    _, left = run(script, tmp_path, "files", 1000, "")
    assert left == []
