"""Programs drawn at random: a tree of modules with most of what modules do to each other, and what ranks do with it.

A program is drawn from its number alone. Its steps are functions with import statements of their own; each rank takes
some of them, in an order of its own. `RECORDER` is the module that runs them, and writes down what came of each.
"""

import json
import random

RANKS = 4
STANDARD = ("colorsys", "wave", "xml.dom.pulldom", "json.tool", "concurrent.futures.thread", "_lsprof")
ROOTS = ("run", "lib", "extra", "relative")
"""Where modules are: beside the program, on PYTHONPATH, and what steps put into `sys.path`, one of them relative."""

RECORDER = '''\
"""Runs drawn steps and writes down what came of them."""

import importlib
import json
import os
import re
import sys
import threading
import traceback
from types import ModuleType

from mpi4py import MPI

RANK = MPI.COMM_WORLD.rank
BASE = os.getcwd()
runs = {}
events = []
numbers = {}


def ran(name):
    """Note that a module is executed. Return how often it was."""
    runs[name] = runs.get(name, 0) + 1
    events.append("%s ran %d" % (name, runs[name]))
    if runs[name] > 9:  # one that deletes itself and is in a circle would go on until the stack is full
        raise RuntimeError("it ran too often")
    return runs[name]


def note(value):
    """Note what a module has come by."""
    events.append(shown(value))


def shown(value):
    if isinstance(value, ModuleType):
        number, _ = numbers.setdefault(id(value), (len(numbers), value))
        return [number, value.__name__, getattr(value, "__dict__", {}).get("VALUE")]
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    if isinstance(value, importlib.machinery.ModuleSpec):
        loader = [kind.__name__ for kind in type(value.loader).__mro__ if kind.__module__.startswith(("_froz", "imp"))]
        locations = shown(value.submodule_search_locations)
        return [value.name, value.origin, value.cached, value.has_location, value.parent, locations, loader]
    if type(value).__name__ == "_NamespacePath":
        try:
            return list(value)
        except (AttributeError, KeyError) as cause:  # the parent is no module any more
            return repr(cause)
    return re.sub("0x[0-9a-f]+", "0x", repr(value))


def failure(cause):
    """What is to be the same of an exception."""
    said = [type(cause).__name__, str(cause), getattr(cause, "name", None), getattr(cause, "path", None)]
    lines = traceback.format_exception(type(cause), cause, cause.__traceback__)
    if not any(", in find_spec\\n" in line for line in lines):  # or they show which finder it was
        said += lines
    return [re.sub("0x[0-9a-f]+", "0x", str(one)) for one in said]


def forms(module):
    """Everything that is to be the same of a module."""
    known = vars(module)
    names = ("__name__", "__file__", "__package__", "__cached__", "__doc__")
    loader, spec = known.get("__loader__"), known.get("__spec__")
    return [
        shown(module),
        [shown(known.get(name)) for name in names],
        shown(known.get("__path__")),
        shown(spec),
        spec is not None and loader is spec.loader,
        sorted(known),
    ]


def write(name):
    """Write a module that only this rank sees, and sees first."""
    own = "%s/own-%d" % (BASE, RANK)
    file = "%s/%s.py" % (own, name.replace(".", "/"))
    os.makedirs(os.path.dirname(file), exist_ok=True)
    runs[file] = runs.get(file, 0) + 1
    with open(file, "w") as written:
        written.write("VALUE = %r\\n" % ("of rank %d, written %s" % (RANK, runs[file] * "again ")))
    sys.path.insert(0, own)
    importlib.invalidate_caches()


def own(prefix):
    """The name of the module that only this rank changes."""
    return "%sown%d" % (prefix, RANK)


def rewrite(prefix):
    """Change this rank's own module in place."""
    file = "%s/run/%s.py" % (BASE, own(prefix))
    runs[file] = runs.get(file, 0) + 1
    with open(file, "w") as written:
        written.write("from recorder import ran\\nran(__name__)\\nVALUE = 'written %s'\\n" % (runs[file] * "again "))


def in_threads(*jobs):
    """Run each job in a thread of its own."""
    found = [None] * len(jobs)
    before = len(events)

    def work(number):
        try:
            found[number] = jobs[number]()
        except BaseException as cause:
            found[number] = repr(cause)

    threads = [threading.Thread(target=work, args=[number]) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events[before:] = sorted(events[before:])
    for one in sorted({module.__name__: module for each in found for module in each}.items()):
        shown(one[1])  # numbers them in an order that does not depend on the threads
    return found


def run(prefix, steps, order, *, has_threads):
    """Take some steps in this order. Return what came of each, and of every module whose name begins so."""
    path = list(sys.path)
    said = []
    for step in order:
        del events[:]
        try:
            outcome = shown(steps[step]())
        except BaseException as cause:
            outcome = failure(cause)
        said.append([step, outcome, list(events)])
    names = [name for name in sys.modules if name.startswith(prefix)]
    if has_threads:
        names.sort()
    values = [sys.modules[name] for name in names]
    said.append([[name, forms(one) if isinstance(one, ModuleType) else repr(one)] for name, one in zip(names, values)])
    said.append(list(sys.path))
    for name in names:
        del sys.modules[name]
    sys.path[:] = path
    return said
'''

PROGRAM = """\
import json, sys
import recorder
%(imports)s

said = {}
for module in (%(modules)s):
    if %(barriers)r:
        recorder.MPI.COMM_WORLD.barrier()
    said[module.PREFIX] = recorder.run(
        module.PREFIX, module.STEPS, module.ORDERS[recorder.RANK], has_threads=module.HAS_THREADS
    )
with open(sys.argv[1] + "/%%d.json" %% recorder.RANK, "w") as file:
    json.dump(said, file)
"""

FAILURES = (
    "raise ImportError('drawn')",
    "raise ImportError('drawn', name='a name', path='a path')",
    "raise ModuleNotFoundError('drawn', name=__name__)",
    "raise ValueError(__name__)",
    "raise SystemExit(3)",
    "class Own(BaseException): pass\nraise Own('drawn')",
    "raise KeyError from ImportError('cause')",
    "{}['missing']",
    "undefined_name",
    "VALUE.missing",
)
UNREADABLE = (
    b"x = 1\ny = = 2\n",
    b"def f(:\n",
    b"x = 1\n\0y = 2\n",
    b"# -*- coding: no-such-codec -*-\nx = 1\n",
    b"x = '\xff'\n",
    b"if True:\nx = 1\n",
    b"return 1\n",
    b"VALUE = 1\nVALUE is 1\n'\\d'\n",
)


class Drawn:
    """One program: `files` by path, and the source of its steps."""

    def __init__(self, number, *, writes):
        self.writes = writes
        self.random = random.Random("program %d" % number)
        self.prefix = "t%d_" % number
        self.files = {}
        self.packages = []
        self.names = []
        self.safe = []
        self.draw_tree()
        self.files["run/%ssteps.py" % self.prefix] = self.draw_steps()

    def chance(self, share):
        return self.random.random() < share

    def pick(self, *choices):
        return self.random.choice(choices)

    # The tree

    def draw_tree(self):
        self.packages = [""]
        plan = []
        for number in range(self.random.randint(4, 11)):
            parent = self.random.choice(self.packages) if self.chance(0.7) else ""
            fullname = "%s.%s" % (parent, self.part(number)) if parent else self.prefix + self.part(number)
            is_package = self.chance(0.4)
            if is_package and fullname.count(".") < 3:
                self.packages.append(fullname)
            plan.append((fullname, is_package))
            self.names.append(fullname)
        self.safe = [self.prefix + "safe" + letter for letter in "ab"]
        self.safe += [self.prefix + "box", self.prefix + "box.x", self.prefix + "box.y"]
        for fullname, is_package in plan:
            for root in self.random.sample(ROOTS, self.pick(1, 1, 1, 2, 3)):
                self.add(root, fullname, is_package=is_package != self.chance(0.05))
        text = "from recorder import ran\nran(__name__)\nVALUE = __name__\n"
        self.files["run/%ssafea.py" % self.prefix] = text + "import %sbox\n" % self.prefix
        self.files["lib/%ssafeb.py" % self.prefix] = text + "from %sbox import y\nimport wave\n" % self.prefix
        for rank in range(RANKS):
            self.files["run/%sown%d.py" % (self.prefix, rank)] = text
        for part in ("__init__", "x", "y"):
            self.files["%s/%sbox/%s.py" % ("run", self.prefix, part)] = text

    def part(self, number):
        return self.pick("m%d", "m%d", "n\u00e4me%d") % number

    def add(self, root, fullname, *, is_package):
        place = "%s/%s" % (root, fullname.replace(".", "/"))
        if not is_package:
            kind = self.random.random()
            if kind < 0.04:
                self.files[place + ".abi3.so"] = b"no ELF"
            elif kind < 0.07:
                self.files[place + ".py/inside.py"] = ""  # a folder
            elif kind < 0.10:
                self.files[place + ".pyc"] = b"no bytecode"
            else:
                self.files[place + ".py"] = self.body(root, fullname, fullname.rpartition(".")[0])
        elif self.chance(0.35):
            self.files[place + "/data.txt"] = "namespace"
        else:
            self.files[place + "/__init__.py"] = self.body(root, fullname, fullname)
            if self.chance(0.5):
                self.files[place + "/data.txt"] = "data of " + place

    def body(self, root, fullname, package):
        if self.chance(0.07):
            return self.random.choice(UNREADABLE)
        lines = ["import importlib, sys, time", "from recorder import BASE, RANK, note, ran", "count = ran(__name__)"]
        lines += ["VALUE = %r" % (root + ":" + fullname)]
        for _ in range(self.random.randint(0, 4)):
            lines += self.statement(package, is_package=package == fullname)
        return "\n".join([("'''Drawn.'''\n" if self.chance(0.3) else "") + lines[0], *lines[1:], ""])

    def statement(self, package, *, is_package):
        kind = self.random.random()
        if kind < 0.62:
            lines = self.import_statement(package)
        elif kind < 0.70:
            lines = self.random.choice(FAILURES).split("\n")
            if self.chance(0.5):
                lines = guarded("if count < %d:" % self.pick(2, 2, 3), lines)
        elif kind < 0.74:
            lines = ["def __getattr__(name):", "    note('asked for ' + name)"]
            lines += ["    if name[:2] == '__': raise AttributeError(name)"]
            lines += ["    return importlib.import_module('%s.' + name)" % (package or self.prefix + "m0")]
        elif kind < 0.77:
            lines = ["sys.modules[__name__] = %s" % self.pick("importlib", "None", "type(sys)('made')", "'a string'")]
        elif kind < 0.80:
            lines = ["del sys.modules[__name__]"]
        elif kind < 0.83:
            lines = [self.path_change()]
        elif kind < 0.87 and is_package:
            lines = ["__path__.append(BASE + '/%s/%s')" % (self.pick(*ROOTS), self.any_name().replace(".", "/"))]
        elif kind < 0.90:
            lines = ["__all__ = ['VALUE', %r]" % self.any_name().rpartition(".")[2]]
        elif kind < 0.95:
            lines = ["time.sleep(%.4f)" % (self.random.random() / 300)]
        else:
            lines = ["%s = 5" % self.any_name().rpartition(".")[2]]
        if self.chance(0.12):
            lines = guarded("if RANK %% 2 == %d:" % self.pick(0, 1), lines)
        return lines

    def any_name(self):
        if self.chance(0.1):
            return self.random.choice(STANDARD)
        if self.chance(0.1):
            return self.pick(self.prefix + "none", *[one + ".none" for one in self.packages if one])
        return self.random.choice(self.names)

    def import_statement(self, package=""):
        """Some import, for a module that is inside this package."""
        name = self.any_name()
        parent, _, last = name.rpartition(".")
        below = [one.rpartition(".")[2] for one in self.names if one.rpartition(".")[0] == name] or ["none"]
        chosen = self.random.choice(below)
        forms = [
            "import %s\nfound = sys.modules[%r]" % (name, name),
            "import %s as found" % name,
            "from %s import VALUE as found" % name,
            "from %s import %s as found" % (name, chosen),
            "found = importlib.import_module(%r)" % name,
            "found = __import__(%r, fromlist=[%r])" % (name, chosen),
            "found = __import__(%r)" % name,
        ]
        if parent:
            forms += ["from %s import %s as found" % (parent, last), "import %s\nfound = %s" % (parent, name)]
        if package:
            forms += [
                "from . import %s as found" % last,
                "from .%s import VALUE as found" % last,
                "from .. import %s as found" % last,
                "from .%s import *\nfound = VALUE" % last,
                "found = importlib.import_module('.%s', __package__)" % last,
            ]
        lines = ["time.sleep(0.001)"] if self.chance(0.05) else []
        lines += [*self.random.choice(forms).split("\n"), "note(found)"]
        kind = self.random.random()
        if kind < 0.25:
            handler = self.pick("ImportError", "Exception", "(ImportError, AttributeError)", "BaseException")
            other = ["note(repr(cause))"]
            if self.chance(0.4):
                other = ["import %s as found" % self.any_name()]
            lines = [*guarded("try:", lines), *guarded("except %s as cause:" % handler, other)]
        elif kind < 0.35:
            lines = [*guarded("def later():", lines), *(["later()"] if self.chance(0.6) else [])]
        return lines

    def path_change(self):
        entry = self.pick("BASE + '/extra'", "'relative'", "BASE + '/lib'", "BASE + '/absent'")
        return self.pick(
            "sys.path.insert(0, %s)" % entry,
            "sys.path.append(%s)" % entry,
            "sys.path[:] = [one for one in sys.path if one != %s]" % entry,
        )

    # The steps

    def draw_steps(self):
        count = self.random.randint(4, 14)
        steps = [self.step() for _ in range(count)]
        has_threads = any("in_threads" in line for lines in steps for line in lines)
        lines = ["import importlib, importlib.util, pkgutil, sys, time"]
        lines += ["from recorder import BASE, RANK, in_threads, note, own, rewrite, write"]
        lines += ["def foresee(): import %s" % ", ".join("%sown%d" % (self.prefix, rank) for rank in range(RANKS))]
        for number, step in enumerate(steps):
            lines += [*guarded("def step_%d():" % number, step), ""]
        orders = [self.order(count) for _ in range(RANKS)]
        if self.chance(0.3):
            orders = [orders[0]] * RANKS
        lines += ["PREFIX = %r" % self.prefix, "HAS_THREADS = %r" % has_threads, "ORDERS = %r" % orders]
        return "\n".join([*lines, "STEPS = [%s]" % ", ".join("step_%d" % number for number in range(count)), ""])

    def order(self, count):
        order = list(range(count))
        if self.chance(0.6):
            self.random.shuffle(order)
        return order[: self.random.randint(1, count)] if self.chance(0.3) else order

    def step(self):
        name = self.any_name()
        if self.writes and self.chance(0.3):
            mine = "importlib.import_module(own(PREFIX))"
            changes = ["write(%r)" % self.random.choice(self.names), "rewrite(PREFIX)", "rewrite(PREFIX)"]
            uses = ["return " + mine, "return importlib.reload(%s)" % mine, "sys.modules.pop(own(PREFIX), None)"]
            return [self.pick(*changes, *uses)]
        kind = self.random.random()
        if kind < 0.50:
            return [*self.import_statement(), "return locals().get('found')"]
        if kind < 0.58:
            return ["return importlib.util.find_spec(%r)" % name]
        if kind < 0.66:
            return ["return sys.modules.pop(%r).__name__" % name]
        if kind < 0.72:
            gone = "[one for one in sys.modules if (one + '.').startswith('%s.')]" % name
            return ["for name in %s:" % gone, "    del sys.modules[name]"] if name not in STANDARD else ["pass"]
        if kind < 0.79:
            return ["return importlib.reload(sys.modules[%r])" % name]
        if kind < 0.85:
            return [self.path_change()]
        if kind < 0.91:
            jobs = [self.random.sample(self.safe, self.random.randint(1, 4)) for _ in range(self.random.randint(2, 4))]
            return [
                "return in_threads(*[lambda names=names: [importlib.import_module(one) for one in names]"
                " for names in %r])" % jobs
            ]
        if kind < 0.93:
            return ["sys.modules[%r] = None" % name] if name not in STANDARD else ["sys.path_importer_cache.clear()"]
        if kind < 0.96:
            return [
                "import %s as found" % name,
                "return sorted(one[1:] for one in pkgutil.iter_modules(found.__path__))",
            ]
        if kind < 0.98:
            get = "return pkgutil.get_data(%r, 'data.txt')" % name  # whose functions are wrapped: no traceback of it
            return [*guarded("try:", [get]), *guarded("except OSError as cause:", ["return cause"])]
        return ["time.sleep(%.4f)" % (self.random.random() / 200)]


def guarded(head, lines):
    """Return lines inside a statement with this head."""
    return [head, *("    " + line for line in lines)]


def write(folder, numbers, *, barriers, writes):
    """Write these programs, and the one that runs them all, below a folder; with `writes`, ranks write modules, too."""
    drawn = [Drawn(number, writes=writes) for number in numbers]
    modules = [one.prefix + "steps" for one in drawn]
    files = {name: content for one in drawn for name, content in one.files.items()}
    files["run/recorder.py"] = RECORDER
    imports = "\n".join("import " + name for name in modules)
    files["run/program.py"] = PROGRAM % {"imports": imports, "modules": ", ".join([*modules, ""]), "barriers": barriers}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def said(folder, ranks):
    """Return what each rank wrote down, by program."""
    return [json.loads((folder / ("%d.json" % rank)).read_text()) for rank in range(ranks)]
