"""`mpiimport profile` lists, shows and removes profiles, and says in a sentence what it cannot do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpiimport import command
from mpiimport.profile import Profile

SOLVE = ("numpy", "numpy.fft", "scipy", "wave")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a current folder beside it."""
    monkeypatch.setenv("MPIIMPORT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    # The command reads the environment that the process was started with.
    monkeypatch.setitem(sys.modules["posix"].environ, b"MPIIMPORT_CACHE_DIR", os.fsencode(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kept(cache):
    """Write profiles of two programs; return their files."""

    def write(age_s, kind, target, names):
        profile = Profile("auto", kind, target, ["/lib"])
        questions = [b"%d\tmodule\t%s\t/lib\n" % (number, name.encode()) for number, name in enumerate(names)]
        file = Path(profile.path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(profile.header + b"\n" + b"".join(questions) + b"0\tfile\t/data\n")
        os.utime(file, (file.stat().st_mtime - age_s,) * 2)
        return file

    return write(100, "script", str(cache.parent / "solve.py"), SOLVE), write(50, "module", "package.tool", ["json"])


@pytest.fixture
def run(capsys):
    """Run the command; return (status, what it printed, what it complained of)."""

    def run(*arguments):
        status = command.main([*map(str, arguments)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_profiles_are_listed_the_last_used_first(kept, run):
    status, out, err = run("profile", "list")
    assert (status, err) == (0, "")
    assert out.index("module package.tool") < out.index("script %s/solve.py" % Path.cwd())
    (line,) = (line for line in out.splitlines() if "solve.py" in line and "questions" in line)
    assert "5 questions" in line
    assert "%.1f kB" % (kept[0].stat().st_size / 1e3) in line
    assert sys.implementation.cache_tag in line
    assert all(str(file) in out for file in kept)


@pytest.mark.usefixtures("cache")
def test_without_a_cache_there_is_nothing_to_list_or_clear(run):
    assert run("profile", "list") == (0, "", "")
    assert run("profile", "clear") == (0, "removed 0\n", "")


@pytest.mark.parametrize("name", ["solve.py", "./solve.py", "cache/../solve.py", "{cache}/../solve.py", "{file}"])
def test_a_profile_is_shown_by_its_file_or_its_program(cache, kept, run, name):
    status, out, err = run("profile", "show", name.format(cache=cache, file=kept[0]))
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == str(kept[0])
    rows = [line.split() for line in out.splitlines()[-4:]]
    assert rows == [["2", "numpy"], ["1", "scipy"], ["1", "wave"], ["1", "files"]]


def test_a_profile_may_have_any_name(kept, run):
    chosen = kept[0].rename(Path.cwd() / "kept")
    assert run("profile", "show", "kept")[1].startswith("kept\n")
    assert run("profile", "clear", "kept") == (0, "removed 1\n", "")
    assert not chosen.exists()


def test_each_module_is_named_if_asked_for(kept, run):
    status, out, _ = run("profile", "show", "-v", "package.tool")
    assert (status, out.splitlines()[0]) == (0, str(kept[1]))
    assert "  json" in out.splitlines()
    assert [line.strip() for line in run("profile", "show", "-v", "solve.py")[1].splitlines()[-5:-1]] == [*SOLVE]


def test_what_is_named_is_removed_or_all(kept, run):
    assert run("profile", "clear", "solve.py") == (0, "removed 1\n", "")
    assert [file.exists() for file in kept] == [False, True]
    assert run("profile", "clear", kept[1]) == (0, "removed 1\n", "")
    for file in kept:
        file.write_text("")
    assert run("profile", "clear") == (0, "removed 2\n", "")
    assert list(kept[0].parent.iterdir()) == []


@pytest.mark.parametrize("action", ["show", "clear"])
def test_what_is_not_there_is_said(kept, run, action):
    status, out, err = run("profile", action, "absent.py")
    assert (status, out) == (1, "")
    assert err == "mpiimport: there is no profile of `absent.py`; `mpiimport profile list` lists all\n"
    status, out, err = run("profile", action, "absent.profile")
    assert (status, out) == (1, "")
    assert "`absent.profile`: No such file or directory" in err
    assert all(file.exists() for file in kept)


DAMAGES = {
    "is no profile": lambda file: file.write_text("text\n"),
    "is damaged": lambda file: file.write_text(file.read_text() + "garbage\n"),
    "No such file": lambda file: (file.unlink(), file.symlink_to("absent")),
    "others can write to it": lambda file: file.chmod(0o666),
    "it is no file": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_what_cannot_be_used_is_said_and_keeps_nothing_else_from_being_shown(kept, run, reason):
    DAMAGES[reason](kept[0])
    status, out, err = run("profile", "list")
    assert status == 1
    assert "package.tool" in out
    assert "solve.py" not in out
    assert err.startswith("mpiimport: ")
    assert "`%s`" % kept[0] in err
    assert reason in err
    assert err.count("\n") == 1
    assert run("profile", "show", kept[0]) == (1, "", err)
    assert run("profile", "show", "package.tool")[0] == 0
    assert run("profile", "clear", "package.tool")[0] == 0
    if reason != "it is no file":
        assert run("profile", "clear")[0] == 0
        assert not os.path.lexists(kept[0])
    else:
        status, out, err = run("profile", "clear")
        assert (status, out) == (1, "")
        assert "cannot remove `%s`" % kept[0] in err


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("start", [["mpiimport"], [sys.executable, "-m", "mpiimport"]], ids=["script", "-m"])
def test_it_is_a_command(start):
    if start == ["mpiimport"]:
        start = [Path(sys.executable).parent / "mpiimport"]

    def run(*arguments, **keywords):
        command = ["timeout", "-k", "5", "60", *map(str, start), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, **keywords)

    listed = run("profile", "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "package.tool" in listed.stdout
    wrong = run("profile", "forget")
    assert wrong.returncode == 2
    assert "usage: mpiimport" in wrong.stderr
    assert run("profile", "show", "absent").returncode == 1


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("command", ["profile list", "doctor", "doctor --json"])
def test_a_full_disk_under_what_it_prints_is_said_in_a_sentence(command):
    with open("/dev/full", "w") as full:
        argv = ["timeout", "-k", "5", "60", Path(sys.executable).parent / "mpiimport", *command.split()]
        result = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "mpiimport: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("cause", [OSError("of the core"), FileNotFoundError(2, "No such file or directory", "file")])
def test_another_error_is_not_taken_for_one_of_standard_output(run, monkeypatch, cause):
    def fail(_):
        raise cause

    monkeypatch.setattr(command, "list_profiles", fail)
    with pytest.raises(type(cause)) as raised:
        run("profile", "list")
    assert raised.value is cause
