"""`mpiimport bench` launches the user's own command with plain Python and with python-mpi, and says what each took."""

import json

import mpi as mpis
import pytest

BENCH = mpis.BIN / "mpiimport"
PROGRAM = """
from __future__ import annotations
import sys, wave
try:
    import not_there
except ImportError:
    not_there = None
from beside import VALUE
with open(VALUE, "a") as file:
    file.write("ran")
"""


def bench(mpi, *argv, env=None, **keywords):
    """Run `mpiimport bench` with what an MPI needs."""
    return mpis.run([BENCH, "bench", *argv], env={**mpi.env, **(env or {})}, **keywords)


def mpiexec(mpi, ranks):
    return [mpi.prefix / "bin" / "mpiexec", "-n", ranks]


@pytest.fixture
def program(tmp_path):
    (tmp_path / "beside.py").write_text(
        "import pathlib\nVALUE = %r\npathlib.Path(%r).open('a').write('x')\n"
        % (str(tmp_path / "ran"), str(tmp_path / "imported"))
    )
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "program.py"


def test_both_import_what_the_program_imports_and_run_nothing_of_it(two_mpis, program, tmp_path):
    cache = {"MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
    options = ["python-mpi", "-u", "-Wignore", "--timeout", "50", program, "argument"]
    result = bench(two_mpis, "--rounds", "2", "--json", *mpiexec(two_mpis, 2), *options, env=cache)
    assert (result.returncode, result.stderr) == (0, ""), result
    found = json.loads(result.stdout)
    assert [len(one[name]["ranks"]) for one in found["rounds"] for name in ("plain", "python_mpi")] == [2] * 4
    assert all(0 <= one["plain"]["ranks"][0] <= one["plain"]["launch"] + 0.02 for one in found["rounds"])
    assert found["plain"][-4:-1] == ["-u", "-Wignore", "-c"]
    assert "--timeout" in found["python_mpi"]
    assert (tmp_path / "imported").read_text() == "x" * 8
    assert not (tmp_path / "ran").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_table_says_who_is_ready_when(program):
    result = bench(mpis.MPICH, "--rounds", "1", *mpiexec(mpis.MPICH, 3), "python-mpi", program)
    assert result.returncode == 0, result
    lines = result.stdout.splitlines()
    assert lines[0] == "3 ranks, 1 rounds by turns; seconds"
    assert [line.split(",")[0] for line in lines[2:4]] == ["plain Python", "python-mpi"]


@pytest.mark.parametrize("options", [["-m", "json.tool", "x"], ["-c", "import wave", "x"]], ids=["module", "command"])
def test_programs_that_are_no_scripts(options):
    result = bench(mpis.MPICH, "--rounds", "1", "--json", *mpiexec(mpis.MPICH, 2), "python-mpi", *options)
    assert result.returncode == 0, result
    assert "import " in json.loads(result.stdout)["plain"][-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "has no `python-mpi` in it"),
        (["mpiexec", "python", "x.py"], "has no `python-mpi` in it"),
        (["no-such-launcher", "python-mpi", "x.py"], "`no-such-launcher` is no command here"),
        (["sh", "python-mpi", "--nonsense", "x.py"], "there is no option --nonsense"),
        (["sh", "python-mpi", "/no/such.py"], "cannot read the imports of `/no/such.py`: No such file or directory"),
        (["sh", "python-mpi", "-m", "no_such_module"], "there is no module `no_such_module`"),
        (["sh", "python-mpi", "-c", "1"], "imports nothing when it starts"),
        (["sh", "python-mpi"], "bench needs a script"),
        (["false", "python-mpi", "-c", "import wave"], "ended with exit code 1"),
        (["--rounds", "none", "sh"], "--rounds is `none`"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(argv, message):
    result = mpis.run([BENCH, "bench", *argv])
    assert result.returncode != 0
    assert result.stdout == ""
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_under_a_launcher_one_rank_says_that_bench_starts_it():
    result = mpis.MPICH.run(2, BENCH, "bench", "mpiexec", "python-mpi", "x.py")
    assert result.returncode != 0
    assert result.stderr.count("bench starts the launcher itself") == 1
