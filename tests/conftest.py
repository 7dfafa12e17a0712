"""Fixtures for all tests: the installed MPIs, and programs written for one test."""

import textwrap

import mpi as mpis
import pytest
from found import write


@pytest.fixture(params=mpis.ALL, ids=str)
def mpi(request):
    """Each installed MPI in turn."""
    return request.param


@pytest.fixture(params=(mpis.MPICH, mpis.OPENMPI), ids=str)
def two_mpis(request):
    """MPICH and Open MPI: for what takes long and does not depend on more than the ABI."""
    return request.param


@pytest.fixture(params=(mpis.MPICH, pytest.param(mpis.OPENMPI, marks=pytest.mark.nightly)), ids=str)
def one_mpi(request):
    """MPICH, at night Open MPI too: for what takes very long, or depends on the MPI even less."""
    return request.param


@pytest.fixture
def script(tmp_path):
    """Write a program for one test and return its path."""

    def write(text, name="program.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def tree(tmp_path):
    """Two folders of modules that count as the environment's."""
    files = {
        "second/plain.py": "value = 'plain'",
        "second/package/__init__.py": "value = 'package'",
        "second/package/inner.py": "value = 'inner'",
        "second/package/gone.py": "value = 'gone'",
        "second/portion/of.py": "value = 'of'",
        "first/unused.py": "",
    }
    for name, text in files.items():
        write(tmp_path / name, text)
    return tmp_path
