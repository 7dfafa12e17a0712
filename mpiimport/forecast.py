"""The forecast of a first run: the root follows import statements through the bytecode and executes nothing."""

import _imp
import posix
import sys
from _frozen_importlib import BuiltinImporter
from time import perf_counter

from mpiimport import answers, scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from mpiimport.answers import Answer
    from mpiimport.opening import Opening


class Forecast:
    """Adds to an opening what code may import, and what that may import in turn.

    Import statements inside functions count. One is left out: where an installed package imports another one inside a
    function, it can do without it. For numpy and scipy that is half of all code, and not one module that is used.
    Other ranks wait meanwhile, so it stops after `limit_s` seconds; what it did not come to is missed.
    """

    def __init__(self, opening: "Opening", limit_s: float) -> None:
        self.opening = opening
        self.began = perf_counter()
        self.limit_s = limit_s
        self.stopped = False
        self.visited: dict[str, Answer | None] = {}
        self.waiting: list[tuple[str, str]] = []
        self.roots: set[str] = set()
        self.executed: dict[str, list[str]] = {}
        self.standard = standard_names()

    def follow_code(self, code: "CodeType", package: str, fullname: str = "", *, installed: bool = False) -> None:
        """Take note of the import statements of module `fullname`, whose code runs inside `package` ("" for none)."""
        executed = self.executed.setdefault(fullname, [])
        own = fullname.partition(".")[0]
        for name, fromlist, level, nested in scan.imports_of(code):
            base = name
            if level:
                parent = package
                for _ in range(level - 1):
                    parent = parent.rpartition(".")[0]
                base = parent + "." + name if name and parent else parent or name
            if not base:
                continue
            if nested and installed:
                top = base.partition(".")[0]
                if top != own and top not in self.standard:
                    continue
            names = [base + "." + attribute for attribute in fromlist or () if attribute != "*"]
            if not nested:
                executed.append(base)
                executed += names
            self.waiting.append((base, ""))
            self.waiting += [(base, attribute) for attribute in fromlist or () if attribute != "*"]

    def follow_name(self, fullname: str) -> "Answer | None":
        """Foresee the import of a module and of the packages it is in. Return its answer, or None if it has none."""
        if fullname in self.visited:
            return self.visited[fullname]
        parent, _, name = fullname.rpartition(".")
        self.visited[fullname] = None
        path = None
        if parent:
            above = self.follow_name(parent)
            path = getattr(sys.modules.get(parent), "__path__", None) or (above.locations if above else None)
            if path is None:
                return None
            path = list(path)
        elif BuiltinImporter.find_spec(fullname):
            return None
        if _imp.is_frozen(fullname):
            if fullname not in sys.modules:
                package = fullname if _imp.is_frozen_package(fullname) else parent
                self.follow_code(_imp.get_frozen_object(fullname), package, fullname, installed=True)
            return None
        for folder in answers.searched(path):
            stems = self.opening.list_folder(folder)
            if stems is None or name in stems:
                break
        else:
            return None  # the opening's listings say so
        self.stopped = self.stopped or perf_counter() - self.began > self.limit_s
        if self.stopped:
            return None
        answer, code = answers.ask(fullname, path, self.opening.stable, writes_bytecode=True)
        self.visited[fullname] = answer
        self.opening.add(fullname, answer)
        if code is not None:
            package = fullname if answer.locations is not None else parent
            installed = bool(answer.origin and answer.origin.startswith(self.opening.stable))
            self.follow_code(code, package, fullname, installed=installed)
        return answer

    def follow_root(self, fullname: str) -> bool:
        """Foresee the import of a module that is asked for by name. Return whether it exists."""
        self.roots.add(fullname)
        answer = self.follow_name(fullname)
        if answer is None:
            return fullname in sys.modules or bool(BuiltinImporter.find_spec(fullname)) or _imp.is_frozen(fullname)
        return answer.kind != answers.MISSING

    def finish(self) -> None:
        """Follow all that was taken note of. In `from package import name`, `name` may be a module of the package."""
        while self.waiting and not self.stopped:
            base, attribute = self.waiting.pop()
            above = self.follow_name(base)
            if attribute and above is not None and above.locations is not None:
                self.follow_name(base + "." + attribute)

    def certain(self) -> "list[str]":
        """List the extension modules that are imported whenever the program is: not from inside functions."""
        extensions = []
        seen = {""}
        pending = ["", *self.roots]
        while pending:
            fullname = pending.pop()
            found = self.visited.get(fullname)
            if found is not None and found.kind == answers.EXTENSION and found.origin is not None:
                extensions.append(found.origin)
            parent = fullname.rpartition(".")[0]
            for name in (parent, *self.executed.get(fullname, ())):
                if name not in seen:
                    seen.add(name)
                    pending.append(name)
        return extensions


def standard_names() -> "frozenset[str]":
    """Return the top-level names of the standard library."""
    if sys.version_info >= (3, 10):
        return sys.stdlib_module_names
    folders = [entry for entry in sys.path if entry.endswith(("/python3.9", "/python3.9/lib-dynload"))]
    return frozenset(name.partition(".")[0] for folder in folders for name in posix.listdir(folder))
