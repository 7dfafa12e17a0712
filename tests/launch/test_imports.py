"""Whatever a program imports, and whenever, each rank gets what plain Python gives it, and none hangs."""

import os
import sysconfig
import tempfile
import textwrap
from pathlib import Path

import mpi as mpis
import pytest
from cases import PRELUDE, Case, archive, bytecode, complaints, launch
from compared import said

RUNS = int(os.environ.get("MPIIMPORT_TEST_RUNS", "1"))


def extension(name):
    """Return the content of an extension module of the standard library, and its file's name."""
    file = Path(sysconfig.get_path("platstdlib"), "lib-dynload", name + sysconfig.get_config_var("EXT_SUFFIX"))
    return {file.name: file.read_bytes()} if file.exists() else {}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Return a case's folder, and what plain Python says there; each case is run once."""
    known = {}

    def run(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            result = launch(CASES[name], folder, "python")
            known[name] = folder, said(result), result.stderr
        return known[name]

    return run


CASES = {
    "threads": Case(
        """
        import threading

        def load(names):
            for name in names:
                found[name] = importlib.import_module(name).__file__

        def static():
            import csv, decimal, email.mime.text, http.client
            found["static"] = [csv.__name__, decimal.__name__, email.mime.text.__name__, http.client.__name__]

        found = {}
        names = ["colorsys", "wave", "shared.one", "shared.two", "ftplib"]
        threads = [threading.Thread(target=load, args=(order,)) for order in (names, names[::-1])]
        threads.append(threading.Thread(target=static))
        for thread in threads:
            thread.start()
        comm.Barrier()
        for thread in threads:
            thread.join(30)
        say(sorted(found.items()), [thread.is_alive() for thread in threads])
        """,
        {"shared/__init__.py": "from . import one", "shared/one.py": "from . import two", "shared/two.py": ""},
    ),
    "order": Case(
        """
        def one():
            import a, b, c
            say([module.NAME for module in (a, b, c)])

        def other():
            import c, b, a
            say([module.NAME for module in (a, b, c)])

        (one if rank % 2 else other)()
        comm.Barrier()
        names = ["csv", "wave", "pkg.x", "ftplib", "pkg.y", "missing_%s", "xml.dom.minidom"]
        for name in names if rank % 2 else names[::-1]:
            try:
                say(importlib.import_module(name).__file__)
            except ImportError as cause:
                say(str(cause))
        """,
        {
            **{name + ".py": "NAME = %r" % name for name in "abc"},
            **{"pkg/%s.py" % name: "" for name in ("__init__", "x", "y")},
        },
        ranks=3,
    ),
    "missing-everywhere": Case(
        """
        for name in ("nothing", "nothing.below", "json.nothing", "pkg.absent", "nothing", "com" + "puted"):
            try:
                importlib.import_module(name)
            except ImportError as cause:
                say(name, type(cause).__name__, str(cause), cause.name, cause.path)
        """,
        {"pkg/__init__.py": ""},
    ),
    "missing": Case(
        """
        def attempt(name):
            try:
                importlib.import_module(name)
            except ImportError as cause:
                say(name, type(cause).__name__, str(cause), cause.name, cause.path)

        for name in ("nothing", "nothing.below", "json.nothing", "json.decoder.nothing", "pkg.absent", "pkg.hidden"):
            attempt(name)
            attempt(name)
        try:
            import neverthere
        except ImportError as cause:
            say(str(cause), cause.name)
        try:
            from json import neverthere
        except ImportError as cause:
            say(str(cause), cause.name, cause.path)
        if rank == 0:
            attempt("only.root")
        say([importlib.util.find_spec(name) for name in ("nothing", "json.nothing")])
        """,
        {"pkg/__init__.py": "", "pkg/hidden/data.txt.py": ""},
    ),
    "raises-half-way": Case(
        """
        for attempt in range(3):
            try:
                import fragile
                say(fragile.VALUE)
            except ZeroDivisionError as cause:
                say(str(cause), "fragile" in sys.modules, sorted(n for n in sys.modules if n.startswith("fragile")))
        for attempt in range(2):
            try:
                import wrong
            except SyntaxError as cause:
                say(str(cause), cause.filename, cause.lineno, "wrong" in sys.modules)
        try:
            import sys_exit
        except SystemExit as cause:
            say(cause.code)
        """,
        {
            "fragile/__init__.py": """
                import sys
                from . import part
                sys.attempts = getattr(sys, "attempts", 0) + 1
                if sys.attempts < 3:
                    1 / 0
                VALUE = sys.attempts
            """,
            "fragile/part.py": "",
            "wrong.py": "x = 1\ny = = 2\n",
            "sys_exit.py": "import sys; sys.exit(3)",
        },
    ),
    "compiler-warns": Case(
        """
        def never():
            import never_imported

        import warned
        say(warned.VALUE)
        """,
        {"warned.py": "VALUE = 1\nVALUE is 1", "never_imported.py": "VALUE = 1\nVALUE is 1"},
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    ),
    "circular": Case(
        """
        import good_one
        say(good_one.other.good_one.VALUE)
        try:
            import bad_one
        except ImportError as cause:
            say(str(cause), cause.name, cause.path)
        try:
            import lazy_one
        except AttributeError as cause:
            say(str(cause))
        """,
        {
            "good_one.py": "import good_two as other\nVALUE = 1",
            "good_two.py": "import good_one",
            "bad_one.py": "from bad_two import VALUE",
            "bad_two.py": "from bad_one import VALUE",
            "lazy_one.py": "import lazy_two",
            "lazy_two.py": "import lazy_one; lazy_one.VALUE",
        },
    ),
    "after-finalize": Case(
        """
        import beside
        MPI.Finalize()
        import xml.dom.minidom
        import later
        say(xml.dom.minidom.parseString("<a/>").documentElement.tagName, later.VALUE)
        say(importlib.import_module("col" + "orsys").__file__)
        try:
            import absent
        except ImportError as cause:
            say(str(cause))
        if rank == 1:
            time.sleep(0.5)
            import numpy.fft
            say(abs(numpy.fft.fft(numpy.ones(4))[0]))
        """,
        {"beside.py": "", "later.py": "VALUE = __file__"},
    ),
    "at-exit": Case(
        """
        import atexit

        def late():
            import beside, wave
            say(beside.__file__, wave.__name__, importlib.import_module("color" + "sys").__name__)
            try:
                import absent
            except ImportError as cause:
                say(str(cause))

        atexit.register(late)
        """,
        {"beside.py": ""},
    ),
    "writes-and-imports": Case(
        """
        write("own_%d.py" % rank, "VALUE = %d" % rank)
        say(importlib.import_module("own_%d" % rank).VALUE)
        if rank == 0:
            write("made.py", "VALUE = 'written by rank 0'")
            write("made_package/__init__.py", "from . import part")
            write("made_package/part.py", "VALUE = 'a part'")
            write("existing/added.py", "VALUE = 'added'")
        comm.Barrier()
        import made, made_package, existing.added
        say(made.VALUE, made.__file__, made_package.part.VALUE, existing.added.VALUE)
        """,
        {"existing/__init__.py": ""},
    ),
    "writes-after-a-failed-try": Case(
        """
        def attempts():
            for name in ("made", "made_package.part", "existing.added", "com" + "puted", "folder_to_come"):
                try:
                    say(name, importlib.import_module(name).__file__)
                except ImportError as cause:
                    say(name, str(cause))

        try:
            import made
        except ImportError as cause:
            say(str(cause))
        attempts()
        comm.Barrier()
        before = os.stat(".")
        if rank == 1:
            for name in ("made", "made_package/__init__", "made_package/part", "existing/added", "computed",
                         "late/folder_to_come"):
                write(name + ".py", "")
            os.utime(".", ns=(before.st_atime_ns, before.st_mtime_ns))
        comm.Barrier()
        importlib.invalidate_caches()
        attempts()
        """,
        {"existing/__init__.py": ""},
        env={"PYTHONPATH": "late"},
    ),
    "writes-after-a-failed-try-without-invalidation": Case(
        """
        for name in ("made", "existing.added"):
            try:
                importlib.import_module(name)
            except ImportError as cause:
                say(str(cause))
        comm.Barrier()
        time.sleep(0.1)
        if rank == 0:
            write("made.py", "VALUE = 1")
            write("existing/added.py", "VALUE = 1")
        comm.Barrier()
        import made, existing.added
        say(made.VALUE, existing.added.VALUE)
        """,
        {"existing/__init__.py": ""},
    ),
    "a-thread-that-is-nothing-but-a-question": Case(
        """
        import _thread, io

        errors = io.StringIO()
        sys.stderr = errors
        for finder in sys.meta_path:
            _thread.start_new_thread(finder.find_spec, ("colorsys", None))
        time.sleep(0.3)
        say(errors.getvalue())
        """
    ),
    "writes-what-the-environment-imports": Case(
        """
        import wave
        if rank == 0:
            write("_zoneinfo.py", "class ZoneInfo: VALUE = 'written'")
        comm.Barrier()
        import zoneinfo
        say(zoneinfo.ZoneInfo.VALUE, importlib.import_module("_zoneinfo").__file__)
        """
    ),
    "rewrites-before-import": Case(
        """
        if rank == 0:
            write("longer.py", "VALUE = 'the new one'")
            write("equal.py", "VALUE = 2")
            write("package/__init__.py", "VALUE = 'a new package'")
            os.remove("removed.py")
            os.remove("second/uncovered.py")
            os.remove("becomes.py")
            write("becomes/__init__.py", "VALUE = 'a package'")
            write("third/plain.py", "VALUE = 'third'")
        comm.Barrier()
        import longer, equal, package, uncovered, becomes
        say(longer.VALUE, equal.VALUE, package.VALUE, uncovered.VALUE, becomes.VALUE)
        try:
            import removed
        except ImportError as cause:
            say(str(cause))
        """,
        {
            "longer.py": "VALUE = 1",
            "equal.py": "VALUE = 1",
            "package/__init__.py": "VALUE = 1",
            "removed.py": "",
            "becomes.py": "VALUE = 1",
            "second/uncovered.py": "VALUE = 2",
            "third/uncovered.py": "VALUE = 3",
        },
        env={"PYTHONPATH": "second:third"},
    ),
    "rewrites-within-the-same-second": Case(
        """
        if rank == 0:
            for name in ("equal.py", "old.py", "unused.py"):
                second = int(os.stat(name).st_mtime)
                write(name, "VALUE = 2")
                os.utime(name, (second, second))
        comm.Barrier()
        import equal, old
        say(equal.VALUE, old.VALUE)

        def never():
            import unused
        """,
        {"equal.py": "VALUE = 1", "old.py": "VALUE = 1", "unused.py": "VALUE = 1"},
    ),
    "shadows": Case(
        """
        if rank == 0:
            for folder in ("first", "late", os.path.join(os.getcwd(), "not_there")):
                for name in ("tool", "colorsys", "spread", "folder_tool"):
                    if (folder == "first") == (name in ("tool", "colorsys")):
                        write(os.path.join(folder, name + ".py"), "")
        comm.Barrier()
        importlib.invalidate_caches()
        import tool, colorsys, spread, folder_tool
        say(*[os.path.relpath(module.__file__) for module in (tool, colorsys, spread, folder_tool)])
        """,
        {
            "first/other.py": "",
            "last/tool.py": "",
            "last/spread.py": "",
            "last/folder_tool/__init__.py": "",
        },
        env={"PYTHONPATH": "first:late:last"},
    ),
    "path-of-one-rank": Case(
        """
        if rank == 1:
            sys.path.insert(0, os.path.abspath("theirs"))
        import tool, common
        say(tool.VALUE, common.VALUE)
        try:
            import theirs_only
            say(theirs_only.__file__)
        except ImportError as cause:
            say(str(cause))
        comm.Barrier()
        if rank == 0:
            sys.path[:] = [entry for entry in sys.path if "site-packages" not in entry]
        for name in ("numpy", "colorsys"):
            try:
                say(importlib.import_module(name).__name__)
            except ImportError as cause:
                say(str(cause))
        """,
        {
            "tool.py": "VALUE = 'ours'",
            "common.py": "import tool; VALUE = tool.VALUE",
            "theirs/tool.py": "VALUE = 'theirs'",
            "theirs/theirs_only.py": "",
        },
    ),
    "folder-changed-by-one-rank": Case(
        """
        sys.path.insert(0, "")
        if rank == 1:
            os.chdir("elsewhere")
        import tool
        say(tool.VALUE, tool.__file__)
        sys.path.insert(0, "below")
        import deep
        say(deep.__file__)
        """,
        {
            "tool.py": "VALUE = 1",
            "elsewhere/tool.py": "VALUE = 2",
            "below/deep.py": "",
            "elsewhere/below/deep.py": "",
        },
    ),
    "folder-that-is-gone": Case(
        """
        sys.path[:0] = ["", "relative"]
        if rank == 1:
            os.mkdir("gone")
            os.chdir("gone")
            os.rmdir("../gone")
        import tool, wave
        say(tool.__file__, wave.__file__, importlib.import_module("color" + "sys").__file__)
        try:
            import nosuch
        except ImportError as cause:
            say(str(cause))
        """,
        {"tool.py": ""},
    ),
    "namespace": Case(
        """
        def show(module):
            say(module.__name__, list(module.__path__), type(module.__path__).__name__, hasattr(module, "__file__"),
                module.__spec__.origin, type(module.__loader__).__name__, module.__spec__.has_location)

        import spread.one.deep, spread.two, spread
        from spread import one
        show(spread)
        show(one)
        say(spread.two.__file__, one.deep.__file__)
        try:
            import spread.three
        except ImportError as cause:
            say(str(cause), cause.path)
        sys.path.append(os.path.abspath("third"))
        import spread.three
        say(spread.three.__file__, list(spread.__path__))
        if rank == 0:
            write("first/spread/four.py", "")
        comm.Barrier()
        importlib.invalidate_caches()
        import spread.four
        say(spread.four.__file__)
        """,
        {
            "first/spread/one/deep.py": "",
            "second/spread/two.py": "",
            "second/spread/one/other.py": "",
            "third/spread/three.py": "",
        },
        env={"PYTHONPATH": "first:second"},
    ),
    "zip": Case(
        """
        import inzip, zipped.part, beside
        for module in (inzip, zipped, zipped.part):
            say(module.__file__, type(module.__loader__).__name__, module.__spec__.origin, module.__package__)
        say(zipped.part.VALUE, zipped.__loader__.get_data(os.path.join(zipped.__path__[0], "data.txt")).decode())
        try:
            import zipped.absent
        except ImportError as cause:
            say(str(cause))
        sys.path.insert(0, "late.zip")
        import inlate
        say(inlate.__file__)
        """,
        {
            "lib.zip": archive(
                {"inzip.py": "", "zipped/__init__.py": "", "zipped/part.py": "VALUE = 1", "zipped/data.txt": "data"}
            ),
            "late.zip": archive({"inlate.py": ""}),
            "beside.py": "",
        },
        env={"PYTHONPATH": "lib.zip"},
    ),
    "sourceless": Case(
        """
        import compiled, pkg.inner
        for module in (compiled, pkg, pkg.inner):
            say(module.__file__, module.__cached__, type(module.__loader__).__name__, module.__spec__.cached)
        say(compiled.VALUE)
        """,
        {
            "compiled.pyc": bytecode("VALUE = 1"),
            "pkg/__init__.pyc": bytecode("from . import inner"),
            "pkg/inner.pyc": bytecode(""),
        },
    ),
    "extensions": Case(
        """
        import _queue, _decimal, numpy._core._multiarray_umath
        for name in ("_queue", "_decimal", "numpy._core._multiarray_umath"):
            module = sys.modules[name]
            say(name, getattr(module, "__file__", None), type(module.__loader__).__name__, module.__spec__.origin,
                module.__spec__.cached)
        say(importlib.import_module("_he" + "apq").__name__)
        """,
        extension("_queue"),
    ),
    "relative": Case(
        """
        import pkg
        from pkg import *
        from pkg.sub import *
        say(sorted(name for name in globals() if name in ("here", "there", "lazy", "deep")), pkg.lazy.__name__)
        say(pkg.sub.up.__name__, pkg.sub.sibling.__name__)
        try:
            import pkg.beyond
        except ImportError as cause:
            say(str(cause))
        """,
        {
            "pkg/__init__.py": """
                __all__ = ["here", "there"]
                from . import here
                from .sub import up
                def __getattr__(name):
                    if name == "lazy":
                        import importlib
                        return importlib.import_module(".lazy", __name__)
                    raise AttributeError(name)
            """,
            "pkg/here.py": "",
            "pkg/there.py": "",
            "pkg/lazy.py": "",
            "pkg/beyond.py": "from ... import nothing",
            "pkg/sub/__init__.py": "from .. import here as up\nfrom ..sub import sibling\n__all__ = ['deep']",
            "pkg/sub/sibling.py": "",
            "pkg/sub/deep.py": "",
        },
    ),
    "finders-of-the-program": Case(
        """
        import importlib.abc, importlib.machinery, importlib.util
        asked = []

        class Inventor(importlib.abc.MetaPathFinder, importlib.abc.Loader):
            def __init__(self, prefix):
                self.prefix = prefix
            def find_spec(self, fullname, path, target=None):
                asked.append((self.prefix, fullname))
                if fullname.startswith(self.prefix):
                    return importlib.machinery.ModuleSpec(fullname, self)
            def create_module(self, spec):
                return None
            def exec_module(self, module):
                module.VALUE = "invented " + module.__name__

        sys.meta_path.insert(0, Inventor("front"))
        sys.meta_path.append(Inventor("back"))
        import front_real, back_real, back_absent, neither
        say(front_real.VALUE, back_real.VALUE, back_absent.VALUE, neither.VALUE, asked)

        def hook(entry):
            if not entry.endswith("virtual"):
                raise ImportError
            return importlib.machinery.FileFinder(entry[:-len("virtual")] + "hooked", *loaders)

        loaders = [(importlib.machinery.SourceFileLoader, [".txt"])]
        sys.path_hooks.insert(0, hook)
        sys.path.insert(0, os.path.abspath("virtual"))
        import from_hook
        say(from_hook.__file__)
        del sys.meta_path[0]
        sys.path_importer_cache.clear()
        import last
        say(last.__file__, len(sys.meta_path))
        """,
        {
            "front_real.py": "VALUE = 'real'",
            "back_real.py": "VALUE = 'real'",
            "neither.py": "VALUE = 'real'",
            "hooked/from_hook.txt": "",
            "last.py": "",
        },
    ),
    "path-hooks-of-the-program": Case(
        """
        import importlib.machinery

        class Changing(importlib.machinery.SourceFileLoader):
            def source_to_code(self, data, path, **keywords):
                return super().source_to_code(data + b"\\nCHANGED = True", path, **keywords)
            def get_code(self, name):
                return self.source_to_code(self.get_data(self.path), self.path)

        sys.path_hooks.insert(0, importlib.machinery.FileFinder.path_hook((Changing, [".py"])))
        import before, pkg.inner
        say(hasattr(before, "CHANGED"), hasattr(pkg.inner, "CHANGED"), type(before.__loader__).__name__ == "Changing")
        sys.path_importer_cache.clear()
        import after, pkg.other
        say(hasattr(after, "CHANGED"), hasattr(pkg.other, "CHANGED"), type(after.__loader__).__name__ == "Changing")
        del sys.path_hooks[0]
        sys.path_importer_cache.clear()
        import last
        say(hasattr(last, "CHANGED"))
        """,
        {name + ".py": "" for name in ("before", "pkg/__init__", "pkg/inner", "pkg/other", "after", "last")},
    ),
    "odd-path-entries": Case(
        """
        import pathlib
        sys.path[:0] = [pathlib.Path("ours"), 3, None, os.path.abspath("ours") + "/", "./ours/../theirs"]
        import mine, yours
        say(mine.__file__, yours.__file__)
        try:
            import nobodys
        except ImportError as cause:
            say(str(cause))
        sys.path = tuple(sys.path)
        import other
        say(other.__file__)
        """,
        {"ours/mine.py": "", "theirs/yours.py": "", "other.py": ""},
    ),
    "odd-names": Case(
        """
        import grün.käse, ﬁx, a_b
        say(grün.käse.__file__, ﬁx.__file__, a_b.__file__)
        for name in ("with-hyphen", "with space", "a.b", "ünbekannt", ".".join("pkg"), "pkg" + chr(0xd800), "x" * 300):
            try:
                say(importlib.import_module(name).__file__)
            except ImportError as cause:
                say(ascii(cause))
        sys.path.insert(0, os.path.abspath(os.fsdecode(bytes([110, 255]))))
        if rank == 0:
            write(os.path.join(sys.path[0], "inside.py"), "")
        comm.Barrier()
        importlib.invalidate_caches()
        import inside
        say(inside.__file__)
        comm.Barrier()
        """,
        {
            "grün/__init__.py": "",
            "grün/käse.py": "",
            "fix.py": "",
            "a_b.py": "",
            "a.b.py": "",
            "with-hyphen.py": "",
            "with space.py": "",
        },
    ),
    "links": Case(
        """
        if rank == 0:
            os.symlink("real", "linked")
            os.symlink("../real/one.py", "linked/alias.py")
        comm.Barrier()
        sys.path.insert(0, os.path.abspath("linked"))
        import one, alias
        say(one.__file__, alias.__file__, one is alias)
        """,
        {"real/one.py": ""},
    ),
    "lazy-module": Case(
        """
        import importlib.util

        def later():
            import wave, beside
            return wave.__name__, beside.__file__

        spec = importlib.util.find_spec("lazily")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules["lazily"] = module
        spec.loader.exec_module(module)
        comm.Barrier()
        if rank == 1:
            say(module.VALUE)
        say(later(), (lambda: __import__("xml.sax.saxutils").sax.saxutils.escape("<"))())
        """,
        {"lazily.py": "VALUE = __name__", "beside.py": ""},
    ),
    "children": Case(
        """
        def main():
            import multiprocessing, task

            child = os.fork()
            if child == 0:
                import wave, beside
                say("forked", wave.__file__, importlib.import_module("color" + "sys").__file__, beside.__file__)
                os._exit(0)
            say(os.waitpid(child, 0)[1])
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                say(pool.apply(task.work, (2,)))
            code = "import task; print(task.work(3), exit)"
            say(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout)
            comm.Barrier()
            say(importlib.import_module("af" + "ter").__file__)

        if __name__ == "__main__":
            main()
        """,
        {
            "task.py": "def work(x):\n    import decimal\n    return str(decimal.Decimal(x) / 4)\n",
            "beside.py": "",
            "after.py": "",
        },
        prelude='if __name__ == "__main__":\n' + textwrap.indent(PRELUDE, "    "),
    ),
    "finaliser-and-handler": Case(
        """
        import signal

        def handler(*_):
            import from_handler
            say(from_handler.__file__)

        class Last:
            def __del__(self):
                import from_finaliser, wave
                say(from_finaliser.__file__, importlib.import_module("col" + "orsys").__name__)

        class Entry(str):
            "Code that runs while a finder looks at sys.path."
            def __eq__(self, other):
                import from_comparison
                return str.__eq__(self, other)
            __hash__ = str.__hash__

        signal.signal(signal.SIGUSR1, handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        thing = Last()
        del thing
        sys.path.insert(1, Entry(os.path.abspath("entry")))
        import inside
        say(inside.__file__)
        """,
        {name + ".py": "" for name in ("from_handler", "from_finaliser", "from_comparison", "entry/inside")},
    ),
}


LOCAL = ("children", "finders-of-the-program", "namespace", "threads")
# For lockstep: every rank imports the same in the same order.
SYMMETRIC = (
    "circular",
    "compiler-warns",
    "extensions",
    "missing-everywhere",
    "namespace",
    "odd-path-entries",
    "odd-names",
    "raises-half-way",
    "relative",
    "rewrites-before-import",
    "shadows",
    "sourceless",
    "writes-after-a-failed-try",
    "zip",
)


POLICIES = {"opening": CASES, "locate": CASES, "lockstep": SYMMETRIC, "local": LOCAL}


@pytest.mark.parametrize(
    ("name", "policy"),
    [(name, policy) for policy in POLICIES for name in POLICIES[policy]],
)
def test_imports_are_plain_pythons(plain, name, policy):
    folder, expected, stderr = plain(name)
    env = {"PYTHONHASHSEED": "0"} if policy == "lockstep" else None
    result = launch(CASES[name], folder, "python-mpi", "--policy", policy, env=env)
    assert said(result) == expected
    assert complaints(result.stderr) == complaints(stderr)


@pytest.mark.parametrize("name", ["rewrites-before-import", "shadows", "writes-and-imports"])
def test_program_inside_the_environment_may_write_modules(plain, name):
    with tempfile.TemporaryDirectory(dir=mpis.BIN.parent) as folder:
        lines = said(launch(CASES[name], Path(folder, "project"), "python-mpi"))
        assert str(lines).replace(str(Path(folder, "project")), str(plain(name)[0])) == str(plain(name)[1])


RAISING = """
import sys

def hook(entry):
    if entry.endswith("odd"):
        raise TypeError("of a hook, for " + entry)
    raise ImportError

sys.path_hooks.insert(0, hook)
"""


def test_entries_over_which_path_hooks_raise_are_in_the_way_of_no_other(tmp_path):
    program = """
        odd, null = "odd", "null" + chr(0)
        for number, entry in enumerate((odd, os.path.abspath(odd), null, os.path.abspath(null))):
            sys.path.append(entry)
            for name in ("found%d" % number, "absent%d" % number):
                try:
                    say(importlib.import_module(name).__file__)
                except Exception as cause:
                    say(type(cause).__name__, str(cause))
            sys.path.pop()
    """
    files = {"custom/sitecustomize.py": RAISING, **{"found%d.py" % number: "" for number in range(4)}}
    case = Case(program, files, {"PYTHONPATH": "custom"})
    expected = said(launch(case, tmp_path / "run", "python"))
    assert [line[1] for line in expected[1::2]] == ["TypeError", "TypeError", "ValueError", "ValueError"] * case.ranks
    for _ in range(2):  # the second has the questions of the first
        assert said(launch(case, tmp_path / "run", "python-mpi", "--profile", tmp_path / "profile")) == expected


@pytest.mark.parametrize("policy", ["opening", "locate"])
def test_bytecode_of_the_forecast_is_not_used_for_other_source(tmp_path, policy):
    case = CASES["rewrites-within-the-same-second"]
    check = "import equal, old, unused; print(equal.VALUE, old.VALUE, unused.VALUE)"
    for _ in range(3):
        assert said(launch(case, tmp_path, "python-mpi", "--policy", policy)) == [[0, 2, 2], [1, 2, 2]]
        afterwards = mpis.run([mpis.BIN / "python", "-c", check], cwd=tmp_path)
        assert afterwards.stdout == "2 2 2\n", afterwards


NUMPY = """
    import numpy.fft, scipy.interpolate
    import numpy as np

    spline = scipy.interpolate.CubicSpline(np.arange(10.0), np.arange(10.0) ** 2)
    mine = float(abs(np.fft.fft(np.ones(8)))[0]) + float(spline(2.5)) + rank
    say(comm.allreduce(mine), comm.size, sys.flags.hash_randomization, sys.mpiimport.stats()["missed"])
"""


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_random_hash_seeds_do_not_matter(tmp_path, ranks, run):  # noqa: ARG001
    lines = said(launch(Case(NUMPY, ranks=ranks), tmp_path, "python-mpi"))
    expected = pytest.approx(sum(8 + 6.25 + rank for rank in range(ranks)))
    assert [line[:4] for line in lines] == [[rank, expected, ranks, 1] for rank in range(ranks)]
    assert all(len(mpis.without_codecs(line[4])) <= 15 for line in lines), lines


TCP = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "MPIR_CVAR_NOLOCAL": "1"}


@pytest.mark.parametrize("condition", ["rank == 0", "rank != 0"])
@pytest.mark.parametrize(
    ("mpi", "env", "policy"),
    [
        (mpis.MPICH, {}, "opening"),
        (mpis.MPICH, {}, "locate"),
        (mpis.MPICH, TCP, "opening"),
        (mpis.OPENMPI, {}, "opening"),
    ],
    ids=["mpich", "mpich-locate", "mpich-tcp", "openmpi"],
)
def test_barrier_of_the_program_after_a_large_import_on_some_ranks(tmp_path, mpi, env, condition, policy):
    program = (
        """
        if %s:
            import scipy.interpolate, scipy.optimize
            importlib.import_module("scipy." + "stats")
        for _ in range(200):
            comm.Barrier()
        say(comm.allreduce("scipy.stats" in sys.modules))
    """
        % condition
    )
    result = launch(Case(program, ranks=3), tmp_path, "python-mpi", "--policy", policy, mpi=mpi, env=env)
    importers = 1 if condition == "rank == 0" else 2
    assert said(result) == [[rank, importers] for rank in range(3)]


@pytest.mark.parametrize(
    ("mpi", "uses_mpi"),
    [(mpis.MPICH, True), (mpis.MPICH, False), (mpis.OPENMPI, True)],
    ids=["mpich", "mpich-without-mpi4py", "openmpi"],
)
def test_leaf_goes_on_importing_after_the_root_has_ended(tmp_path, mpi, uses_mpi):
    program = """
        import json, os, sys, time
        rank = next(int(os.environ[name]) for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ)
        %s
        if rank == 1:
            names = ["wave", "later", "xml.dom.minidom", "missing", "color" + "sys", "ftplib"]
            for turn, name in enumerate(names):
                time.sleep(1)
                try:
                    __import__(name)
                except ImportError as cause:
                    print(json.dumps([turn, str(cause)]))
            import numpy.fft
            print(json.dumps([turn + 1, abs(numpy.fft.fft(numpy.ones(4))[0])]))
    """ % ("from mpi4py import MPI" if uses_mpi else "")
    case = Case("")
    case.files = {"program.py": program, "later.py": ""}
    assert said(launch(case, tmp_path, "python-mpi", mpi=mpi)) == [[3, "No module named 'missing'"], [6, 4.0]]


def test_what_was_not_foreseen_is_found_once_on_a_host(tmp_path):
    program = """
        before = sys.mpiimport.stats()["modules"]
        for name in ("pkg.computed", "wave", "xml.sax.saxutils", "no_such"):
            try:
                importlib.import_module(name)
            except ImportError:
                pass
        after = sys.mpiimport.stats()
        say(*[after["modules"][how] - before[how] for how in ("local", "node")], after["missed"])
    """
    case = Case(program, {"pkg/__init__.py": "", "pkg/computed.py": ""}, ranks=4)
    lines = said(launch(case, tmp_path, "python-mpi"))
    found, shared = (sum(line[which] for line in lines) for which in (1, 2))
    assert found >= 4
    assert shared == 3 * found, lines
    assert all({"pkg.computed", "wave"} <= set(line[3]) for line in lines)


def test_imports_in_function_bodies_are_foreseen(tmp_path):
    program = """
        class Thing:
            def method(self):
                def inner():
                    from pkg import part
                    from pkg.other import name as renamed
                    import ftplib, wave
                    return part, renamed
                return inner()

        Thing().method()
        say(sys.mpiimport.stats()["missed"])
    """
    files = {"pkg/__init__.py": "", "pkg/part.py": "import colorsys", "pkg/other.py": "def name():\n import wave"}
    assert said(launch(Case(program, files), tmp_path, "python-mpi")) == [[0, []], [1, []]]
