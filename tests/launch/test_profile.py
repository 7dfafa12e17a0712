"""What earlier runs asked makes the next opening exact, and never makes a module another than plain Python's."""

import os
import subprocess
from pathlib import Path

import mpi as mpis
import pytest
from found import PROGRAM, SHOW, launch


@pytest.fixture
def settings(tmp_path):
    """The environment of runs that keep profiles in a cache folder of their own."""
    return {"MPIIMPORT_PROFILE": "always", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache"), "MPIIMPORT_SCAN": "never"}


def profiles(settings):
    """List the files of profiles."""
    folder = os.path.join(settings["MPIIMPORT_CACHE_DIR"], "profiles")
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


@pytest.mark.parametrize("program", ["numpy.fft, scipy.interpolate", "pandas", "matplotlib.pyplot"])
def test_a_second_run_misses_nothing_on_any_rank(two_mpis, script, settings, program):
    path = script(SHOW + "import %s\nfrom mpi4py import MPI\nshow()\n" % program)
    launch(two_mpis, path, env=settings)
    _, missed, _ = launch(two_mpis, path, env=settings)
    assert missed == [[], []]


def test_what_any_rank_asked_is_known_and_what_is_not_asked_is_kept_for_a_while(two_mpis, tree, script, settings):
    path = script(SHOW + "show(sys.argv[1 + int(os.environ.get('PMI_RANK') or os.environ['OMPI_COMM_WORLD_RANK'])])")
    run = [two_mpis, path]
    first = launch(*run, "plain", "package.inner", tree=tree, env=settings)
    assert [len(missed) > 0 for missed in first[1]] == [True, True]
    assert launch(*run, "package.inner", "plain", tree=tree, env=settings)[1] == [[], []]
    assert launch(*run, "plain", "plain", tree=tree, env=settings)[1] == [[], []]
    assert launch(*run, "package.inner", "portion.of", tree=tree, env=settings)[1] == [[], ["portion", "portion.of"]]
    assert launch(*run, "portion.of", "package.inner", tree=tree, env=settings)[1] == [[], []]


def test_a_path_that_the_program_changes_is_foreseen_too(tree, script, settings):
    path = script(SHOW + "sys.path.insert(0, sys.argv[1])\nshow('unused', 'plain', 'package.inner', 'absent')\n")
    run = [mpis.MPICH, path, tree / "first"]
    assert all(launch(*run, env={**settings, "PYTHONPATH": str(tree / "second")})[1])
    assert launch(*run, env={**settings, "PYTHONPATH": str(tree / "second")})[1] == [[], []]


def test_a_job_that_is_aborted_leaves_the_profile_as_it_was(tree, script, settings):
    path = script(PROGRAM)
    launch(mpis.MPICH, path, "plain", tree=tree, env=settings)
    (file,) = profiles(settings)
    before = Path(file).read_bytes()
    env = {**settings, "PYTHONPATH": "%s:%s" % (tree / "first", tree / "second")}
    path.write_text(path.read_text() + "import nothing_like_this\n")
    assert mpis.MPICH.run(2, "python-mpi", path, "package", env=env, timeout_s=60).returncode != 0
    assert profiles(settings) == [file]
    assert Path(file).read_bytes() == before


def test_two_jobs_that_write_the_same_profile_leave_one_of_the_two(tree, script, settings):
    path = script(PROGRAM)
    env = {**mpis.clean_environment(), **mpis.MPICH.env, **settings, "MPIIMPORT_STABLE": str(tree)}
    env["PYTHONPATH"] = "%s:%s" % (tree / "first", tree / "second")
    argv = ["timeout", "-k", "5", "60", str(mpis.MPICH.prefix / "bin/mpiexec"), "-n", "2", "python-mpi", str(path)]
    names = ("plain", "package.inner")
    jobs = [subprocess.Popen([*argv, name], env=env, stdout=subprocess.DEVNULL) for name in names]
    assert [job.wait(90) for job in jobs] == [0, 0]
    (file,) = profiles(settings)
    text = Path(file).read_text()
    assert sum("\tmodule\t%s\t" % name in text for name in names) >= 1


def test_without_profile_nothing_is_kept(tree, script, settings):
    launch(mpis.MPICH, script(PROGRAM), "plain", tree=tree, env=settings, options=["--profile", "off"])
    assert profiles(settings) == []
