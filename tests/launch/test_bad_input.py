"""What a user gets for a mistake: one clear message, the exit code of plain Python, and no waiting."""

import re
import shutil
import sys
from pathlib import Path

import mpi as mpis
import pytest

LAUNCHERS_OWN = re.compile(
    r"Abort\(\d+\) on node.*"
    r"|.*PMIX ERROR.*|\[warn] .*|\[[^]:]+:\d+\] (?:pmix|PMIX|prte|PRTE)_.*"
    r"|-{60,}\n(?:.|\n)*?\n-{60,}"
    r"|\[\S+ \[\[\d+,\d+\],\d+\] ORTE_ERROR_LOG.*"
)
PROGRAM = "import sys; print('ran')"
LIBRARY = """
    import sys
    from mpi4py import MPI
    print(MPI.COMM_WORLD.size, sys.mpiimport.stats()["library"])
"""
ALONE_AND_LAUNCHED = pytest.mark.parametrize(
    "mpi", [None, mpis.MPICH, mpis.OPENMPI], ids=["no-launcher", "mpich", "openmpi"]
)
# Open MPI ends a job with the first of its ranks, which must not be before the message; MPICH waits for all of them.
ALONE_AND_HASTY = pytest.mark.parametrize("mpi", [None, mpis.OPENMPI], ids=["no-launcher", "openmpi"])


def start(mpi, *argv, ranks=3, **keywords):
    """Run a program under an MPI, or as one process for None."""
    return mpis.run(argv, **keywords) if mpi is None else mpi.run(ranks, *argv, **keywords)


def said(result):
    """What mpiimport and Python wrote to standard error."""
    text = LAUNCHERS_OWN.sub("", result.stderr.replace("\0", ""))
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def assert_one_message(result, status, *parts):
    """Check that the job ended with this status and one message, which has all these parts."""
    assert result.returncode == status, result
    message = "\n".join(said(result))
    assert message.count("mpiimport: ") == 1, result
    assert message.startswith("mpiimport: "), result
    assert "Traceback" not in message, result
    for part in parts:
        assert part in message, result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with programs that cannot be started."""
    files = {
        "no-main/other.py": b"",
        "broken.py": b"import sys\nprint('first line')\nx = (\n",
        "null.py": b"x = 1\n\0\n",
        "latin.py": b"x = '\xe9'\n",
        "package/__init__.py": b"",
        "empty.zip": b"PK\5\6" + bytes(18),
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@ALONE_AND_LAUNCHED
@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-script.py"],
        ["no-main"],
        ["empty.zip"],
        ["broken.py"],
        ["-c", "x = ("],
        ["-m", "no_such_module"],
        ["-m", "no_such_package.module"],
        ["-m", "package"],
    ],
    ids=" ".join,
)
def test_a_program_that_cannot_be_started_is_reported_once_as_plain_python_does(folder, mpi, arguments):
    plain = mpis.run([mpis.BIN / "python", *arguments], cwd=folder)
    result = start(mpi, "python-mpi", *arguments, cwd=folder)
    assert said(plain), plain
    assert said(result) == said(plain), result
    assert (result.returncode, result.stdout) == (plain.returncode, ""), result


@ALONE_AND_LAUNCHED
@pytest.mark.parametrize(("name", "line", "why"), [("null.py", 2, "null bytes"), ("latin.py", 1, "0xe9")])
def test_a_script_that_is_no_text_is_named_with_the_line(folder, mpi, name, line, why):
    plain = mpis.run(["python", name], cwd=folder)
    result = start(mpi, "python-mpi", name, cwd=folder)
    assert (result.returncode, result.stdout) == (plain.returncode, ""), result
    assert said(result)[0] == '  File "%s", line %d' % (folder / name, line), result
    assert re.fullmatch("SyntaxError: .*%s.*" % why, said(result)[-1]), result
    assert len(said(result)) <= 4, result


@ALONE_AND_LAUNCHED
def test_a_module_with_a_syntax_error_is_reported_where_it_is_run(folder, mpi):
    plain = mpis.run(["python", "-m", "broken"], cwd=folder)
    result = start(mpi, "python-mpi", "-m", "broken", ranks=1, cwd=folder)
    assert (result.returncode, said(result)) == (plain.returncode, said(plain)), result


@ALONE_AND_LAUNCHED
@pytest.mark.usefixtures("folder")
def test_a_broken_module_that_is_never_imported_is_not_mentioned(script, mpi):
    text = """
        import sys
        if len(sys.argv) > 5:
            import broken
        try:
            import null
        except (SyntaxError, ValueError):
            print("ran")
    """
    result = start(mpi, "python-mpi", script(text))
    assert (result.returncode, said(result)) == (0, []), result
    assert set(result.stdout.splitlines()) == {"ran"}


@ALONE_AND_HASTY
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["-y", "program.py"], ["-y", "--help"]),
        (["--nonsense", "program.py"], ["--nonsense", "--help"]),
        (["--debug=1", "program.py"], ["--debug", "no value"]),
        (["-T"], ["--tmpdir", "DIR"]),
        (["--tmpdir"], ["--tmpdir", "DIR"]),
        (["-v", "--policy"], ["--policy", "NAME"]),
        (["-I"], ["--implementation", "NAME"]),
        (["-c"], ["--command", "CODE"]),
        (["-m"], ["--module", "NAME"]),
        (["-W"], ["-W"]),
        (["-I", "nonsense", "program.py"], ["--implementation", "`nonsense`", "mpich", "openmpi", "mpiabi"]),
        (["--policy", "nonsense", "program.py"], ["--policy", "`nonsense`", "lockstep"]),
        (["--policy=", "program.py"], ["--policy", "``", "lockstep"]),
        (["--thread-level=nonsense", "program.py"], ["--thread-level", "`nonsense`", "funneled"]),
        (["--timeout=soon", "program.py"], ["--timeout", "`soon`", "seconds"]),
        (["--timeout=-1", "program.py"], ["--timeout", "`-1`", "seconds"]),
        (["--store=nonsense", "program.py"], ["--store", "`nonsense`", "auto", "always", "never"]),
        (["--store-limit=all", "program.py"], ["--store-limit", "`all`", "megabytes"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_once(tmp_path, script, mpi, arguments, parts):
    script(PROGRAM)
    result = start(mpi, "python-mpi", *arguments, cwd=tmp_path, timeout_s=20)
    assert_one_message(result, 2, *parts)
    assert result.stdout == ""


def test_a_wrong_option_is_named_once_whatever_the_launcher_does(mpi, script):
    result = mpi.run(4, "python-mpi", "--nonsense", script(PROGRAM))
    assert_one_message(result, 2, "--nonsense")


@ALONE_AND_HASTY
@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("MPIIMPORT_POLICY", "nonsense", ["opening", "lockstep", "locate", "local"]),
        ("MPIIMPORT_IMPLEMENTATION", "lam", ["mpich", "openmpi", "mpiabi"]),
        ("MPIIMPORT_THREAD_LEVEL", "all", ["single", "funneled", "serialized", "multiple"]),
        ("MPIIMPORT_VERBOSE", "²", ["1"]),
        ("MPIIMPORT_DEBUG", "-1", ["1"]),
        ("MPIIMPORT_TIMEOUT", "nan", ["seconds"]),
        ("MPIIMPORT_TIMEOUT", "0", ["seconds"]),
    ],
)
def test_a_wrong_variable_is_named_once(script, mpi, name, value, parts):
    result = start(mpi, "python-mpi", script(PROGRAM), env={name: value})
    assert_one_message(result, 2, name, "`%s`" % value, *parts)
    assert result.stdout == ""


def test_a_wrong_variable_is_named_once_under_python_s(two_mpis, tmp_path):
    installed = mpis.run(["python", "-c", "import site_mpi; print(site_mpi.PYTHONPATH)"], cwd=tmp_path).stdout.strip()
    env = {"PYTHONPATH": installed, "MPIIMPORT_POLICY": "nonsense"}
    result = two_mpis.run(3, "python", "-S", "-c", "import site_mpi; print('ran')", env=env, cwd=tmp_path)
    assert_one_message(result, 2, "MPIIMPORT_POLICY", "`nonsense`")
    assert result.stdout == ""


@ALONE_AND_HASTY
def test_a_wrong_interpreter_is_named_once(script, mpi):
    result = start(mpi, "python-mpi", script(PROGRAM), env={"MPIIMPORT_PYTHON": "/no/such/python"})
    assert_one_message(result, 127, "MPIIMPORT_PYTHON", "`/no/such/python`")


@ALONE_AND_HASTY
def test_an_interpreter_without_mpiimport_is_named_once(script, mpi, other_python):
    env = {"MPIIMPORT_PYTHON": str(other_python.parent / "python")}
    result = start(mpi, "python-mpi", script(PROGRAM), env=env)
    assert_one_message(result, 1, "MPIIMPORT_PYTHON", str(mpis.BIN), "python3.")


def test_a_wrong_variable_of_mpi4py_is_named_once(two_mpis, script):
    result = two_mpis.run(2, "python-mpi", script(PROGRAM), env={"MPI4PY_RC_THREAD_LEVEL": "all"})
    assert_one_message(result, 2, "MPI4PY_RC_THREAD_LEVEL", "`all`", "multiple")


def test_a_wrong_argument_of_install_raises_value_error(script):
    text = """
        import mpiimport
        for wrong in ({"policy": "nonsense"}, {"timeout": "soon"}, {"nonsense": 1}):
            try:
                mpiimport.install(**wrong)
            except ValueError as cause:
                print(all(str(part) in str(cause) for item in wrong.items() for part in item if part != 1))
    """
    result = mpis.run(["python", script(text)])
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n" * 3, ""), result


def test_an_empty_variable_is_none(two_mpis, script):
    env = {
        "MPIIMPORT_" + name: "" for name in ("POLICY", "LIBMPI", "TIMEOUT", "VERBOSE", "TMPDIR", "REQUIRE", "PYTHON")
    }
    result = two_mpis.run(2, "python-mpi", script(PROGRAM), env=env)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n" * 2, ""), result


def test_a_folder_for_stores_that_cannot_be_used_is_named_and_the_program_runs(two_mpis, script):
    result = two_mpis.run(2, "python-mpi", script(PROGRAM), env={"MPIIMPORT_TMPDIR": "/no/such/folder"})
    assert_one_message(result, 0, "`/no/such/folder`", "No such file or directory")
    assert result.stdout == "ran\n" * 2


@pytest.mark.parametrize("where", ["venv", "user-site"])
def test_an_unreadable_pth_file_is_named_once_and_skipped(tmp_path, two_mpis, where):
    if where == "venv":
        mpis.run([sys.executable, "-m", "venv", "--without-pip", tmp_path])
        env = {"MPIIMPORT_PYTHON": str(tmp_path / "bin" / "python")}
    else:
        env = {"MPIIMPORT_PYTHON": "%s/bin/python3" % sys.base_prefix, "PYTHONUSERBASE": str(tmp_path)}
    site_packages = tmp_path / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"
    (site_packages / "unreadable.pth").mkdir(parents=True)
    (site_packages / "z.pth").write_text("%s\n" % tmp_path)
    program = ["-c", "import sys; print(sys.path)"]
    plain = mpis.run([env["MPIIMPORT_PYTHON"], *program], env=env)
    assert str(tmp_path) in plain.stdout, plain
    for mpi in (None, two_mpis):
        result = start(mpi, "python-mpi", *program, env=env)
        assert set(result.stdout.splitlines()) == {plain.stdout.strip()}, result
        if mpi is not None:
            assert_one_message(result, 0, "`%s`" % (site_packages / "unreadable.pth"), "Is a directory")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Files that are no MPI library, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("libraries")
    functions = """Init_thread Query_thread Finalize Abort Comm_rank Comm_size Comm_dup Comm_free Comm_split
        Comm_split_type Comm_set_errhandler Comm_create_keyval Comm_set_attr Test Error_string"""
    source = "int MPI_%s() { return 0; }\n"
    code = "".join(source % name for name in functions.split()) + (
        "int MPI_Initialized(int *flag) { return *flag = 0; }\n"
        "int MPI_Finalized(int *flag) { return *flag = 0; }\n"
        "int MPI_Get_version(int *major, int *minor) { *major = 2, *minor = 2; return 0; }\n"
    )
    old = folder / "libold.so.12"
    mpis.run(["cc", "-w", "-shared", "-fPIC", "-x", "c", "-o", old, "-"], stdin=code)
    assert old.exists()
    (folder / "libtext.so.12").write_text("This is no library.\n" * 100)
    return {
        "missing": folder / "libmissing.so.12",
        "text": folder / "libtext.so.12",
        "folder": folder,
        "no-mpi": "libm.so.6",
        "old": old,
    }


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "No such file"),
        ("text", "ELF"),
        ("no-mpi", "`MPI_Initialized`"),
        ("old", "`MPI_Comm_idup`"),
    ],
)
def test_a_library_that_cannot_be_used_is_named_with_the_cause(script, libraries, kind, why):
    library = str(libraries[kind])
    result = mpis.OPENMPI.run(3, "python-mpi", script(PROGRAM), env={"MPIIMPORT_LIBMPI": library})
    assert_one_message(result, 1, library, why, "MPIIMPORT_LIBMPI", "mpiexec")
    assert "\n".join(said(result)).count(library) == 1, result
    assert result.stdout == ""


def test_every_library_that_was_tried_is_listed(mpi, script, libraries):
    tried = [str(libraries["missing"]), str(libraries["old"])]
    result = mpi.run(2, "python-mpi", "--libmpi", ":".join(tried), script(PROGRAM))
    assert_one_message(result, 1, *tried, "No such file", "`MPI_Comm_idup`")


def library_of(mpi):
    return next((mpi.prefix / "lib").glob("libmpi.so.[14][20]"))


OTHERS = [(mpis.MPICH, mpis.OPENMPI), (mpis.OPENMPI, mpis.MPICH)]


@pytest.mark.parametrize(("mpi", "other"), OTHERS, ids=str)
def test_a_library_of_another_mpi_than_the_launchers_is_refused(script, mpi, other):
    library = str(library_of(other))
    result = mpi.run(2, "python-mpi", script(LIBRARY), env={"MPIIMPORT_LIBMPI": library})
    assert_one_message(result, 1, library, mpi.name, other.name, "MPIIMPORT_LIBMPI")
    assert result.stdout == ""


@pytest.mark.parametrize(("mpi", "other"), OTHERS, ids=str)
def test_asking_for_another_mpi_than_the_launchers_is_refused(script, mpi, other):
    env = {"LD_LIBRARY_PATH": "%s/lib:%s/lib" % (mpi.prefix, other.prefix)}
    result = mpi.run(3, "python-mpi", "-I", other.name, script(LIBRARY), env=env)
    assert_one_message(result, 2, "--implementation", "`%s`" % other.name, "belongs to %s" % mpi.name)
    assert result.stdout == ""


@pytest.mark.parametrize(("mpi", "other"), [*OTHERS, (mpis.IMPI, mpis.OPENMPI)], ids=str)
@pytest.mark.parametrize("own_first", [True, False])
def test_of_two_mpis_on_the_library_path_the_launchers_is_chosen(script, mpi, other, own_first):
    folders = [str(one.prefix / "lib") for one in ((mpi, other) if own_first else (other, mpi))]
    result = mpi.run(2, "python-mpi", script(LIBRARY), env={"LD_LIBRARY_PATH": ":".join(folders)})
    assert result.returncode == 0, result
    assert {line.rpartition("/")[0] for line in result.stdout.splitlines()} == {"2 %s/lib" % mpi.prefix}, result


@pytest.fixture(scope="module")
def other_python(tmp_path_factory):
    """The commands `python-mpi` of an environment with another Python, and of one with another option."""
    version = "%d.%d" % sys.version_info[:2]
    pyenv = Path(shutil.which("pyenv") or "/").resolve().parent.parent / "versions"
    found = [*map(shutil.which, ("python3.13", "python3.12")), *sorted(pyenv.glob("3.1[23].*/bin/python3"))]
    found = [str(python) for python in found if python and version not in str(python)]
    wheels = sorted((mpis.ROOT / "target" / "wheels").glob("*.whl"))
    if not found or not wheels:
        pytest.skip("there is no second Python, or no wheel in target/wheels")
    folder = tmp_path_factory.mktemp("other-python")
    for python in found:
        if mpis.run([python, "-m", "venv", "--without-pip", folder]).returncode == 0:
            break
    else:
        pytest.skip("no second Python can make virtual environments")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", folder / "bin" / "python"]
    installed = mpis.run([*pip, "install", "--no-deps", "--no-index", wheels[-1]])
    assert installed.returncode == 0, installed
    return folder / "bin" / "python-mpi"


@pytest.mark.parametrize("root_differs", [True, False])
def test_ranks_with_different_pythons_are_told_apart(two_mpis, script, other_python, root_differs):
    program = script(PROGRAM)
    first, second = ("python-mpi", other_python)[:: -1 if root_differs else 1]
    result = two_mpis.run(1, first, program, ":", "-n", "2", second, program)
    own = "%d.%d.%d" % sys.version_info[:3]
    assert_one_message(result, 2, "rank 0", "rank 1", "rank 2", own, "same Python")
    assert result.stdout == ""


def test_ranks_with_different_optimisation_are_told_apart(two_mpis, script):
    program = script(PROGRAM)
    result = two_mpis.run(1, "python-mpi", program, ":", "-n", "1", "python-mpi", "-O", program)
    assert_one_message(result, 2, "rank 0", "rank 1", "-O", "same options")


@pytest.mark.parametrize("how", ["option", "variable"])
def test_requiring_mpi_fails_where_nothing_launched_the_program(script, how):
    options, env = (["--require"], {}) if how == "option" else ([], {"MPIIMPORT_REQUIRE": "1"})
    result = mpis.run(["python-mpi", *options, script(PROGRAM)], env=env)
    assert_one_message(result, 2, "launcher", "mpiexec", "MPIIMPORT_REQUIRE")
    assert result.stdout == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_requiring_mpi_is_content_with_a_launcher(two_mpis, script, ranks):
    result = two_mpis.run(ranks, "python-mpi", "--require", script(PROGRAM))
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\n" * ranks, ""), result


@pytest.fixture(scope="module")
def c_programs(tmp_path_factory):
    """For each MPI, a program in C whose only traffic is a barrier."""
    code = (
        "#include <mpi.h>\n"
        "int main(int argc, char **argv)\n"
        "{ MPI_Init(&argc, &argv); MPI_Barrier(MPI_COMM_WORLD); return MPI_Finalize(); }\n"
    )
    built = {}
    for mpi in (mpis.MPICH, mpis.OPENMPI):
        program = built[mpi] = tmp_path_factory.mktemp("c") / mpi.name
        compiler = ["cc", "-I", mpi.prefix / "include", "-x", "c", "-", "-x", "none", library_of(mpi)]
        done = mpis.run([*compiler, "-o", program], stdin=code)
        assert done.returncode == 0, done
    return built


@pytest.mark.parametrize("c_is_first", [True, False])
def test_beside_another_program_local_runs_and_otherwise_the_remedy_is_named(two_mpis, script, c_programs, c_is_first):
    ours = ["python-mpi", script("from mpi4py import MPI; MPI.COMM_WORLD.barrier(); print(MPI.COMM_WORLD.size)")]
    both = [c_programs[two_mpis], ":", "-n", "1", *ours, ":", "-n", "1", *ours]
    if not c_is_first:
        both = [*ours, ":", "-n", "1", *ours, ":", "-n", "1", c_programs[two_mpis]]
    result = two_mpis.run(1, *both, env={"MPIIMPORT_LOCAL": "1"})
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n3\n", ""), result

    result = two_mpis.run(1, *both, env={"MPIIMPORT_TIMEOUT": "3"}, timeout_s=30)
    assert result.returncode not in (0, 124), result
    notice, last = said(result)
    for line in (notice, last):
        assert re.match(r"mpiimport: rank \d on \S+ (has )?waited [1-4] s for every rank .*MPIIMPORT_LOCAL=1", line), (
            result
        )
    assert "has waited" in notice
    assert "has waited" not in last


def test_a_root_that_does_not_come_is_named_once_and_the_job_ends(two_mpis, tmp_path):
    pipe = tmp_path / "never-written"
    mpis.run(["mkfifo", pipe])
    result = two_mpis.run(3, "python-mpi", "--timeout=2", pipe, timeout_s=30)
    assert result.returncode == 1, result
    assert [re.sub(r"rank [12] on \S+ ", "", line) for line in said(result)] == [
        "mpiimport: has waited 1 s for rank 0 to find and read what the program will import.",
        "mpiimport: waited 2 s for rank 0 to find and read what the program will import.",
    ]


def test_an_incomplete_installation_ends_the_job(tmp_path, two_mpis, script):
    wheel = sorted((mpis.ROOT / "target" / "wheels").glob("*.whl"))[-1]
    mpis.run([sys.executable, "-m", "venv", "--without-pip", tmp_path])
    python = tmp_path / "bin" / "python"
    mpis.run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel])
    missing = next(tmp_path.glob("lib/python3*/site-packages/mpiimport/session.py"))
    missing.unlink()
    result = two_mpis.run(3, tmp_path / "bin" / "python-mpi", script(PROGRAM), timeout_s=30)
    assert_one_message(result, 1, str(missing), "No such file", "install")
