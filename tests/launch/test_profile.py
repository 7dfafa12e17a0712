"""What earlier runs asked makes the next opening exact, and never makes a module another than plain Python's."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mpi as mpis
import pytest
from found import NAMES, PROGRAM, SHOW, launch, write


@pytest.fixture
def settings(tmp_path):
    """The environment of runs that keep profiles in a cache folder of their own."""
    return {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache"), "MPIIMPORT_SCAN": "never"}


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


def edit(tree):
    write(tree / "second/plain.py", "value = 'edited'", age_s=50)


def edit_in_the_same_second(tree):
    file = tree / "second/plain.py"
    status = file.stat()
    write(file, "value = 'PLAIN plain'")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def shadow(tree):
    write(tree / "first/plain.py", "value = 'earlier on the path'")


def remove(tree):
    (tree / "second/package/gone.py").unlink()


def upgrade(tree):
    shutil.rmtree(tree / "second/package")
    write(tree / "second/package/__init__.py", "value = 'upgraded'", age_s=30)
    write(tree / "second/package/inner.py", "value = 'upgraded too'", age_s=30)


def become_a_package(tree):
    write(tree / "second/plain/__init__.py", "value = 'a package by now'")


def become_an_extension(tree):
    shutil.copy(importlib.util.find_spec("_ctypes_test").origin, tree / "first")


def become_a_regular_package(tree):
    write(tree / "first/portion/__init__.py", "value = 'no portion any more'")


def another_portion(tree):
    write(tree / "first/portion/more.py", "value = 'more'")


def lose_bytecode(tree):
    shutil.rmtree(tree / "second/package/__pycache__", ignore_errors=True)
    (tree / "second/package/inner.py").write_text("value = = 1")


def damage_bytecode(tree):
    for file in (tree / "second/package/__pycache__").glob("*.pyc"):
        file.write_bytes(file.read_bytes()[:20])


def bytecode_alone(tree):
    source = tree / "second/plain.py"
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", source], check=True, timeout=60)
    source.unlink()


def bytecode_by_hash(tree):
    write(tree / "second/plain.py", "value = 'by hash'")
    mode = ["--invalidation-mode", "checked-hash"]
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-f", *mode, tree / "second"], check=True, timeout=60)
    status = (tree / "second/plain.py").stat()
    (tree / "second/plain.py").write_text("value = 'HASHED!'")
    os.utime(tree / "second/plain.py", ns=(status.st_atime_ns, status.st_mtime_ns))


def links(tree):
    (tree / "second/package").rename(tree / "elsewhere")
    (tree / "second/package").symlink_to("../elsewhere")
    (tree / "second/plain.py").rename(tree / "target.py")
    (tree / "second/plain.py").symlink_to("../target.py")


CHANGES = (
    edit,
    edit_in_the_same_second,
    shadow,
    remove,
    upgrade,
    become_a_package,
    become_an_extension,
    become_a_regular_package,
    another_portion,
    lose_bytecode,
    damage_bytecode,
    bytecode_alone,
    bytecode_by_hash,
    links,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changed_between_two_runs_is_seen(tree, script, settings, change):
    path = script(PROGRAM)
    launch(mpis.MPICH, path, NAMES, tree=tree, env=settings)
    change(tree)
    second, missed, _ = launch(mpis.MPICH, path, NAMES, tree=tree, env=settings)
    if change not in (another_portion, lose_bytecode, damage_bytecode):
        assert missed == [[], []]
    assert second == launch(mpis.MPICH, path, NAMES, launcher="python", tree=tree)[0]


def test_a_path_that_the_program_changes_is_foreseen_too(tree, script, settings):
    path = script(SHOW + "sys.path.insert(0, sys.argv[1])\nshow('unused', 'plain', 'package.inner', 'absent')\n")
    run = [mpis.MPICH, path, tree / "first"]
    assert all(launch(*run, env={**settings, "PYTHONPATH": str(tree / "second")})[1])
    assert launch(*run, env={**settings, "PYTHONPATH": str(tree / "second")})[1] == [[], []]


def damaged(file):
    file.write_bytes(file.read_bytes()[:-3])


def foreign(file):
    file.write_bytes(file.read_bytes().replace(b"python cpython", b"python otherpython"))


def of_the_future(file):
    file.write_bytes(file.read_bytes().replace(b"profile 1", b"profile 9", 1))


def writable_for_all(file):
    file.chmod(0o606)


def of_another_user(file):
    os.chown(file, 12345, 12345)


def a_folder(file):
    file.unlink()
    file.mkdir()


def binary(file):
    file.write_bytes(os.urandom(2000))


SPOILT = {
    damaged: "damaged",
    foreign: "of another program, Python, or version",
    of_the_future: "of another program, Python, or version",
    writable_for_all: "others can write to it",
    of_another_user: "it belongs to another user",
    a_folder: "it is no file",
    binary: "it is no profile",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_profile_that_cannot_be_used_is_named_and_not_used(tree, tmp_path, script, settings, spoil):
    if spoil is of_another_user and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    path = script(PROGRAM)
    file = tmp_path / "own.profile"
    chosen = {**settings, "MPIIMPORT_PROFILE": str(file)}
    launch(mpis.MPICH, path, "plain", tree=tree, env=chosen)
    spoil(file)
    found, missed, said = launch(mpis.MPICH, path, "plain", tree=tree, env=chosen)
    assert [one["plain"][0] for one in found] == ["plain", "plain"]
    assert [len(names) > 0 for names in missed] == [True, True]
    assert said.count("mpiimport: ") == 1
    assert "`%s`" % file in said
    assert SPOILT[spoil] in said


def test_a_cache_folder_that_cannot_be_written_costs_the_profile_and_nothing_else(tree, tmp_path, script, settings):
    (tmp_path / "cache").write_text("")
    found, _, said = launch(mpis.MPICH, script(PROGRAM), "plain", tree=tree, env=settings)
    assert [one["plain"][0] for one in found] == ["plain", "plain"]
    assert said == ""
    _, _, said = launch(mpis.MPICH, script(PROGRAM), "plain", tree=tree, env=settings, options=["-v"])
    assert said.count("cannot write the profile") == 1


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


def test_killed_at_any_moment_the_profile_is_the_old_one_or_the_new_one(tree, script, settings):
    path = script(PROGRAM + "sys.stdout.flush(); os.close(1)\n")
    env = {**settings, **mpis.MPICH.env, **mpis.clean_environment(), "MPIIMPORT_STABLE": str(tree)}
    env.update({**settings, "PYTHONPATH": "%s:%s" % (tree / "first", tree / "second")})
    names = ["plain", "package,package.inner", "portion.of", "unused", "package.gone,nothing"]
    complete = set()
    for at in range(20):
        argv = [mpis.MPICH.prefix / "bin/mpiexec", "-n", "2", "python-mpi", path, names[at % len(names)]]
        argv = ["timeout", "-k", "5", "60", *map(str, argv)]
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
            job.stdout.read()  # until both ranks have come to their end
            time.sleep(at * 0.004)
            subprocess.run(["pkill", "-KILL", "-P", str(job.pid)], check=False, timeout=10)
            job.wait(30)
        for file in profiles(settings):
            text = Path(file).read_bytes()
            if "/.profile-" not in file:
                assert text.startswith(b"mpiimport profile 1\n")
                assert text.endswith(b"\n")
                complete.add(text)
    _, _, said = launch(mpis.MPICH, path, "plain", tree=tree, env=settings, options=["-v"])
    assert "is not used" not in said


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


def test_a_program_that_finalizes_mpi_early_has_its_profile(two_mpis, tree, script, settings):
    path = script("from mpi4py import MPI\n" + PROGRAM.replace("show(*sys", "import plain\nMPI.Finalize()\nshow(*sys"))
    launch(two_mpis, path, "package", tree=tree, env=settings)
    assert launch(two_mpis, path, "package", tree=tree, env=settings)[1] == [["package"], ["package"]]


def test_without_profile_nothing_is_kept(tree, script, settings):
    launch(mpis.MPICH, script(PROGRAM), "plain", tree=tree, env=settings, options=["--profile", "off"])
    assert profiles(settings) == []
