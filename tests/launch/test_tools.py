"""Tools that watch, rewrite or interrupt a program say on each rank what they say under plain Python."""

import re

import mpi as mpis
import pytest
from cases import place
from pythons import environment_of_tools, must

OWN_OUTPUT = 'export COVERAGE_FILE="$OUTPUT-coverage.$PMI_RANK"; "$@" >"$OUTPUT.$PMI_RANK" 2>"$OUTPUT-errors.$PMI_RANK"'

FILES = {
    "program.py": "import own_package.part, own_module\nown_package.part.function(2)\nprint(own_module.VALUE)\n",
    "own_package/__init__.py": "from . import part",
    "own_package/part.py": """
        def function(n):
            if n:
                return function(n - 1)
            import own_late
            return own_late.VALUE

        def never():
            import own_never
    """,
    "own_module.py": "import wave\nVALUE = 'value'\n",
    "own_late.py": "VALUE = [n for n in range(3) if n]\n",
    "own_never.py": "",
    "deprecated.py": "import warnings\n\ndef old():\n    warnings.warn('of old', DeprecationWarning, 2)\n\nold()\n",
    "escapes.py": "VALUE = '\\d'\n",
    "uses_deprecated.py": "import deprecated\n",
    "uses_escapes.py": "import traceback\ntry:\n    import escapes\nexcept SyntaxError:\n    traceback.print_exc()\n",
    "catches.py": """
        import traceback, warnings
        for name in ("deprecated", "escapes", "own_package", "deprecated"):
            try:
                __import__(name)
            except Exception:
                traceback.print_exc()
        file = open("catches.py")
        del file
        print(len(warnings.filters))
    """,
    "debugged.py": """
        import os
        import own_package
        value = 1
        if os.environ["PMI_RANK"] == "0":
            breakpoint()
            value = own_package.part.function(1)
        print(value)
    """,
    "interacts.py": """
        import code, os
        from mpi4py import MPI
        import own_package
        if MPI.COMM_WORLD.rank == 0:
            code.interact(banner="hello", local={"own_package": own_package})
        MPI.COMM_WORLD.Barrier()
        print("after")
    """,
    "embeds.py": """
        import os, sys
        from mpi4py import MPI
        import own_package
        if MPI.COMM_WORLD.rank == 0:
            import IPython
            options = ["--simple-prompt", "--no-banner", "--colors=NoColor"]
            IPython.start_ipython(argv=options, user_ns={"own_package": own_package})
        MPI.COMM_WORLD.Barrier()
        print("after")
    """,
    "conftest.py": """
        import pytest
        pytest.register_assert_rewrite("helper")
        import helper, own_package

        @pytest.fixture
        def value():
            return own_package.part.function(1)
    """,
    "helper.py": "def check(value):\n    assert value == {'a': [1, 2]}, 'of the helper'\n",
    "plugin.py": "import pytest\n\ndef pytest_report_header():\n    return 'of the plugin'\n",
    "test_sample.py": """
        import importlib, os, pathlib, sys
        import helper, own_module, pytest

        def test_passes(value):
            assert value == [1, 2]

        def test_fails(value):
            assert [own_module.VALUE, value] == ["value", [1, 3]]

        def test_of_helper():
            helper.check({"a": [1, 3]})

        def test_in_a_new_folder(monkeypatch):
            folder = pathlib.Path("new-" + os.environ["PMI_RANK"]).absolute()
            folder.mkdir()
            (folder / "brand_new.py").write_text("VALUE = 1")
            monkeypatch.syspath_prepend(folder)
            import brand_new
            assert brand_new.VALUE == 2

        def test_warns():
            with pytest.warns(DeprecationWarning, match="of old"):
                import deprecated
            monkey = sys.modules.pop("deprecated")
            assert importlib.import_module("deprecated") is monkey
    """,
}


@pytest.fixture
def both(tmp_path):
    """Run a command on all ranks under plain Python and under `python-mpi`. Return what each rank wrote, twice."""

    def run(*command, environment=None, ranks=2, env=None, stdin=None, status=0):
        written = []
        for name in ("python", "python-mpi"):
            place(tmp_path / "work", FILES)
            output = tmp_path / ("output of " + name)
            python = name if environment is None else environment.bin / name
            shell = ["sh", "-c", OWN_OUTPUT, "sh", python, *command]
            settings = {"OUTPUT": str(output), "HOME": str(tmp_path), **(env or {})}
            result = mpis.MPICH.run(ranks, *shell, env=settings, cwd=tmp_path / "work", stdin=stdin)
            assert result.returncode == status, result
            texts = [
                (tmp_path / ("%s%s.%d" % (output.name, kind, rank))).read_text()
                for rank in range(ranks)
                for kind in ("", "-errors")
            ]
            written.append(texts)
        return written

    return run


def test_pytest_rewrites_and_reports(both):
    options = ["-p", "no:cacheprovider", "-p", "plugin", "-v", "-W", "always"]
    plain, ours = both("-m", "pytest", *options, status=1)
    plain, ours = ([re.sub(r" in [0-9.]+s|0x[0-9a-f]+", "", text) for text in texts] for texts in (plain, ours))
    assert "[1, 3]" in plain[0], plain
    assert ours == plain


def test_cprofile_counts_the_programs_calls(both):
    plain, ours = both("-m", "cProfile", "-s", "name", "program.py")

    def rows(text):
        return sorted(re.findall(r"^ +(\S+) .* (\S*(?:own_|part.py)\S*)$", text, re.MULTILINE))

    assert len(rows(plain[0])) >= 5, plain
    assert list(map(rows, ours)) == list(map(rows, plain))


def test_importtime_lists_the_programs_imports_as_they_are_nested(both):
    plain, ours = both("-X", "importtime", "program.py")

    def imports(text):
        return re.findall(r"^import time: +\d+ \| +\d+ \|( +(?:own_\w+\S*|wave))$", text, re.MULTILINE)

    assert len(imports(plain[1])) == 6, plain
    assert [imports(text) for text in ours[1::2]] == [imports(text) for text in plain[1::2]]


@pytest.mark.parametrize("options", ["-W error", "-B -X dev -W always", "-bb -W error::DeprecationWarning"])
def test_warnings_are_errors_where_they_are_to_be(both, options):
    plain, ours = both(*options.split(), "catches.py")
    assert "of old" in plain[1], plain
    assert ours == plain


INTERACTION = """\
import own_late
own_late.VALUE
own_package.part.missing
import own_nothing
def f():
    return 1 / 0

f()
own_late.__file__
"""


def test_a_console_on_one_rank(both):
    plain, ours = both("interacts.py", stdin=INTERACTION)
    assert "ZeroDivisionError" in plain[1], plain
    assert "No module named 'own_nothing'" in plain[1], plain
    assert ours == plain


COMMANDS = """\
step
step
p n
import own_late
p own_late.VALUE
up
p value
tbreak own_package/part.py:6
continue
list
return
continue
"""


def test_a_debugger_on_one_rank(both):
    plain, ours = both("debugged.py", stdin=COMMANDS)
    assert "Deleted breakpoint 1" in plain[0], plain
    assert ours == plain


def test_ipython_on_one_rank(both):
    plain, ours = both("embeds.py", environment=environment_of_tools(), stdin=INTERACTION + "exit\n")
    assert "ZeroDivisionError" in plain[0], plain
    assert ours == plain


@pytest.mark.parametrize("options", [(), ("--branch", "--timid")], ids=str)
def test_coverage_is_plain_pythons(both, tmp_path, options):
    tools = environment_of_tools()
    both("-m", "coverage", "run", "--source=.", *options, "program.py", environment=tools)
    reports = []
    for python in ("python", "python-mpi"):
        for rank in range(2):
            data = tmp_path / ("output of %s-coverage.%d" % (python, rank))
            report = ["-m", "coverage", "report", "--show-missing", "--data-file", data]
            reports.append(must([tools.python, *report], cwd=tmp_path / "work").stdout)
    assert "own_package/part.py" in reports[0]
    assert reports[1:] == reports[:1] * 3
