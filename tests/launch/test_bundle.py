"""A bundle gives what the tree would give; one that does not is named in a sentence, and not used."""

import marshal
import os
import shutil
import sys
import time

import mpi as mpis
import pytest
from found import NAMES, PROGRAM, launch, write

sys.path.append(str(mpis.ROOT / "benchmarks"))

import count

RUN = {"MPIIMPORT_SCAN": "never"}
SCAN = {"MPIIMPORT_SCAN": "always"}


@pytest.fixture
def paths(tree):
    """What decides on the modules that are found."""
    return {
        "PYTHONPATH": "%s:%s" % (tree / "first", tree / "second"),
        "MPIIMPORT_STABLE": "%s:%s" % (tree / "first", tree / "second"),
        **RUN,
    }


@pytest.fixture
def bundle(tree, script, paths):
    """A bundle of a program and its path."""
    file, program = tree / "program.mpib", script(PROGRAM)
    make(file, program, paths, "--include", NAMES)
    return file, program


def make(file, program, env, *options):
    """Make a bundle."""
    result = mpis.run(
        [mpis.BIN / "mpiimport", "bundle", "-o", file, *options, program], env={**env, **SCAN}, timeout_s=60
    )
    assert result.returncode == 0, result
    assert result.stdout.startswith("%s: " % file)


def with_bundle(mpi, bundle, names, paths, *options):
    """Run the program with its bundle; return what the ranks found, what they missed, and standard error."""
    file, program = bundle
    return launch(mpi, program, names, env=paths, options=["--bundle", file, *options])


@pytest.mark.parametrize("validate", ["stat", "none"])
def test_every_rank_finds_what_plain_python_finds_and_misses_nothing(two_mpis, bundle, paths, validate):
    found, missed, said = with_bundle(two_mpis, bundle, NAMES, paths, "--validate", validate)
    assert found == launch(two_mpis, bundle[1], NAMES, launcher="python", env=paths)[0]
    assert missed == [[], []]
    assert said == ""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_native_code_comes_out_of_the_bundle_and_the_root_opens_no_original(tmp_path, script):
    program = script("import numpy.fft, scipy.interpolate, pandas\nprint(numpy.fft.fft([1, 2]))\n")
    file = tmp_path / "program.mpib"
    cache = {"MPIIMPORT_CACHE_DIR": str(tmp_path / "cache"), "MPIIMPORT_PROFILE": "auto"}
    mpis.MPICH.run(2, "python-mpi", program, env=cache, timeout_s=60)
    make(file, program, cache)
    (tmp_path / "traces").mkdir()
    options = ["--bundle", file, "--validate", "none", "--store", "always", "--profile", "off"]
    traced = count.trace(mpis.MPICH, 2, tmp_path / "traces", "python-mpi", *options, program, timeout_s=120)
    for rank, events in enumerate(traced):
        opened = [
            one.path
            for one in count.below(events, [sys.prefix])
            if type(one) is count.Operation and one.kind == "open" and not one.error
        ]
        assert [path for path in opened if path.endswith(".so") and "/mpiimport/" not in path] == [], rank
        assert [path for path in opened if path.endswith(".pyc") and not is_ours(path)] == [], rank


def is_ours(path):
    """Whether a file belongs to mpiimport itself."""
    return "/mpiimport/" in path or "/site_mpi/" in path


def edit(tree):
    write(tree / "second/plain.py", "value = 'edited'", age_s=50)


def add(tree):
    write(tree / "first/plain.py", "value = 'earlier on the path'")


def remove(tree):
    (tree / "second/package/gone.py").unlink()


@pytest.mark.parametrize("change", [edit, add, remove], ids=lambda change: change.__name__)
def test_a_bundle_that_is_out_of_date_is_named_once_and_not_used(bundle, tree, paths, change):
    change(tree)
    found, missed, said = with_bundle(mpis.MPICH, bundle, NAMES, paths)
    assert found == launch(mpis.MPICH, bundle[1], NAMES, launcher="python", env=paths)[0]
    assert all(missed)
    assert said.count("mpiimport: ") == 1
    assert "has changed since it was made. Make it again. Going on without it." in said


def test_the_programs_own_folder_may_change_and_move(bundle, tree, paths):
    file, program = bundle
    write(program.parent / "plain.py", "value = 'beside the program'", age_s=0)
    later = time.time() + 5
    os.utime(program.parent, (later, later))
    beside = launch(mpis.MPICH, program, NAMES, launcher="python", env=paths)[0]
    assert beside[0]["plain"][0] == "beside the program"
    assert with_bundle(mpis.MPICH, bundle, NAMES, paths) == (beside, [["plain"], ["plain"]], "")

    moved = tree / "moved" / program.name
    moved.parent.mkdir()
    shutil.copy(program, moved)
    found, missed, said = with_bundle(mpis.MPICH, (file, moved), NAMES, paths)
    assert found == launch(mpis.MPICH, moved, NAMES, launcher="python", env=paths)[0]
    assert "package.inner" not in missed[0]
    assert said == ""


def truncated(data):
    return data[:-10]


def cut_short(data):
    return data[:30]


def empty(_):
    return b""


def foreign(_):
    return b"#!/bin/sh\n" * 100


def of_the_future(data):
    return data.replace(b"bundle 3\n", b"bundle 4\n", 1)


def damaged_table(data):
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def damaged_section(data, name):
    at = 31 + int.from_bytes(data[19:27], "little")
    sections = marshal.loads(data[31:at])["sections"]
    at += sum(size for _, size, _ in sections[: [name for name, *_ in sections].index(name)]) + 100
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damaged_code(data):
    return damaged_section(data, "program body")


def damaged_mpiimport(data):
    return damaged_section(data, "mpiimport")


SPOILT = {
    truncated: "is truncated",
    cut_short: "is truncated",
    empty: "is no bundle of mpiimport",
    foreign: "is no bundle of mpiimport",
    of_the_future: "is of another version of mpiimport",
    damaged_table: "is damaged",
    damaged_code: "is damaged",
    damaged_mpiimport: "is damaged",
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_bundle_is_refused_in_a_sentence(bundle, paths, spoil):
    file, _ = bundle
    file.write_bytes(spoil(file.read_bytes()))
    found, _, said = with_bundle(mpis.MPICH, bundle, "plain", paths, "--validate", "none")
    assert [one["plain"][0] for one in found] == ["plain", "plain"]
    assert said.count("mpiimport: ") == 1
    assert "the bundle `%s` %s" % (file, SPOILT[spoil]) in said
    if spoil is damaged_mpiimport:
        return  # `show` does not read it
    shown = mpis.run([mpis.BIN / "mpiimport", "bundle", "show", file])
    assert (shown.returncode, shown.stdout) == (1, "")
    assert SPOILT[spoil] in shown.stderr


def test_a_bundle_that_others_can_write_is_refused(bundle, paths):
    bundle[0].chmod(0o666)
    _, missed, said = with_bundle(mpis.MPICH, bundle, "plain", paths)
    assert all(missed)
    assert "is not used: others can write to it" in said


def test_a_bundle_for_another_environment_is_refused(bundle, paths):
    _, missed, said = with_bundle(mpis.MPICH, bundle, "plain", {**paths, "PYTHONPATH": paths["PYTHONPATH"] + ":/other"})
    assert all(missed)
    assert "is for another PYTHONPATH" in said


def test_a_bundle_that_is_not_there_ends_the_job_with_a_sentence(two_mpis, script):
    result = two_mpis.run(2, "python-mpi", "--bundle", "/nowhere/at.all", script("print('ran')"), timeout_s=60)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.count("mpiimport: cannot read the bundle `/nowhere/at.all`: No such file or directory") == 1
    assert "Traceback" not in result.stderr


def test_what_cannot_be_made_is_said_in_a_sentence(tmp_path, script):
    program = script("import json\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for output, words in {
        tmp_path / "nowhere/program.mpib": "nowhere/program.mpib`: No such file or directory",
        tmp_path / "folder": "folder`: that is no file",
        tmp_path / "pipe": "pipe`: that is no file",
    }.items():
        result = mpis.run([mpis.BIN / "mpiimport", "bundle", "-o", output, program])
        assert (result.returncode, result.stdout) == (1, "")
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    result = mpis.run([mpis.BIN / "mpiimport", "bundle", "-o", tmp_path / "one.mpib", tmp_path / "absent.py"])
    assert result.returncode == 2
    assert "can't open file" in result.stderr
    result = mpis.MPICH.run(2, "python-mpi", "--write-bundle", tmp_path / "one.mpib", program)
    assert result.returncode == 2
    assert result.stderr.count("--write-bundle is for one process") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != program.name) == ["folder", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_bundle_is_shown(bundle):
    file, program = bundle
    shown = mpis.run([mpis.BIN / "mpiimport", "bundle", "show", "-v", file])
    assert shown.returncode == 0
    assert "script %s" % program in shown.stdout
    assert "  package.inner\n" in shown.stdout
