"""What a user chooses: the policy, the settings, the way to start, and the functions that a program may call."""

import json
import os
import re
import sys
import zipfile

import mpi as mpis
import pytest
from compared import said

FIXED_SEED = {"PYTHONHASHSEED": "0"}
LOCKSTEP_ADVICE = "the policy `opening` (docs/how-to/rank-dependent-imports.md)"

SAY = """\
import json, os, sys
import mpiimport

def say(*values):
    sys.stdout.write(json.dumps([mpiimport.stats().get("rank", 0), *values], default=str) + "\\n")
    sys.stdout.flush()

"""


def values(result):
    """Return what every rank said, without its rank: the same for all."""
    lines = said(result)
    mine = [line[1:] for line in lines if line[0] == 0]
    for rank in {line[0] for line in lines}:
        assert [line[1:] for line in lines if line[0] == rank] == mine, result
    return mine


# Lockstep


def test_lockstep_imports_numpy_and_scipy_with_a_fixed_seed(two_mpis, script):
    program = script(
        SAY
        + """
import numpy.fft, scipy.interpolate
stats = mpiimport.stats()
say(abs(numpy.fft.fft(numpy.ones(8))[0]), stats["policy"], stats["modules"]["lockstep"] > 500)
"""
    )
    result = two_mpis.run(3, "python-mpi", "--policy", "lockstep", program, env=FIXED_SEED)
    assert said(result) == [[rank, 8.0, "lockstep", True] for rank in range(3)]


def test_lockstep_names_what_the_ranks_import_differently_and_goes_on(two_mpis, script):
    program = script(
        SAY
        + """
rank = mpiimport.stats()["rank"]
for names in (("wave", "csv"), ("beside", "wave")):
    try:
        __import__(names[rank > 0])
    except ImportError as cause:
        say(cause.name == names[rank > 0], type(cause).__name__, str(cause))
import colorsys, beside
say(colorsys.__name__, beside.__name__, sorted({"wave", "csv"} & set(sys.modules)))
"""
    )
    script("", "beside.py")
    result = two_mpis.run(3, "python-mpi", "--policy", "lockstep", program, env=FIXED_SEED)
    first, second, after = values(result)
    for (name_fits, kind, message), expected in ((first, ("csv", "wave")), (second, ("beside", "wave"))):
        assert (name_fits, kind) == (True, "ImportError")
        assert "`%s`, `%s`" % expected in message
        assert LOCKSTEP_ADVICE in message
        assert "rank 1, 2 not as rank 0" in message
    assert after == ["colorsys", "beside", []]


# What a rank has already, it does not ask for again.
HAS_IT = "sys.mpiimport.stop(); import wave; sys.mpiimport.resume(); import wave; comm.Barrier()"


@pytest.mark.parametrize("others", [HAS_IT, "sys.exit()", "import time; time.sleep(60)"])
@pytest.mark.parametrize("importer", [0, 1])
def test_lockstep_watchdog_names_who_waits_for_what_and_ends_the_job(one_mpi, script, importer, others):
    program = script(
        """
        import sys
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        if comm.rank == %d:
            try:
                import wave
            except Exception:
                print("went on without")
        else:
            %s
        comm.Barrier()
        """
        % (importer, others)
    )
    options = ("--policy", "lockstep", "--timeout", "2")
    result = one_mpi.run(2, "python-mpi", *options, program, env=FIXED_SEED, timeout_s=30)
    assert not result.timed_out, result
    assert result.returncode != 0, result
    assert "went on" not in result.stdout
    waits = [line for line in result.stderr.splitlines() if line.startswith("mpiimport:")]
    assert any("rank %d on" % importer in line and "`wave`" in line and "lockstep" in line for line in waits), result
    assert all(LOCKSTEP_ADVICE in line and "PYTHONHASHSEED" in line for line in waits), result
    assert len(waits) <= 3, result


def test_deliver_that_the_root_does_not_join_ends_the_job(two_mpis, script):
    program = script(
        """
        import sys
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            try:
                sys.mpiimport.deliver("json")
            except Exception:
                print("went on without")
        MPI.COMM_WORLD.Barrier()
        """
    )
    result = two_mpis.run(2, "python-mpi", "--timeout", "2", program, timeout_s=30)
    assert not result.timed_out, result
    assert result.returncode != 0, result
    assert "went on" not in result.stdout
    assert re.search(r"rank 1 on .*`json`", result.stderr), result


# The functions of the module

API = (
    SAY
    + """
import threading
from importlib.machinery import PathFinder
before = list(sys.meta_path)
is_plain = lambda: any(finder is PathFinder for finder in sys.meta_path)
assert (hasattr(sys, "mpiimport"), mpiimport.stats()) == (False, {})
mpiimport.install(%s)
rank, size = (mpiimport.stats()[name] for name in ("rank", "size"))

def count(*names):
    before = mpiimport.stats()["modules"]
    for name in names:
        __import__(name)
    after = mpiimport.stats()["modules"]
    return {how: after[how] - before[how] for how in after if after[how] != before[how]}

def in_thread(name):
    counted = []
    thread = threading.Thread(target=lambda: counted.append(count(name)))
    thread.start()
    thread.join()
    return counted[0]

say(sys.mpiimport is mpiimport, is_plain(), len(sys.meta_path) == len(before))
mpiimport.install()
say(is_plain(), len(sys.meta_path) == len(before))
say("opening", count("one"))
mpiimport.stop()
say("stopped", count("two"), in_thread("ten"))
mpiimport.resume()
say("resumed", count("three"))

if rank == 0:
    with mpiimport.disjoint:
        assert count("four") == {"local": 1}
with mpiimport.disjoint():
    with mpiimport.disjoint:
        say("nested", count("five"))
    say("outer", count("six"))
try:
    with mpiimport.disjoint:
        raise KeyError("passes")
except KeyError as cause:
    say(str(cause), count("seven"))

order = []
mpiimport.after_import(lambda: order.append("at once"))
with mpiimport.collective:
    mpiimport.after_import(lambda: order.append("after"))
    mpiimport.after_import(lambda: order.append("in order"))
    with mpiimport.collective():
        say("collective", count("comp" + "uted"))
    order.append("inside")
say(order)

mpiimport.deliver("pkg.sub", "json", "sys", "wave")
say("delivered", count("pkg", "pkg.sub", "pkg.below"), sorted(count("wa" + "ve")))
for wrong in (("nosuch",), ("json", "pkg.nosuch"), ("",)):
    try:
        mpiimport.deliver(*wrong)
    except ModuleNotFoundError as cause:
        say(str(cause), cause.name)
mpiimport.deliver()
if rank == size - 1:
    import pkg.late

mpiimport.uninstall()
say(is_plain(), len(sys.meta_path) == len(before), hasattr(sys, "mpiimport"))
import eight, pkg.more
mpiimport.uninstall()
mpiimport.install()
say("again", is_plain(), sys.mpiimport is mpiimport, __import__("ni" + "ne").__name__)

from mpi4py import MPI
say(MPI.COMM_WORLD.allreduce(1) == size)
"""
)

MODULES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "computed")


@pytest.fixture
def modules(script):
    """Files beside the program for it to import."""
    script("import one, two, three, four, five, six, seven", "never_imported.py")
    for name in MODULES:
        script("", name + ".py")
    script("", "pkg/__init__.py")
    script("from . import below", "pkg/sub.py")
    for name in ("below", "late", "more"):
        script("", "pkg/%s.py" % name)


STATIC = "\ndef never():\n    import one, two, three, four, five, six, seven, ten\n"


@pytest.mark.usefixtures("modules")
def test_functions_in_a_program_that_plain_python_started(two_mpis, script):
    heard = values(two_mpis.run(3, "python", script(API % "" + STATIC), timeout_s=30))
    assert heard == [
        [True, False, True],
        [False, True],
        ["opening", {"opening": 1}],
        ["stopped", {"local": 1}, {"local": 1}],
        ["resumed", {"opening": 1}],
        ["nested", {"local": 1}],
        ["outer", {"local": 1}],
        ["'passes'", {"opening": 1}],
        ["collective", {"lockstep": 1}],
        [["at once", "inside", "after", "in order"]],
        ["delivered", {"opening": 3}, ["opening"]],
        ["No module named 'nosuch'", "nosuch"],
        ["No module named 'pkg.nosuch'", "pkg.nosuch"],
        ["No module named ''", ""],
        [True, True, False],
        ["again", False, True, "nine"],
        [True],
    ]


def test_deliver_of_what_cannot_be_a_name_fails_on_every_rank(script):
    program = script(SAY + "try:\n    mpiimport.deliver('json', 3)\nexcept TypeError as cause:\n    say(str(cause))\n")
    (message,) = values(mpis.MPICH.run(2, "python-mpi", program, timeout_s=20))[0]
    assert "int" in message


def test_deliver_of_a_module_with_a_syntax_error_leaves_the_error_to_its_import(script):
    script("x = = 1", "wrong.py")
    program = script(
        SAY
        + """
mpiimport.deliver("wro" + "ng")
try:
    import wrong
except SyntaxError as cause:
    say(cause.lineno)
"""
    )
    assert values(mpis.MPICH.run(2, "python-mpi", program, timeout_s=20)) == [[1]]


def test_deliver_sees_what_the_program_wrote_and_put_on_the_path(script, tmp_path):
    program = script(
        SAY
        + """
from mpi4py import MPI
comm = MPI.COMM_WORLD
try:
    import made
except ImportError as cause:
    say(str(cause))
comm.Barrier()
folder = os.path.abspath("plugins")
if comm.rank == 0:
    os.makedirs(folder)
    with open("made.py", "w") as file:
        file.write("VALUE = 1")
    with open(folder + "/plugin.py", "w") as file:
        file.write("import made; VALUE = made.VALUE + 1")
comm.Barrier()
sys.path.append(folder)
mpiimport.deliver("plug" + "in")
before = mpiimport.stats()["missed"]
import plugin
say(plugin.VALUE, mpiimport.stats()["missed"] == before)
"""
    )
    heard = values(mpis.MPICH.run(2, "python-mpi", program, cwd=tmp_path, timeout_s=20))
    assert heard == [["No module named 'made'"], [2, True]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_functions_without_other_ranks_do_nothing(script, ranks):
    program = script(
        """
        import sys
        import mpiimport

        mpiimport.install()
        mpiimport.stop()
        mpiimport.resume()
        with mpiimport.disjoint, mpiimport.collective:
            mpiimport.after_import(lambda: print("at once"))
            import wave
        mpiimport.deliver("json")
        mpiimport.uninstall()
        print(mpiimport.stats())
        """
    )
    if ranks == 1:
        result = mpis.run([mpis.BIN / "python", program])
    else:
        result = mpis.MPICH.run(2, "python", program, env={"MPIIMPORT_LOCAL": "1"})
    assert (result.returncode, result.stdout) == (0, "at once\n{}\n" * ranks), result


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("policy='nonsense'", "opening, lockstep, locate, local"),
        ("nonsense=1", "there is no setting `nonsense`"),
        ("timeout='soon'", "--timeout is `soon`; it must be a number of seconds"),
        ("thread_level='many'", "single, funneled, serialized, multiple"),
    ],
)
def test_install_refuses_a_setting_that_makes_no_sense(script, call, message):
    program = script(
        "import mpiimport\ntry:\n    mpiimport.install(%s)\nexcept ValueError as cause:\n    print(cause)" % call
    )
    result = mpis.MPICH.run(2, "python", program)
    assert result.returncode == 0, result
    assert result.stdout.count(message) == 2, result


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("policy", ["opening", "lockstep", "locate", "local"])
def test_policy_of_install(script, policy):
    program = script(
        SAY
        + """
mpiimport.install(policy=%r)
import one, pkg.sub, wave, numpy.fft
say([module.__file__ for module in (one, pkg.sub, wave, numpy.fft)])
assert mpiimport.stats().get("policy", "local") == os.environ.get("EXPECTED", "local")
"""
        % policy
    )
    heard = said(mpis.MPICH.run(2, "python", program, env={"EXPECTED": policy, **FIXED_SEED}))
    plain = said(mpis.run([mpis.BIN / "python", program]))
    assert [line[1] for line in heard] == [plain[0][1]] * 2


# Under python -S


@pytest.fixture(scope="module")
def without_site():
    """What the documentation has the user set, so that `python -S` finds `site_mpi`."""
    answer = mpis.run([mpis.BIN / "python", "-I", "-c", "import site_mpi; print(site_mpi.PYTHONPATH)"])
    assert answer.returncode == 0, answer
    return {"PYTHONPATH": answer.stdout.strip()}


STATE = """
import builtins, json, os, sys, site
import pkg.sub, wave
state = {
    "prefix": sys.prefix, "path": sys.path,
    "argv": sys.argv, "name": __name__, "file": globals().get("__file__"), "exit": repr(exit), "help": repr(help),
    "no_site": sys.flags.no_site, "user": site.ENABLE_USER_SITE, "pkg": pkg.__file__, "wave": wave.__file__,
}
sys.stdout.write(json.dumps([%s, state]) + "\\n")
"""
RANK = "sys.mpiimport.stats()['rank']"


@pytest.mark.usefixtures("modules")
def test_site_mpi_in_a_command_under_python_without_site(two_mpis, without_site, tmp_path):
    code = STATE % RANK
    result = two_mpis.run(2, "python", "-S", "-c", "import site_mpi" + code, "a", "-b", env=without_site, cwd=tmp_path)
    plain = mpis.run([mpis.BIN / "python", "-c", STATE % 0, "a", "-b"], env=without_site, cwd=tmp_path)
    assert values(result) == [line[1:] for line in said(plain)]
    assert [line[0] for line in said(result)] == [0, 1]


@pytest.mark.usefixtures("modules")
def test_site_mpi_in_the_head_of_a_script_under_python_without_site(two_mpis, script, without_site, tmp_path):
    plain = mpis.run([mpis.BIN / "python", script(STATE % 0), "x"], env=without_site, cwd=tmp_path)
    program = script("import site_mpi\n" + STATE % RANK + "\nassert not sys.mpiimport.stats()['missed']\n")
    result = two_mpis.run(2, "python", "-S", "-u", program, "x", env=without_site, cwd=tmp_path)
    assert values(result) == [line[1:] for line in said(plain)]


def test_site_mpi_under_python_with_site_does_nothing(script):
    program = script("import site_mpi, sys\nprint(hasattr(sys, 'mpiimport'), len(sys.meta_path))")
    plain = mpis.run([mpis.BIN / "python", "-c", "import sys; print(False, len(sys.meta_path))"])
    result = mpis.MPICH.run(2, "python", program)
    assert (result.returncode, result.stdout) == (0, plain.stdout * 2), result


# What is said


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("options", ["-v", "-vv", "--verbose", "-v -v"])
def test_verbose_says_how_each_module_was_imported(script, options):
    program = script(
        "import one, wave\ntry:\n    import nosuch\nexcept ImportError:\n    pass\n__import__('ni' + 'ne')"
    )
    result = mpis.MPICH.run(2, "python-mpi", *options.split(), program)
    assert result.returncode == 0, result
    lines = [line for line in result.stderr.splitlines() if line.startswith("mpiimport: ")]
    everyone = "vv" in options.replace(" -", "")
    ranks = (0, 1) if everyone else (0,)
    for rank in ranks:
        where = "rank %d on %s: " % (rank, os.uname().nodename) if everyone else ""
        for name, hows in (
            ("one", ["opening"]),
            ("wave", ["opening"]),
            ("nosuch", ["opening"]),
            ("nine", ["local", "node"]),
        ):
            matching = [line for line in lines if line.startswith("mpiimport: %s%s: " % (where, name))]
            assert len(matching) == 1, (name, result)
            assert any(how in matching[0] for how in hows), matching
    assert sum(": wave: " in line for line in lines) == len(ranks), result


def test_on_local_disks_each_rank_imports_by_itself_and_mpi4py_joins(two_mpis, script, tmp_path):
    program = script(SAY + "from mpi4py import MPI\nsay(mpiimport.stats()['policy'], MPI.COMM_WORLD.size)\n")
    settings = {"MPIIMPORT_SCAN": "auto", "MPIIMPORT_PROFILE": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        result = two_mpis.run(2, "python-mpi", "-v", program, env=settings)
        assert values(result) == [["local", 2]]
        assert result.stderr.count("each rank imports them by itself") == 1
    assert list(tmp_path.glob("profiles/*")) == []
    result = two_mpis.run(2, "python-mpi", program, env={**settings, "MPIIMPORT_PROFILE": "always"})
    assert values(result) == [["opening", 2]]
    assert len(list(tmp_path.glob("profiles/*"))) == 1


def test_silent_unless_asked(script):
    result = mpis.MPICH.run(2, "python-mpi", script("import wave\n__import__('color' + 'sys')"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), result


# The program and Python's own options

SEEN = """
import json, sys
sys.stdout.write(json.dumps({
    "argv": sys.argv, "orig_argv": getattr(sys, "orig_argv", [0])[1:], "path0": sys.path[0], "path": sys.path,
    "flags": {name: getattr(sys.flags, name) for name in dir(sys.flags) if not name.startswith(("_", "n_"))
              and not callable(getattr(sys.flags, name)) and name != "hash_randomization"},
    "warnoptions": sys.warnoptions, "xoptions": sys._xoptions, "assert": __debug__, "doc": (lambda: 0).__doc__,
    "dont_write_bytecode": sys.dont_write_bytecode, "buffered": sys.stdout.write_through, "name": __name__,
    "line_buffered": sys.stdout.line_buffering, "main": sorted(set(globals()) - {"__builtins__", "json", "sys"}),
    "file": globals().get("__file__"), "package": __package__, "doc_": __doc__,
    "loader": type(__loader__).__name__.replace("Delivered", "SourceFile"),
    "spec": __spec__ and [__spec__.name, __spec__.origin], "annotations": sorted(globals().get("__annotations__", [])),
    "filters": [str(one) for one in __import__("warnings").filters], "executable": sys.executable,
    "cached": globals().get("__cached__"), "builtins": type(__builtins__).__name__,
    "is_main": vars(sys.modules["__main__"]) is globals(), "main_file": getattr(sys.modules["__main__"], "__file__", 0),
}) + "\\n")
"""


def seen(result, ranks):
    assert result.returncode == 0, result
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == ranks, result
    assert all(line == lines[0] for line in lines), result
    return lines[0]


@pytest.fixture
def program_folder(tmp_path):
    """One program in every form that Python runs."""
    for name in ("script.py", "no_suffix", "folder/__main__.py", "package/__main__.py", "module.py", "sub/inner.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SEEN)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "link.py").symlink_to("sub/inner.py")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("__main__.py", SEEN)
    with zipfile.ZipFile(tmp_path / "packed", "w") as packed:
        packed.writestr("__main__.py", SEEN)
    mpis.run([mpis.BIN / "python", "-m", "compileall", "-q", "-b", "module.py"], cwd=tmp_path)
    return tmp_path


WAYS = (
    ("script.py",),
    ("script.py", "-v", "--policy", "x", "", "-c"),
    ("./script.py", "a b"),
    ("no_suffix",),
    ("sub/../sub/inner.py",),
    ("link.py",),
    ("module.pyc", "a"),
    ("folder", "a"),
    ("folder/", "a"),
    ("packed.zip", "-m", "x"),
    ("packed",),
    ("-m", "module", "a", "-v"),
    ("-mmodule", "a"),
    ("-m", "package", "--", "a"),
    ("-m", "package.__main__"),
    ("-m", "sub.inner"),
    ("-c", SEEN, "a", "-c", "--help"),
    ("-uc", SEEN, "a"),
    ("-Bm", "module"),
    ("--", "script.py", "a"),
    ("-u", "script.py", "-u"),
    ("-O", "script.py"),
    ("-OO", "script.py"),
    ("-B", "script.py"),
    ("-bb", "script.py"),
    ("-q", "script.py"),
    ("-W", "error::UserWarning", "script.py"),
    ("-Wignore", "-W", "once", "script.py"),
    ("-X", "dev", "script.py"),
    ("-Xutf8", "-X", "int_max_str_digits=1000", "script.py"),
    ("-X", "pycache_prefix=pycache", "-X", "mine='a b'", "script.py"),
    ("-E", "script.py"),
    ("-s", "script.py"),
    ("-sE", "-m", "module"),
    ("-P", "script.py"),
    ("-uBsO", "-Werror", "script.py", "a"),
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way).replace(SEEN, "CODE"))
def test_program_sees_what_plain_python_shows_it(program_folder, way):
    env = {"PYTHONPATH": "from_environment", "PYTHONWARNINGS": "default::ImportWarning"}
    plain = mpis.run([mpis.BIN / "python", *way], cwd=program_folder, env=env)
    if sys.version_info < (3, 11) and "-P" in way:
        pytest.skip("this Python has no -P")
    result = mpis.MPICH.run(2, "python-mpi", *way, cwd=program_folder, env=env)
    assert seen(result, 2) == seen(plain, 1)


# Open MPI 5 does not tell the program that its standard input has ended.
@pytest.mark.parametrize("arguments", [[], ["-"], ["-", "a", "-v"]], ids=str)
@pytest.mark.parametrize("mpi", [mpis.MPICH, mpis.IMPI], ids=str)
def test_program_from_standard_input_runs_on_every_rank(mpi, tmp_path, arguments):
    plain = mpi.run(1, "python", *arguments, stdin=SEEN, cwd=tmp_path)
    assert seen(mpi.run(2, "python-mpi", *arguments, stdin=SEEN, cwd=tmp_path), 2) == seen(plain, 1)


def test_program_with_a_shebang_line(two_mpis, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!%s\n%s" % (mpis.BIN / "python-mpi", SEEN))
    program.chmod(0o755)
    expected = seen(two_mpis.run(1, "python", "./program", "a", "-b", cwd=tmp_path), 1)
    assert seen(two_mpis.run(2, "./program", "a", "-b", cwd=tmp_path), 2) == expected


# Settings

PROBES = {
    # what the setting does, as a rank sees it
    "policy": ("lockstep", "sys.mpiimport.stats()['policy']", "lockstep"),
    "tmpdir": ("{tmp}", "len([name for name in os.listdir({tmp!r}) if name.startswith('mpiimport-')])", 1),
    "implementation": ("mpich", "ctypes.CDLL(None).MPI_Init is not None", True),
    "libmpi": ("{lib}/libmpi.so.12", "sys.mpiimport.stats()['library']", "{lib}/libmpi.so.12"),
    "thread-level": ("serialized", "MPI.Query_thread() == MPI.THREAD_SERIALIZED", True),
    "stable": ("/nowhere:{tmp}", "rewritten()", 1),
    "debug": (None, "hasattr(sys, 'mpiimport')", False),
    "local": (None, "hasattr(sys, 'mpiimport')", False),
}

PROBE = """
import ctypes, json, os, sys
from mpi4py import MPI

def rewritten():
    if MPI.COMM_WORLD.rank == 0:
        with open("foreseen.py", "w") as file:
            file.write("VALUE = 'the new one'")
    MPI.COMM_WORLD.Barrier()
    import foreseen
    return foreseen.VALUE

print(json.dumps([MPI.COMM_WORLD.rank, %s]))
"""


@pytest.mark.parametrize("form", ["variable", "option", "option over variable"])
@pytest.mark.parametrize("name", PROBES)
def test_setting_is_an_option_and_a_variable(script, tmp_path, name, form):
    def fill(text):
        return text.format(tmp=str(tmp_path), lib=mpis.MPICH.prefix / "lib") if isinstance(text, str) else text

    value, expression, expected = map(fill, PROBES[name])
    variable = "MPIIMPORT_" + name.upper().replace("-", "_")
    script("VALUE = 1", "foreseen.py")
    option = ["--" + name, *([value] if value is not None else [])]
    env = {"variable": {variable: value or "1"}, "option": {}}.get(
        form, {variable: "0" if value is None else "nonsense"}
    )
    result = mpis.MPICH.run(
        2,
        "python-mpi",
        *(option if form != "variable" else ()),
        script(PROBE % expression),
        env={**env, **FIXED_SEED},
        cwd=tmp_path,
    )
    assert said(result) == [[0, fill(expected)], [1, fill(expected)]]


def test_verbose_by_variable(script):
    for level, ranks in (("0", 0), ("1", 1), ("2", 2)):
        result = mpis.MPICH.run(2, "python-mpi", script("import wave"), env={"MPIIMPORT_VERBOSE": level})
        assert result.returncode == 0, result
        assert result.stderr.count("wave: opening") == ranks, result


def test_require_fails_where_there_is_no_mpi(script):
    for option, env in ((("--require",), {}), ((), {"MPIIMPORT_REQUIRE": "1"})):
        result = mpis.run([mpis.BIN / "python-mpi", *option, script("print('ran')")], env=env)
        assert (result.returncode, result.stdout) == (2, ""), result
        assert result.stderr.count("\n") == 1, result
    result = mpis.MPICH.run(2, "python-mpi", "--require", script("print('ran')"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "ran\nran\n", ""), result


@pytest.mark.parametrize("form", ["variable", "option", "neither"])
def test_exit_of_one_rank_ends_the_job_where_asked_for(two_mpis, script, form):
    program = script(
        """
        import sys
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 1:
            sys.exit(7)
        if %s:
            MPI.COMM_WORLD.Recv(bytearray(1), 1)
        """
        % (form != "neither")
    )
    env = {"MPIIMPORT_ABORT_ON_EXIT": "1"} if form == "variable" else None
    options = ["--abort-on-exit"] if form == "option" else []
    result = two_mpis.run(2, "python-mpi", *options, program, env=env, timeout_s=20)
    assert result.returncode == 7, result


@pytest.mark.parametrize("mpi", [mpis.OPENMPI, pytest.param(mpis.MPICH, marks=pytest.mark.nightly)], ids=str)
@pytest.mark.parametrize(
    ("variable", "mentioned"),
    [
        ("POLICY=nonsense", "opening, lockstep, locate, local"),
        ("IMPLEMENTATION=nonsense", "mpich, openmpi, mpiabi"),
        ("THREAD_LEVEL=nonsense", "single, funneled, serialized, multiple"),
        ("TIMEOUT=soon", "`soon`"),
        ("TIMEOUT=-1", "`-1`"),
        ("VERBOSE=yes", "MPIIMPORT_VERBOSE is `yes`"),
        ("DEBUG=x", "MPIIMPORT_DEBUG is `x`"),
        ("LIBMPI=/nowhere/libmpi.so", "/nowhere/libmpi.so"),
    ],
)
def test_setting_that_makes_no_sense_is_refused_in_one_line(script, mpi, variable, mentioned):
    name, _, value = variable.partition("=")
    result = mpi.run(2, "python-mpi", script("print('ran')"), env={"MPIIMPORT_" + name: value}, timeout_s=20)
    assert result.returncode != 0, result
    assert result.stdout == "", result
    ours = [line for line in result.stderr.splitlines() if line.startswith("mpiimport:")]
    assert len(ours) == 1, result
    assert mentioned in ours[0] + result.stderr.partition(ours[0])[2].partition("\n\n")[0], result
    assert "Traceback" not in result.stderr, result


def test_empty_variables_are_no_settings(script):
    empty = dict.fromkeys(("MPIIMPORT_" + name.upper().replace("-", "_") for name in PROBES), "")
    result = mpis.MPICH.run(2, "python-mpi", script("print(1)"), env=empty)
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n1\n", ""), result
