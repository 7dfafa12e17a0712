"""Delivered modules look, fail and can be examined as if this rank had read their files itself."""

import json
import textwrap

import mpi as mpis
import pytest

PYTHONS = ("python", "python-mpi")

SAY = """\
import json, os, sys

def say(*values):
    sys.stdout.write(json.dumps(values, default=str) + "\\n")
    sys.stdout.flush()

"""


@pytest.fixture
def both(tmp_path):
    """Run a program on one plain process and on two of our ranks, each with its files made anew."""

    def run(program, files=None, *, before=(), after=("program.py",), env=None, policy="opening", prelude=SAY):
        results = []
        for python in PYTHONS:
            folder = tmp_path / "work"
            if folder.exists():
                folder.rename(tmp_path / "plain")
            for name, text in {"program.py": prelude + textwrap.dedent(program), **(files or {})}.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(textwrap.dedent(text))
            ranks, environment = (1, env) if python == "python" else (2, {**(env or {}), "MPIIMPORT_POLICY": policy})
            results.append(mpis.MPICH.run(ranks, python, *before, *after, cwd=folder, env=environment, timeout_s=40))
        return results

    return run


@pytest.fixture
def same(both):
    """Check that both of our ranks say what plain Python says, and return it."""

    def check(*arguments, **keywords):
        plain, ours = both(*arguments, **keywords)
        assert (plain.returncode, ours.returncode) == (0, 0), (plain, ours)
        expected = [json.loads(line) for line in plain.stdout.splitlines()]
        heard = [json.loads(line) for line in ours.stdout.splitlines()]
        assert expected, plain
        for line in expected:
            assert heard.count(line) == 2 * expected.count(line), (line, ours)
        assert [line for line in heard if line not in expected] == []
        return expected

    return check


ATTRIBUTES = """
import importlib.machinery, json, pickle
import xml.dom.minidom, email.mime.text, spread.part, beside

if not os.environ.get("SMALL"):
    import numpy.fft, scipy.interpolate

def kinds(loader):
    return [
        name for name in sorted(vars(importlib.machinery)) if name.endswith(("Loader", "Importer"))
        and (isinstance(loader, getattr(importlib.machinery, name)) or loader is getattr(importlib.machinery, name))
    ]

def pickled(thing):
    try:
        return len(pickle.dumps(thing)) > 0
    except Exception as cause:
        return type(cause).__name__

for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in ("mpiimport", "site_mpi", "linecache"):  # the latter by `python -c`, from 3.13 on
        continue
    spec, loader = getattr(module, "__spec__", None), getattr(module, "__loader__", None)
    say(name, {
        "keys": sorted(key for key in vars(module) if type(key) is str and key.startswith("__")),
        **{key: getattr(module, key, "none") for key in ("__name__", "__file__", "__package__", "__cached__")},
        "__path__": [type(getattr(module, "__path__", None)).__name__, list(getattr(module, "__path__", []))],
        "doc": bool(module.__doc__), "code": pickled(spec), "same": spec is not None and spec.loader is loader,
        "spec": spec and [
            spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, str(spec.loader_state),
            spec.submodule_search_locations and list(spec.submodule_search_locations),
            getattr(spec, "_initializing", None), getattr(spec, "_uninitialized_submodules", None),
        ],
        "loader": [kinds(loader), getattr(loader, "name", None), getattr(loader, "path", None), pickled(loader)],
        "repr": repr(module) if " object at " not in repr(module) else None,
    })
"""


@pytest.mark.parametrize("policy", ["opening", "locate"])
@pytest.mark.parametrize(
    ("options", "env"),
    [
        ((), {}),
        (("-O",), {"SMALL": "1"}),
        (("-B",), {"SMALL": "1"}),
        ((), {"SMALL": "1", "PYTHONPYCACHEPREFIX": "{tmp}/elsewhere"}),
    ],
    ids=["plain", "-O", "-B", "pycache prefix"],
)
def test_every_module_has_the_attributes_that_importlib_gives_it(same, tmp_path, options, env, policy):
    files = {"one/spread/part.py": "", "two/spread/other.py": "", "beside.py": "'''Text.'''"}
    env = {"PYTHONPATH": "one:two", **{name: value.format(tmp=tmp_path) for name, value in env.items()}}
    assert len(same(ATTRIBUTES, files, before=options, env=env, policy=policy)) > (60 if "SMALL" in env else 600)


FAULTY = {
    "pkg/__init__.py": "from . import deep",
    "pkg/deep.py": """
        import warnings

        def function(argument):
            return [inner(one) for one in argument]

        def inner(one):
            try:
                return 1 / one
            except ZeroDivisionError as cause:
                raise KeyError(one) from cause

        class Class:
            def method(self):
                (lambda: self.missing)()

        def imports(name):
            __import__(name)

        def warn():
            warnings.warn("here", stacklevel=2)
    """,
    "pkg/unused.py": "VALUE = 'unused'",
    "half.py": "import pkg\n\ndef later():\n    pkg.deep.function([0])\n\nlater()\n",
    "syntax.py": "def f():\n    x = = 1\n",
    "indent.py": "if True:\nx = 1\n",
    "chain_one.py": "import chain_two\n",
    "chain_two.py": "from pkg import nothing_there\n",
    "needs.py": "import nosuch_module\n",
    "warns.py": "import warnings\nwarnings.warn('at import', stacklevel=2)\n",
    "frames.py": """
        import sys
        found, frame = [], sys._getframe()
        while frame:
            found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
            frame = frame.f_back
    """,
    "nul.py": "x = '\0'\n",
}

TRACEBACKS = """
import traceback, warnings
import pkg

def attempt(function, *arguments):
    try:
        function(*arguments)
    except BaseException:
        say(traceback.format_exc())

attempt(pkg.deep.function, [1, 0])
attempt(pkg.deep.Class().method)
for name in ("half", "half", "syntax", "indent", "chain_one", "needs", "nul", "com" + "puted"):
    attempt(pkg.deep.imports, name)
    attempt(lambda: __import__("pkg." + name))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import warns
    pkg.deep.warn()
    say([(os.path.basename(one.filename), one.lineno, str(one.message)) for one in caught])
import frames
own = [index for index, one in enumerate(frames.found) if one[0] == __file__]
say(len(own), frames.found[: own[-1] + 1])
"""


@pytest.mark.parametrize("policy", ["opening", "locate", "lockstep", "local"])
def test_tracebacks_and_warnings_are_plain_pythons_to_the_letter(same, policy):
    lines = same(TRACEBACKS, FAULTY, policy=policy, env={"PYTHONHASHSEED": "0"})
    assert len(lines) == 20


@pytest.mark.parametrize("name", ["half", "syntax", "chain_one", "needs"])
def test_uncaught_exceptions_of_modules_are_shown_as_plain_python_does(both, name):
    program = """
        import os, time
        if int(os.environ["PMI_RANK"]) < int(os.environ["PMI_SIZE"]) - 1:
            time.sleep(30)
        import %s
    """
    plain, ours = both(textwrap.dedent(program) % name, FAULTY, prelude="")
    assert (plain.returncode, ours.returncode) == (1, 1), (plain, ours)
    assert ours.stderr.startswith(plain.stderr), (plain, ours)


def test_source_can_be_examined(same):
    same(
        """
        import copy, importlib.util, inspect, linecache, pickle, xml.dom.minidom
        import pkg, pkg.deep
        from importlib.machinery import SourceFileLoader

        for thing in (pkg, pkg.deep, pkg.deep.function, pkg.deep.Class, pkg.deep.Class.method, xml.dom.minidom.parse):
            say(inspect.getsource(thing), inspect.getsourcefile(thing), inspect.getfile(thing))
            say(inspect.getmodule(thing).__name__)
        say(inspect.getsourcelines(pkg.deep.inner), inspect.getcomments(pkg.deep), pkg.deep.inner.__code__.co_filename)
        linecache.clearcache()
        say(linecache.getline(pkg.deep.__file__, 5), linecache.getline("deep.py", 1, vars(pkg.deep)))
        loader = pkg.deep.__loader__
        say(loader.get_source("pkg.deep"), loader.get_filename("pkg.deep"), loader.is_package("pkg.deep"), loader.path)
        say(loader.get_data(pkg.deep.__file__).decode(), loader.path_stats(pkg.deep.__file__)["size"])
        for one in (pickle.loads(pickle.dumps(loader)), copy.copy(loader), copy.deepcopy(loader), loader):
            say(isinstance(one, SourceFileLoader), one.name, one.path, one.get_code("pkg.deep").co_names, one == loader)
        unused = pickle.loads(pickle.dumps(importlib.util.find_spec("pkg.unused"))).loader
        say(isinstance(unused, SourceFileLoader), unused.get_code("pkg.unused").co_consts)
        spec = pickle.loads(pickle.dumps(pkg.__spec__))
        say(spec.name, spec.origin, spec.submodule_search_locations, spec.loader.path, repr(spec) == repr(pkg.__spec__)
            or "0x" in repr(spec))

        def never():
            import pkg.unused

        say(len({loader: 1, copy.copy(loader): 2}) == 1 + (hash(loader) != hash(copy.copy(loader))))
        """,
        FAULTY,
    )


def test_modules_can_be_loaded_again(same):
    same(
        """
        import importlib, importlib.util, json, time
        import edited, pkg.deep, wave

        if os.environ.get("PMI_RANK", "0") != "0":
            while not os.path.exists("edited"):
                time.sleep(0.01)
        else:
            with open("edited.py", "w") as file:
                file.write("VALUE = 'after'; LINE = 1 / 1\\n")
            os.close(os.open("edited", os.O_CREAT))
        edited.KEPT = 1
        say(importlib.reload(edited) is edited, edited.VALUE, edited.KEPT, edited.__loader__.path, edited.__spec__.name)
        for module in (pkg, pkg.deep, json, wave):
            say(importlib.reload(module) is module, module.__spec__.name, module.__file__)
        del sys.modules["edited"]
        import edited as again
        say(again.VALUE, again is edited)
        spec = importlib.util.find_spec("pkg.deep")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        say(module.function([1]), module is pkg.deep, spec.origin)
        pkg.deep.__loader__.exec_module(pkg.deep)
        pkg.__loader__.load_module("pkg")
        spec = importlib.util.spec_from_file_location("by_hand", "edited.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        say(module.VALUE, module.__file__)
        """,
        {**FAULTY, "edited.py": "VALUE = 'before'\n"},
        before=["-W", "ignore"],
    )


def test_data_and_metadata_are_found(same):
    same(
        """
        import importlib.metadata, importlib.resources, importlib.util, pkgutil
        import numpy, pkg, spread

        say(pkgutil.get_data("pkg", "data.txt").decode(), pkgutil.get_data("pkg.sub", "more.txt").decode())
        say(importlib.resources.read_text("pkg", "data.txt") if sys.version_info < (3, 11) else "")
        say(importlib.resources.files("pkg").joinpath("data.txt").read_text())
        say(sorted(one.name for one in importlib.resources.files("pkg").iterdir() if one.name != "__pycache__"))
        say(importlib.resources.files("pkg.sub").joinpath("more.txt").is_file())
        with importlib.resources.as_file(importlib.resources.files(pkg) / "data.txt") as path:
            say(str(path))
        if sys.version_info >= (3, 10):
            say((importlib.resources.files("spread") / "data.txt").read_text())
        say([importlib.metadata.version(name) for name in ("numpy", "scipy", "mpi4py", "pip")])
        say(sorted(str(one.metadata["Name"]) for one in importlib.metadata.distributions()))
        say(len(importlib.metadata.files("numpy")), importlib.metadata.requires("scipy"))
        say(sorted(str(one) for one in importlib.metadata.entry_points(group="console_scripts"))
            if sys.version_info >= (3, 10) else "")
        try:
            importlib.metadata.version("nosuch-distribution")
        except importlib.metadata.PackageNotFoundError as cause:
            say(str(cause))
        say([(one.name, one.ispkg) for one in pkgutil.iter_modules(pkg.__path__)])
        say([(one.name, one.ispkg) for one in pkgutil.walk_packages(pkg.__path__, "pkg.")])
        say(sorted(one.name for one in pkgutil.iter_modules()))
        for name in ("pkg.sub", "nosuch", "json", "numpy.fft", "sys", "spread", "os"):
            spec = importlib.util.find_spec(name)
            say(name, spec and [spec.name, spec.origin, spec.has_location, spec.cached])
        """,
        {
            "pkg/__init__.py": "",
            "pkg/data.txt": "data",
            "pkg/module.py": "",
            "pkg/sub/__init__.py": "",
            "pkg/sub/more.txt": "more",
            "pkg/sub/deeper.py": "",
            "one/spread/data.txt": "spread",
        },
        env={"PYTHONPATH": "one:two"},
    )


def test_runpy_runs_modules_and_paths(same):
    same(
        """
        import runpy

        def show(found):
            say(sorted(key for key in found if key.startswith("__")), found["__name__"], found["__file__"],
                found["__package__"], found["VALUE"], str(found["__spec__"] and found["__spec__"].name), sys.argv[1:])

        show(runpy.run_module("pkg.sub"))
        show(runpy.run_module("pkg", run_name="other", alter_sys=True))
        show(runpy.run_module("com" + "puted", {"extra": 1}))
        show(runpy.run_path("computed.py"))
        show(runpy.run_path("folder", run_name="__main__"))
        for name in ("nosuch", "pkg.nosuch", "pkg.folder"):
            try:
                runpy.run_module(name)
            except ImportError as cause:
                say(str(cause))
        """,
        {
            "pkg/__init__.py": "VALUE = __name__",
            "pkg/__main__.py": "VALUE = __name__",
            "pkg/sub.py": "VALUE = __name__",
            "pkg/folder/__init__.py": "",
            "computed.py": "VALUE = __name__",
            "folder/__main__.py": "import beside_main; VALUE = beside_main.VALUE",
            "folder/beside_main.py": "VALUE = __file__",
        },
    )


TOOLS = {
    "pdb": (
        ["-m", "pdb"],
        ["-c", "break pkg.deep:8", "-c", "continue", "-c", "where", "-c", "list", "-c", "p one", "-c", "quit"],
        ["debugged.py"],
    ),
    "unittest": (["-m", "unittest"], ["discover", "-s", "tests"], []),
    "doctest": (["-m", "doctest"], ["-v", "documented.py"], []),
    "pyclbr": (["-m", "pyclbr"], ["pkg/deep.py"], []),
    "inspect": (["-m", "inspect"], ["pkg.deep:function"], []),
    "zipapp": (["-m", "zipapp"], ["folder", "-o", "/dev/null", "-m", "x:y"], []),
    "timeit": (["-m", "timeit"], ["-n", "1", "-r", "1", "import pkg.deep; print(pkg.deep.inner(1))"], []),
    "calendar": (["-m", "calendar"], ["2000", "1"], []),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_tools_of_the_standard_library_work_on_delivered_modules(both, tool):
    plain, ours = both(
        "",
        {
            **FAULTY,
            "debugged.py": "import pkg\npkg.deep.function([2, 1])\nprint('end')\n",
            "documented.py": "'''\n>>> import pkg.deep\n>>> pkg.deep.inner(1)\n1.0\n>>> pkg.deep.inner(0)\n"
            "Traceback (most recent call last):\n  ...\nKeyError: 0\n'''\n",
            "tests/test_pkg.py": "import unittest\nclass T(unittest.TestCase):\n  def test(self):\n    import pkg\n",
            "folder/x.py": "def y(): pass",
        },
        after=[one for part in TOOLS[tool] for one in part],
    )
    assert plain.returncode == ours.returncode, (plain, ours)

    def lines(text):
        return {line for line in text.splitlines() if line.strip(".") and " in " not in line and "best of" not in line}

    assert lines(ours.stdout) == lines(plain.stdout), (plain, ours)
    assert lines(ours.stderr) == lines(plain.stderr), (plain, ours)


def test_pdb_reads_its_commands_from_standard_input(tmp_path):
    program = tmp_path / "debugged.py"
    program.write_text("import wave\nvalue = wave.__name__\nprint(value)\n")
    commands = "break 3\ncontinue\nwhere\np value\ncontinue\nquit\n"
    results = [mpis.MPICH.run(1, python, "-m", "pdb", program, stdin=commands, timeout_s=30) for python in PYTHONS]
    assert results[0].stdout == results[1].stdout
    assert "'wave'" in results[1].stdout
