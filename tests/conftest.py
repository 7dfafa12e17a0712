"""Fixtures for all tests: the installed MPIs, and programs written for one test."""

import textwrap

import mpi as mpis
import pytest


@pytest.fixture(params=mpis.ALL, ids=str)
def mpi(request):
    """Each installed MPI in turn."""
    return request.param


@pytest.fixture(params=(mpis.MPICH, mpis.OPENMPI), ids=str)
def two_mpis(request):
    """MPICH and Open MPI: for what takes long and does not depend on more than the ABI."""
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
