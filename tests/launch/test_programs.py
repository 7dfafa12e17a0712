"""What programs do to the import system, and with it, has the effect that it has under plain Python, on each rank."""

import json
import py_compile
import re
import sys

import pytest
from cases import PRELUDE, Case, archive, bytecode, complaints, launch
from compared import said

CHECKED, UNCHECKED = py_compile.PycInvalidationMode.CHECKED_HASH, py_compile.PycInvalidationMode.UNCHECKED_HASH
TAG = sys.implementation.cache_tag

# An error of a finder or a path hook comes through our finder.
OUR_FRAMES = re.compile(r"  File [^ ]*/mpiimport/finder\.py[^ ]*, line \d+, in \w+\\n(    .*?\\n)*")

ATTEMPT = """
import traceback

def attempt(action, *arguments):
    try:
        say(getattr(action, "__name__", ""), *arguments, action(*arguments))
    except BaseException:
        say(traceback.format_exc())

def load(name):
    return importlib.import_module(name).VALUE

"""


def case(program, files):
    """Return a program that attempts things, and tells each rank's errors with their tracebacks."""
    return Case(program, files, prelude=PRELUDE + ATTEMPT)


EGG = {
    "EGG-INFO/PKG-INFO": "Metadata-Version: 1.1\nName: egg-one\nVersion: 1.5\n",
    "EGG-INFO/entry_points.txt": "[sample]\nname = egg_one.part:VALUE\n",
    "egg_one/__init__.py": "VALUE = __file__",
    "egg_one/part.py": "VALUE = __name__\ndef fail():\n    return 1 / 0\n",
    "egg_one/wrong.py": "x = = 1\n",
    "egg_one/data.txt": "of an egg",
    "spread/in_egg.py": "VALUE = __file__",
    "eggs_script.py": "VALUE = __name__",
}

CASES = {
    "archives": case(
        """
        import importlib.metadata, importlib.resources, inspect, pkgutil, runpy, site, zipimport

        site.addsitedir(os.path.abspath("installed"))
        say([os.path.relpath(entry) for entry in sys.path if "installed" in entry])
        for name in ("egg_one", "egg_one.part", "egg_two.part", "below_zip", "compiled", "spread.in_egg",
                     "spread.in_folder", "egg_one.wrong", "egg_one.missing", "egg_two.missing", "stub"):
            attempt(load, name)
        import egg_one.part, spread
        attempt(egg_one.part.fail)
        say(list(spread.__path__), type(egg_one.__loader__).__name__, egg_one.__spec__.origin, egg_one.part.__cached__)
        say(inspect.getsource(egg_one.part.fail), pkgutil.get_data("egg_one", "data.txt").decode())
        say(importlib.resources.files("egg_one").joinpath("data.txt").read_text())
        say([(one.name, one.ispkg) for one in pkgutil.walk_packages([entry for entry in sys.path if ".egg" in entry])])
        say(importlib.metadata.version("egg-one"), importlib.metadata.version("egg-two"),
            [one.load() for one in importlib.metadata.entry_points(group="sample")])
        say(runpy.run_module("eggs_script")["VALUE"], runpy.run_path("runs.zip")["VALUE"])
        say(sorted(type(value).__name__ for key, value in sys.path_importer_cache.items() if "installed" in key))

        if rank == 1:
            sys.path.insert(0, os.path.abspath("own.zip"))
        attempt(load, "owned")
        comm.Barrier()
        if rank == 0:
            os.replace("late.new", "late.zip")
        comm.Barrier()
        importlib.invalidate_caches()
        attempt(load, "late_one")
        sys.path.append(os.path.abspath("late.zip"))
        attempt(load, "late_one")
        """,
        {
            "installed/easy-install.pth": "./egg_one-1.5-py3.egg\n./egg_two-2.egg\n../libs.zip/below\n../libs.zip\n",
            "installed/egg_one-1.5-py3.egg": archive(EGG),
            "installed/egg_two-2.egg/EGG-INFO/PKG-INFO": "Metadata-Version: 1.1\nName: egg-two\nVersion: 2\n",
            "installed/egg_two-2.egg/egg_two/__init__.py": "from . import part",
            "installed/egg_two-2.egg/egg_two/part.py": "VALUE = __file__",
            "installed/egg_two-2.egg/stub.py": """
                def __bootstrap__():
                    global __bootstrap__, __loader__, __file__
                    import sys, os, importlib.util
                    __file__ = os.path.join(os.path.dirname(__file__), "stubbed.py")
                    __loader__ = None
                    del __bootstrap__, __loader__
                    spec = importlib.util.spec_from_file_location(__name__, __file__)
                    mod = importlib.util.module_from_spec(spec)
                    spec.loader.exec_module(mod)
                    sys.modules[__name__] = mod
                __bootstrap__()
            """,
            "installed/egg_two-2.egg/stubbed.py": "VALUE = __file__",
            "spread/in_folder.py": "VALUE = __file__",
            "libs.zip": archive({"below/below_zip.py": "VALUE = __file__", "compiled.pyc": bytecode("VALUE = 2")}),
            "runs.zip": archive({"__main__.py": "from beside import VALUE", "beside.py": "VALUE = __file__"}),
            "own.zip": archive({"owned.py": "VALUE = __file__"}),
            "late.zip": archive({"early.py": ""}),
            "late.new": archive({"late_one.py": "VALUE = __file__"}),
        },
    ),
    "bytecode": case(
        """
        import importlib.util

        def foreseen():
            import old_documented, old_checked, old_unchecked, old_stale, old_damaged, old_truncated

        for name in ("documented", "checked", "unchecked", "stale", "damaged", "truncated"):
            attempt(load, "old_" + name)
        for name in ("sourceless", "no_magic", "sourceless_fails"):
            attempt(load, name)
        say(sys.flags.optimize, sys.dont_write_bytecode, __debug__, importlib.util.cache_from_source("x.py"))
        import old_documented as documented
        attempt(documented.check)
        say(documented.__doc__, documented.check.__doc__, documented.__cached__)
        comm.Barrier()
        for folder in (".", sys.pycache_prefix or "nowhere"):
            say(sorted(os.path.join(where, file) for where, _, files in os.walk(folder) for file in files
                       if ".pyc" in file and "site-packages" not in where and "lib/" not in where))
        """,
        {
            "old_documented.py": "'''Text.'''\nVALUE = __debug__\ndef check():\n    'More.'\n    assert not 1, VALUE\n",
            "old_checked.py": "VALUE = 'source'",
            "__pycache__/old_checked.%s.pyc" % TAG: bytecode("VALUE = 'stale'", CHECKED),
            "old_unchecked.py": "VALUE = 'source'",
            "__pycache__/old_unchecked.%s.pyc" % TAG: bytecode("VALUE = 'bytecode'", UNCHECKED),
            "old_stale.py": "VALUE = 'source'",
            "__pycache__/old_stale.%s.pyc" % TAG: bytecode("VALUE = 'stale'"),
            "old_damaged.py": "VALUE = 'source'",
            "__pycache__/old_damaged.%s.pyc" % TAG: b"damaged",
            "old_truncated.py": "VALUE = 'source'",
            "__pycache__/old_truncated.%s.pyc" % TAG: bytecode("VALUE = 'bytecode'", UNCHECKED)[:30],
            "sourceless.pyc": bytecode("VALUE = __file__", UNCHECKED),
            "no_magic.pyc": b"\0" + bytecode("VALUE = 1"),
            "sourceless_fails.pyc": bytecode("def f():\n    1 / 0\nf()\n"),
        },
    ),
    "finders": case(
        """
        import builtins, importlib.abc, importlib.machinery, importlib.util, inspect, pkgutil
        from importlib.machinery import PathFinder

        class Wrapping:
            "Has modules that another finder finds loaded lazily, as Mercurial does."
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, *arguments):
                spec = self.finder.find_spec(*arguments)
                if spec is not None and spec.loader is not None and spec.name.startswith("lazily"):
                    spec.loader = importlib.util.LazyLoader(spec.loader)
                return spec

        ran = []
        kept = sys.meta_path[:]
        sys.meta_path[:] = [Wrapping(finder) for finder in sys.meta_path]
        import lazily_one, lazily_two, xml.sax
        from lazily_two import VALUE
        say("lazily_one" in ran, "lazily_two" in ran, [finder.find_spec("nosuch", None) for finder in sys.meta_path])
        if rank == 1:
            say(lazily_one.VALUE, ran)
        sys.meta_path[:] = kept

        class Changing(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname):
                return compile(b"CHANGED = 1\\n" + self.get_data(self.path), self.path, "exec", dont_inherit=True)

        class Instrumenting(importlib.abc.MetaPathFinder):
            "Finds the finder of sys.path by its name, and changes what it found, as typeguard and jaxtyping do."
            def __init__(self):
                self.original = next(finder for finder in sys.meta_path if inspect.isclass(finder)
                                     and finder.__name__ == "PathFinder" and hasattr(finder, "find_spec"))
            def find_spec(self, fullname, path=None, target=None):
                spec = self.original.find_spec(fullname, path, target) if fullname.startswith("checked") else None
                if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                    spec.loader = Changing(spec.loader.name, spec.loader.path)
                return spec

        sys.meta_path.insert(0, Instrumenting())
        import checked_one, checked_package.part, unchecked_one
        say([hasattr(module, "CHANGED") for module in (checked_one, checked_package, checked_package.part,
             unchecked_one)], checked_one.__file__, inspect.getsource(checked_one))
        attempt(load, "checked_fails")
        attempt(load, "checked_missing")
        del sys.meta_path[0]

        class Delegating:
            "Asks the finders after it, and tells of each module when it is loaded, as wrapt does."
            def find_spec(self, fullname, path=None, target=None):
                for finder in sys.meta_path[sys.meta_path.index(self) + 1:]:
                    spec = finder.find_spec(fullname, path, target)
                    if spec is not None:
                        break
                else:
                    return None
                if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                    execute = spec.loader.exec_module
                    def exec_module(module):
                        execute(module)
                        told.append(module.__name__)
                    spec.loader.exec_module = exec_module
                return spec

        told = []
        sys.meta_path.insert(0, Delegating())
        import told_one, told_package.part, colorsys, spread.one
        importlib.reload(told_one)
        say(told)
        del sys.meta_path[0]

        class Derived(PathFinder):
            @classmethod
            def find_spec(cls, fullname, path=None, target=None):
                return None if fullname == "derived_hidden" else super().find_spec(fullname, path, target)

        where = sys.meta_path.index(PathFinder)
        say(where, PathFinder in sys.meta_path, sys.meta_path.count(PathFinder), sys.meta_path[where] == PathFinder)
        kept = sys.meta_path[where]
        sys.meta_path[where] = Derived
        attempt(load, "derived_one")
        attempt(load, "derived_hidden")
        sys.meta_path[where] = kept
        attempt(load, "derived_hidden")

        def failing(entry):
            raise TypeError("of a hook, for " + os.path.basename(entry))
        sys.path_hooks.insert(0, failing)
        sys.path.append(os.path.abspath("new_entry"))
        attempt(load, "no_such_module")
        sys.path_hooks.remove(failing)
        sys.path.pop()

        class Failing:
            def find_spec(self, fullname, path=None, target=None):
                if fullname.startswith("failing"):
                    raise OSError("of a finder")
        sys.meta_path.insert(0, Failing())
        attempt(load, "failing_one")
        sys.meta_path[0] = object()
        attempt(load, "failing_two")
        del sys.meta_path[0]
        kept, sys.meta_path = sys.meta_path, []
        attempt(load, "from_nowhere")
        sys.meta_path = kept
        attempt(load, "from_nowhere")

        real = builtins.__import__
        def counting(name, *arguments, **keywords):
            counted.append(name)
            return real(name, *arguments, **keywords)
        counted = []
        builtins.__import__ = counting
        import by_import.part
        from by_import import other as renamed
        builtins.__import__ = real
        say([name for name in counted if name != "_io"], renamed.__name__, __import__("by_import.part").__name__)
        say(__import__("by_import.part", fromlist=[""]).__name__, importlib.util.resolve_name(".part", "by_import"))
        say(importlib.__import__("part", vars(by_import), level=1).__name__)
        say(importlib.import_module("..other", "by_import.part").__name__)
        attempt(importlib.import_module, ".part")
        attempt(importlib.import_module, "...part", "by_import")
        attempt(importlib.import_module, "")

        cached = sys.path_importer_cache.pop(os.getcwd(), None)
        say(type(cached).__name__, type(pkgutil.get_importer(os.getcwd())).__name__)
        sys.path_importer_cache[os.getcwd()] = None
        attempt(load, "cache_says_no")
        del sys.path_importer_cache[os.getcwd()]
        importlib.invalidate_caches()
        attempt(load, "cache_says_no")
        """,
        {
            **dict.fromkeys(("told_one.py", "derived_one.py", "derived_hidden.py", "from_nowhere.py"), "VALUE = 1"),
            **dict.fromkeys(("checked_one.py", "unchecked_one.py", "cache_says_no.py", "failing_one.py"), "VALUE = 1"),
            **{"told_package/%s.py" % name: "" for name in ("__init__", "part")},
            **{"checked_package/%s.py" % name: "" for name in ("__init__", "part")},
            **{"by_import/%s.py" % name: "" for name in ("__init__", "part", "other")},
            "spread/one.py": "",
            "lazily_one.py": "import __main__\n__main__.ran.append('lazily_one')\nVALUE = __file__",
            "lazily_two.py": "import __main__\n__main__.ran.append('lazily_two')\nVALUE = __file__",
            "checked_fails.py": "def f():\n    raise ValueError('there')\nf()\n",
        },
    ),
    "modules-that-change-themselves": case(
        """
        import pkgutil, types
        import replaced, classed
        from package_that_moves import moved
        import package_that_moves.moved as again, package_that_moves.inside

        say(replaced, replaced.anything, sys.modules["replaced"] is replaced)
        say(classed.answer, type(classed).__name__, classed.__spec__.name)
        say(moved.__name__, again is moved, package_that_moves.inside.__name__, sorted(package_that_moves.__path__))
        sys.modules["forbidden"] = None
        attempt(load, "forbidden")
        sys.modules["package_that_moves.hidden"] = None
        attempt(load, "package_that_moves.hidden")
        sys.modules["invented"] = types.SimpleNamespace(VALUE="invented")
        sys.modules["invented.below"] = types.SimpleNamespace(VALUE="below")
        attempt(load, "invented")
        attempt(load, "invented.below")
        attempt(load, "invented.missing")
        for name in ("removes_itself", "removes_itself", "no_package.part", "late_package.part", "without_spec",
                     "wrong_spec", "reloads_itself", "deletes_parent.part", "dynamic.part", "dynamic.made", "marks_os"):
            attempt(load, name)
        import dynamic
        say(dynamic.lazy_value, dynamic.__dir__(), hasattr(dynamic, "missing"))
        attempt(lambda: dynamic.missing)
        def missing_name():
            from dynamic import missing
        attempt(missing_name)
        def removed_parent():
            del sys.modules["dynamic"]
            import dynamic.other
            return dynamic.other.VALUE, dynamic is sys.modules["dynamic"]
        attempt(removed_parent)
        extended = pkgutil.extend_path([os.path.abspath("one/spread")], "spread")
        say(extended, pkgutil.resolve_name("dynamic.other:VALUE"))
        sys.path[:0] = [os.path.abspath("one"), os.path.abspath("two")]
        import spread.of_two, six.moves.urllib.parse
        say(spread.of_two.__file__, list(spread.__path__))
        from six.moves import configparser, urllib
        say(configparser.__name__, urllib.parse.quote(" "), six.moves.builtins.__name__)
        """,
        {
            "replaced.py": """
                import sys
                class Replacement:
                    def __getattr__(self, name):
                        return name.upper() if not name.startswith("__") else object.__getattribute__(self, name)
                    def __repr__(self):
                        return "the replacement"
                sys.modules[__name__] = Replacement()
            """,
            "classed.py": """
                import sys, types
                class Module(types.ModuleType):
                    @property
                    def answer(self):
                        return 42
                sys.modules[__name__].__class__ = Module
            """,
            "package_that_moves/__init__.py": """
                import os, sys
                __path__.insert(0, os.path.join(os.path.dirname(__file__), "elsewhere"))
                import colorsys
                sys.modules[__name__ + ".moved"] = moved = colorsys
            """,
            "package_that_moves/elsewhere/inside.py": "",
            "package_that_moves/inside.py": "1 / 0",
            "package_that_moves/hidden.py": "",
            "removes_itself.py": "import sys\ndel sys.modules[__name__]\nVALUE = 1",
            "no_package.py": "",
            "late_package.py": "import os\n__path__ = [os.path.abspath('one')]",
            "one/part.py": "VALUE = __name__",
            "without_spec.py": "del __spec__, __loader__, __package__\nVALUE = sorted(globals())",
            "wrong_spec.py": "__spec__ = None\n__path__ = 3\nVALUE = 1",
            "reloads_itself.py": "import importlib, sys\nVALUE = 1\nTIMES = globals().get('TIMES', 0) + 1\n"
            "if TIMES < 3:\n    importlib.reload(sys.modules[__name__])\nVALUE = TIMES",
            "deletes_parent/__init__.py": "",
            "deletes_parent/part.py": "import sys\ndel sys.modules['deletes_parent']\nVALUE = 1",
            "dynamic/__init__.py": """
                import importlib, sys, types
                def __getattr__(name):
                    if name == "lazy_value":
                        return importlib.import_module(".lazy", __name__).VALUE
                    raise AttributeError(f"no {name} here")
                def __dir__():
                    return ["lazy_value"]
                made = sys.modules[__name__ + ".made"] = types.ModuleType(__name__ + ".made")
                made.VALUE = "made"
            """,
            "dynamic/lazy.py": "VALUE = __name__",
            "dynamic/part.py": "from . import lazy_value as VALUE",
            "dynamic/other.py": "VALUE = 'other'",
            "marks_os.py": "import sys\nsys.modules['os.path'].marker = 1\nimport os.path\nVALUE = os.path.marker",
            "one/spread/__init__.py": "__path__ = __import__('pkgutil').extend_path(__path__, __name__)",
            "two/spread/__init__.py": "",
            "two/spread/of_two.py": "",
        },
    ),
    "tools": case(
        """
        import ast, compileall, cProfile, gc, modulefinder, pstats, pyclbr, trace, tracemalloc

        finder = modulefinder.ModuleFinder([os.getcwd()])
        finder.run_script("scanned.py")
        say(sorted((name, module.__file__) for name, module in finder.modules.items()), finder.any_missing_maybe())
        finder = modulefinder.ModuleFinder()
        finder.load_file("scanned.py")
        say(sorted((name, module.__file__ or "") for name, module in finder.modules.items() if "." not in name)[:60],
            sorted(finder.badmodules))
        say(sorted(pyclbr.readmodule_ex("package.part")), sorted(pyclbr.readmodule_ex("package")))

        profiled = cProfile.Profile()
        profiled.enable()
        import package.part, package.other
        package.part.function(3)
        profiled.disable()
        rows = pstats.Stats(profiled).stats.items()
        say(sorted([os.path.relpath(file), line, name, calls] for (file, line, name), (_, calls, *_) in rows
                   if file.startswith(os.getcwd()) and "program.py" not in file))
        tracer = trace.Trace(count=1, trace=0, ignoredirs=[sys.prefix, sys.base_prefix])
        tracer.runfunc(load, "traced")
        counts = tracer.results().counts
        say(sorted((os.path.relpath(file), line, count) for (file, line), count in counts.items()
                   if file.startswith(os.getcwd()) and "program.py" not in file))
        lines = []
        def local(frame, event, argument):
            lines.append((os.path.relpath(frame.f_code.co_filename), frame.f_lineno, event))
            return local
        def begin(frame, event, argument):
            return local if frame.f_code.co_filename.endswith("settraced.py") else None
        sys.settrace(begin)
        import settraced
        sys.settrace(None)
        say(lines)
        tracemalloc.start()
        import allocating
        found = tracemalloc.get_object_traceback(allocating.VALUE)
        say(os.path.relpath(found[0].filename), found[0].lineno)
        tracemalloc.stop()

        audited = []
        def hook(event, arguments):
            if event == "import" and watching:
                audited.append(arguments[0])
        watching = True
        sys.addaudithook(hook)
        import audited_one, audited_package.part
        attempt(load, "audited_missing")
        attempt(load, "audi" + "ted_computed")
        watching = False
        say(audited)

        if rank == 0:
            say(compileall.compile_dir("package", quiet=1, force=True))
        comm.Barrier()
        say(ast.dump(ast.parse(package.part.__loader__.get_source("package.part")))[:80])
        say(package.part.function.__code__.co_filename, package.part.function.__code__.co_linetable.hex()
            if hasattr(package.part.function.__code__, "co_linetable") else "")
        say(len([one for one in gc.get_objects() if type(one) is type(sys) and one.__name__ == "package.part"]))
        """,
        {
            "scanned.py": "import package.part, csv, nosuch\nfrom package import *\nfrom package.other import x\n",
            "package/__init__.py": "__all__ = ['part']\ndef of_package(): pass\n",
            "package/part.py": """
                class Class:
                    def method(self): pass
                def function(n):
                    return function(n - 1) if n else inner()
                def inner():
                    import colorsys
                    return colorsys.rgb_to_hsv(0, 0, 0)
            """,
            "package/other.py": "x = 1",
            "traced.py": "def f(x):\n    if x:\n        return f(x - 1)\n    return 0\n\nVALUE = f(2)\n",
            "settraced.py": "x = 1\n\ndef f():\n    yield x\n\nlist(f())\n",
            "allocating.py": "\n\nVALUE = object()\n",
            "audited_one.py": "import wave",
            "audited_computed.py": "VALUE = 1",
            "audited_package/__init__.py": "",
            "audited_package/part.py": "",
        },
    ),
    "late": case(
        """
        import atexit, threading, weakref

        class Last:
            def __init__(self, name):
                self.name = name
            def __del__(self):
                try:
                    say(self.name, load("lately." + self.name))
                except BaseException as cause:
                    say(self.name, type(cause).__name__, str(cause))

        class Silent:
            def __del__(self):
                import lately.never_there

        def waits():
            threading.main_thread().join()
            say("thread", load("lately.by_thread"), load("com" + "puted"))

        def daemon():
            load("lately.by_daemon")
            imported.set()
            time.sleep(30)

        kept = [Last("by_global"), Silent()]
        kept.append(kept)
        sys.kept = Last("by_sys")
        importlib.kept = Last("by_module")
        weakref.finalize(kept[0].__class__, lambda: say("finalize", load("lately.by_finalize")))
        atexit.register(lambda: say("atexit", load("lately.by_atexit"), MPI.Is_finalized()))
        threading.Thread(target=waits).start()
        imported = threading.Event()
        threading.Thread(target=daemon, daemon=True).start()
        imported.wait()  # CPython may crash where a daemon thread imports while the interpreter ends
        """,
        {
            "computed.py": "VALUE = 1",
            "lately/__init__.py": "",
            **{
                "lately/by_%s.py" % name: "VALUE = __name__"
                for name in ("global", "sys", "module", "finalize", "atexit", "thread", "daemon")
            },
        },
    ),
}

VARIANTS = [
    *[(name, (), {}) for name in CASES],
    ("bytecode", ("-O",), {}),
    ("bytecode", ("-OO",), {"PYTHONPYCACHEPREFIX": "elsewhere"}),
    ("bytecode", ("--check-hash-based-pycs", "always"), {"PYTHONDONTWRITEBYTECODE": "1"}),
    ("bytecode", ("--check-hash-based-pycs", "never", "-B"), {}),
]


@pytest.mark.parametrize(("name", "options", "env"), VARIANTS, ids=str)
def test_a_program_cannot_tell_in_a_first_run_or_a_second(tmp_path, name, options, env):
    folder = tmp_path / "work"
    plain = launch(CASES[name], folder, "python", *options, env=env)
    for _ in range(2):
        profile = {"MPIIMPORT_PROFILE": str(tmp_path / "profile")}
        ours = launch(CASES[name], folder, "python-mpi", *options, env={**env, **profile})
        assert [json.loads(OUR_FRAMES.sub("", json.dumps(line))) for line in said(ours)] == said(plain)
        assert complaints(ours.stderr) == complaints(plain.stderr)
    assert (tmp_path / "profile").exists()
