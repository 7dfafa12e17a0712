"""A rank that is not the root goes to the shared filesystem for libraries and for what was not foreseen only."""

import shutil
import sys

import mpi as mpis
import pytest

sys.path.append(str(mpis.ROOT / "benchmarks"))

import count
import operations

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which CI has")


@pytest.fixture(scope="module")
def floors(tmp_path_factory):
    return operations.floors_of(mpis.MPICH, tmp_path_factory.mktemp("floors"))


@pytest.mark.parametrize("name", operations.PROGRAMS)
def test_a_leaf_reads_no_module_that_was_foreseen(floors, tmp_path, name):
    found = operations.measure(
        mpis.MPICH, operations.PROGRAMS[name], floors, tmp_path / name, ranks=("plain", "root", "leaf")
    )
    root, leaf = found["root"], found["leaf"]
    assert leaf.listed["code"] + leaf.listed["folders"] == []
    assert leaf.counts["python"] <= len(count.below(floors["python"], operations.ENVIRONMENT))
    assert leaf.counts["libraries"] <= root.counts["libraries"]
    assert leaf.counts["libraries"] > 50, "this program loads extension modules"
    assert len(mpis.without_codecs(leaf.missed)) <= 5, leaf.missed
    assert leaf.counts["misses"] <= 15 * len(leaf.missed), leaf.missed
    # What MPI does in its own folder is not ours, what we do there is: an MPI may be installed in the environment.
    ours = leaf.in_mpi_folder - leaf.searched_in_mpi_folder
    ours -= sum(len(one) - len(count.below(one, operations.ENVIRONMENT)) for one in floors.values())
    assert leaf.counts["start"] + max(0, ours) <= operations.START_LIMIT, leaf.listed["start"]


def test_the_programs_folder_is_not_looked_at_for_what_the_environments_modules_import(tmp_path):
    """Plain Python looks there first for each name that is on `sys.path`."""
    program = tmp_path / "program" / "program.py"
    program.parent.mkdir()
    program.write_text(operations.PROGRAMS["numpy+scipy"])
    looked = {}
    for python in "python", "python-mpi":
        folder = tmp_path / python
        folder.mkdir()
        ranks = count.trace(mpis.MPICH, 2, folder, python, program)
        looked[python] = sum(event.path == str(program.parent) for event in count.below(ranks[1], [program.parent]))
    print("\nlooks into the program's folder:", looked)
    assert 0 < looked["python-mpi"] < looked["python"] / 3, looked
