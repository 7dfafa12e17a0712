"""The launcher script hands Python its own options, and sees the program begin where boot.py sees it."""

import os
import subprocess
from pathlib import Path

import mpi as mpis
import pytest

from site_mpi import boot

PYTHONS_OWN = "bBEOPqsu"
VALUE = "a 'b' \"c\" $HOME;*\\"


@pytest.fixture
def start(tmp_path):
    """Start the launcher as `PATH/python-mpi` with an interpreter that shows its arguments; return both halves."""
    folder = tmp_path / "a bin"
    folder.mkdir()
    script = folder / "python-mpi"
    script.write_bytes((mpis.BIN / "python-mpi").read_bytes())
    script.chmod(0o755)
    python(folder / "python3")

    def start(*arguments, program=script, python="python3", **env):
        env = {"PATH": os.environ["PATH"], **env}
        done = subprocess.run([program, *arguments], env=env, check=True, capture_output=True, cwd=tmp_path)
        name, *shown = done.stdout.decode().split("\0")[:-1]
        assert Path(name).name == python
        end = shown.index("-c", shown.index("-S"))
        assert "boot.main()" in shown[end + 1]
        assert shown[end + 2] == str(folder), "where the script lies"
        return shown[:end], shown[end + 3 :]

    return start


def python(path):
    """Make an interpreter that shows its arguments."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("""#!/bin/sh\nprintf '%s\\0' "$0" "$@"\n""")
    path.chmod(0o755)


def forms(name, short, value):
    """Return the ways to give an option, with a value if it has one."""
    if value is None:
        return [["--" + name], *([["-" + short], ["-v" + short]] if short else [])]
    return [["--" + name, value], ["--%s=%s" % (name, value)]] + (
        [["-" + short, value], ["-" + short + value], ["-v" + short, value]] if short else []
    )


@pytest.mark.parametrize("option", boot.OPTIONS, ids=lambda option: option[0])
def test_after_each_option_pythons_own_are_found(start, option):
    name, short, value_name, *_ = option
    value = None if value_name is None else boot.CHOICES.get(name.replace("-", "_"), ["3"])[0]
    ends = name in ("command", "module")
    for given in forms(name, short, value):
        for before, after in (([], ["-O", "script.py", "-B"]), (["-u"], ["--", "-B"])):
            arguments = [*before, *given, *after]
            options, left = start(*arguments)
            expected = [] if ends or after[0] == "--" else ["-O"]
            assert options == ["-S", *before, *expected], arguments
            assert left == arguments
            _, rest = boot.parse(left)
            assert rest == (after if ends else [one for one in after if one not in ("-O", "--")]), arguments


@pytest.mark.parametrize("letter", PYTHONS_OWN)
def test_pythons_own_options_are_passed_on(start, letter):
    for arguments in (["-" + letter, "x"], ["-v" + letter, "x"], ["-%s" % (letter * 2), "x"]):
        options, left = start(*arguments)
        assert options == ["-S", *["-" + letter] * arguments[0].count(letter)]
        assert left == arguments
        assert boot.parse(left)[1] == ["x"]


@pytest.mark.parametrize("letter", "WX")
def test_pythons_own_values_are_passed_on(start, letter):
    for given in (["-" + letter, VALUE], ["-" + letter + VALUE], ["-u" + letter, VALUE]):
        options, left = start(*given, "-%s" % letter, "", "x", VALUE)
        assert options == ["-S", *(["-u"] if "u" in given[0][:2] else []), "-" + letter, VALUE, "-" + letter, ""]
        assert boot.parse(left)[1] == ["x", VALUE]


def test_pythons_long_option_is_passed_on(start):
    given = ["--check-hash-based-pycs", "always"]
    options, left = start("-u", *given, "-O", "x", *given)
    assert options == ["-S", "-u", *given, "-O"]
    assert left == ["-u", *given, "-O", "x", *given]
    assert boot.parse(left)[1] == ["x", *given]


@pytest.mark.parametrize("program", ["script.py", "-", "--", "-z"])
def test_what_follows_the_program_is_the_programs(start, program):
    options, left = start("-O", program, "-B", "-W", VALUE)
    assert options == ["-S", "-O"] if program != "-z" else ["-S", "-O", "-B", "-W", VALUE]
    assert left == ["-O", program, "-B", "-W", VALUE]


def test_without_arguments_there_are_none(start):
    assert start() == (["-S"], [])
    assert start("", "x") == (["-S"], ["", "x"])


def test_the_script_is_found_through_links_and_relative_paths(start, tmp_path):
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to("../a bin/python-mpi")
    relative = "a bin/python-mpi"
    for program in (link, relative, "./a bin/../" + relative):
        assert start("x", program=program) == (["-S"], ["x"])
    path = "%s:%s" % (tmp_path / "a bin", os.environ["PATH"])
    assert start("x", program="python-mpi", PATH=path) == (["-S"], ["x"])


def test_the_interpreter_can_be_chosen(start, tmp_path):
    other = tmp_path / "other python"
    python(other)
    assert start("x", MPIIMPORT_PYTHON=str(other), python="other python") == (["-S"], ["x"])


def test_without_an_interpreter_beside_it_the_folder_tells_the_version(start, tmp_path):
    (tmp_path / "a bin" / "python3").unlink()
    (tmp_path / "lib" / "python3.7" / "site-packages" / "site_mpi").mkdir(parents=True)
    python(tmp_path / "on path" / "python3.7")
    path = "%s:%s" % (tmp_path / "on path", os.environ["PATH"])
    assert start("x", PATH=path, python="python3.7") == (["-S"], ["x"])
