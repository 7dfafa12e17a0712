"""The forecast: the root finds what the program is expected to ask, by the profile of an earlier run or by a scan.

The scan follows import statements through the bytecode and executes nothing. What is found is found and read by many
threads in the core, where it is ordinary, and by the real machinery of `importlib` otherwise.
"""

import _imp
import marshal
import posix
import sys
from _frozen_importlib import BuiltinImporter
from _frozen_importlib_external import (
    MAGIC_NUMBER,
    FileFinder,
    cache_from_source,
)
from time import perf_counter

from mpiimport import _core, answers, scan
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import CodeType
    from typing import Any

    from mpiimport.opening import Opening, Question


class Forecast:
    """Adds to an opening what a program may ask.

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
        self.waiting: list[str] = []
        self.roots: set[str] = set()
        self.executed: dict[str, list[str]] = {}
        self.standard = standard_names()
        self.sure: list[str] = []
        self.missing: list[tuple[str, Answer]] = []
        self.hooks = foreign_hooks()
        self.looked_at: set[str] = set()
        self.out_of_reach: set[str] = set()
        self.states: dict[Question, tuple[int, int] | None] = {}
        try:
            suffix = cache_from_source("/m.py").rpartition("/m")[2]
        except NotImplementedError:  # `sys.implementation.cache_tag` is None: there is no bytecode
            suffix, self.hooks = "", None
        self.modules = _core.Modules(_imp.extension_suffixes(), MAGIC_NUMBER, suffix, sys.pycache_prefix)

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
            names = [base, *(base + "." + attribute for attribute in fromlist or () if attribute != "*")]
            if not nested:
                executed += names
            for one in names:
                self.follow_name(one)

    def follow_name(self, fullname: str) -> None:
        """Foresee the import of a module and of the packages it is in."""
        if fullname and fullname not in self.visited:
            parent = fullname.rpartition(".")[0]
            if parent:
                self.follow_name(parent)
            self.visited[fullname] = None
            self.waiting.append(fullname)

    def follow_roots(self, fullnames: "Iterable[str]") -> None:
        """Foresee the import of modules that are asked for by name."""
        for fullname in fullnames:
            self.roots.add(fullname)
            self.follow_name(fullname)

    def follow_questions(self, questions: "Iterable[Question]") -> None:
        """Foresee just these questions."""
        asked = list(questions)
        for question, (answer, _) in zip(asked, self.find(asked)):
            if answer is not None:
                self.add(question[1], answer)
                if answer.kind == answers.EXTENSION and answer.origin is not None:
                    self.sure.append(answer.origin)

    def finish(self) -> None:
        """Follow all that was taken note of, and complete the opening."""
        while self.waiting and not self.is_late():
            self.follow_waiting()
        for folder, (modified_ns, stems) in self.modules.folders().items():
            self.opening.listings[folder] = stems
            if not (folder + "/").startswith(self.opening.stable):
                self.opening.changing[folder] = modified_ns
        for fullname, answer in self.missing:  # most are not in the listings: those say it
            listed = [self.opening.listings.get(folder) for folder in answer.path]
            if any(one is None or last_part(fullname) in one for one in listed):
                self.opening.add(fullname, answer)
        stable, changing = self.opening.stable, self.opening.changing.get
        for question, found in self.opening.answers.items():
            if question in self.states:
                state = self.states[question]
                found.witnesses = answers.witnesses(found.path, found.origin, stable, found.locations, changing, state)

    def add(self, fullname: str, answer: Answer) -> None:
        """Add an answer to the opening."""
        if answer.kind == answers.MISSING:
            self.missing.append((fullname, answer))
        else:
            self.opening.add(fullname, answer)

    def follow_waiting(self) -> None:
        """Find what is waiting and can be found: a module after the package that it is in."""
        waiting, self.waiting = self.waiting, []
        unanswered = set(waiting)
        questions = []
        for fullname in waiting:
            parent = fullname.rpartition(".")[0]
            if parent in unanswered:
                self.waiting.append(fullname)
                continue
            if not parent and BuiltinImporter.find_spec(fullname):
                continue
            if _imp.is_frozen(fullname):
                if fullname not in sys.modules:
                    package = fullname if _imp.is_frozen_package(fullname) else parent
                    self.follow_code(_imp.get_frozen_object(fullname), package, fullname, installed=True)
                continue
            path = self.path_of(parent)
            if path is not None:
                questions.append((tuple(answers.searched(path)), fullname))
        for (_, fullname), (answer, code) in zip(questions, self.find(questions)):
            self.visited[fullname] = answer
            if answer is None:
                continue
            self.add(fullname, answer)
            if code is None and answer.code is not None:
                try:
                    code = marshal.loads(_core.decompress(bytes(answer.code)))
                except (EOFError, ValueError, TypeError):
                    self.opening.add(fullname, Answer(answer.path, answers.LOCAL))  # who imports it meets the error
            if code is not None and not self.is_late():
                package = fullname if answer.locations is not None else fullname.rpartition(".")[0]
                installed = bool(answer.origin and answer.origin.startswith(self.opening.stable))
                self.follow_code(code, package, fullname, installed=installed)

    def path_of(self, parent: str) -> "list[str] | None":
        """Return the path on which the modules of a package are searched, `sys.path` for "", None if it is none."""
        if not parent:
            return sys.path
        path = getattr(sys.modules.get(parent), "__path__", None)
        above = self.visited.get(parent)
        found = path or (above.locations if above is not None else None)
        return None if found is None else list(found)

    def find(self, questions: "list[Question]") -> "list[tuple[Answer | None, CodeType | None]]":
        """Return (answer, code object if there is one already) of each question; (None, None) after the time limit."""
        grouped: dict[tuple[str, ...], list[str]] = {}
        for folders, fullname in questions:
            if self.is_ordinary(folders):
                grouped.setdefault(folders, []).append(fullname)
        asked = [(folders, fullname) for folders, names in grouped.items() for fullname in names]
        without_finder = [entry for entry, finder in sys.path_importer_cache.items() if finder is None]
        self.modules.list(without_finder)
        groups = [
            ([folder for folder in folders if folder not in without_finder], [last_part(name) for name in names])
            for folders, names in grouped.items()
        ]
        answered_here, all_code = self.modules.find(groups)
        found = dict(zip(asked, answered_here))
        view = memoryview(all_code)
        answered: list[tuple[Answer | None, CodeType | None]] = []
        self.note_out_of_reach(without_finder)
        for folders, fullname in questions:
            fields = found.get((folders, fullname))
            if self.out_of_reach.intersection(folders):
                answered.append((Answer(list(folders), answers.LOCAL), None))
            elif fields is not None:
                kind, origin, locations, place, state = fields
                code = None if place is None else view[place[0] : place[1]]
                self.states[folders, fullname] = state
                answered.append((Answer(list(folders), kind, origin, locations, code), None))
            elif self.is_late():
                answered.append((None, None))
            else:
                answered.append(answers.ask(fullname, list(folders), self.opening.stable, writes_bytecode=True))
        return answered

    def note_out_of_reach(self, without_finder: "list[str]") -> None:
        """Find out which entries of `sys.path` have no finder only because this host cannot reach them."""
        for folder in set(without_finder) - self.looked_at:
            self.looked_at.add(folder)
            try:
                posix.stat(folder)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            except OSError:
                self.out_of_reach.add(folder)

    def is_ordinary(self, folders: "tuple[str, ...]") -> bool:
        """Whether `importlib`'s own finder for folders is asked in each of these, by all that is known without I/O."""
        if self.hooks is None:
            return False
        for folder in folders:
            if type(sys.path_importer_cache.get(folder)) not in (type(None), FileFinder):
                return False
            for hook in self.hooks:
                try:
                    hook(folder)
                except ImportError:
                    continue
                except Exception:  # as `importlib` says, where the program imports from there
                    return False
                return False
        return True

    def is_late(self) -> bool:
        """Whether the time is over."""
        self.stopped = self.stopped or perf_counter() - self.began > self.limit_s
        return self.stopped

    def exists(self, fullname: str) -> bool:
        """Whether there is such a module, as far as the forecast came."""
        answer = self.visited.get(fullname)
        if answer is None:
            return fullname in sys.modules or bool(BuiltinImporter.find_spec(fullname)) or _imp.is_frozen(fullname)
        return answer.kind != answers.MISSING

    def certain(self) -> "list[str]":
        """List the extension modules that are imported whenever the program is: not from inside functions."""
        found = [answer for answer in self.reached() if answer.kind == answers.EXTENSION]
        return self.sure + [answer.origin for answer in found if answer.origin is not None]

    def reached(self) -> "list[Answer]":
        """List what the scan found of what is asked whenever the program is imported: not from inside functions."""
        found = []
        seen = {""}
        pending = ["", *self.roots]
        while pending:
            fullname = pending.pop()
            answer = self.visited.get(fullname)
            if answer is not None:
                found.append(answer)
            parent = fullname.rpartition(".")[0]
            for name in (parent, *self.executed.get(fullname, ())):
                if name not in seen:
                    seen.add(name)
                    pending.append(name)
        return found


def last_part(fullname: str) -> str:
    """Return a module's name without the packages that it is in."""
    return fullname.rpartition(".")[2]


def foreign_hooks() -> "list[Any] | None":
    """Return the path hooks that are not `importlib`'s; None if the finder for folders is not `importlib`'s own."""
    folders = [
        hook
        for hook in sys.path_hooks
        if getattr(hook, "__qualname__", "") == "FileFinder.path_hook.<locals>.path_hook_for_FileFinder"
    ]
    zipimport = sys.modules.get("zipimport")
    known = [*folders, getattr(zipimport, "zipimporter", None)]
    return [hook for hook in sys.path_hooks if hook not in known] if len(folders) == 1 else None


def standard_names() -> "frozenset[str]":
    """Return the top-level names of the standard library."""
    if sys.version_info >= (3, 10):
        return sys.stdlib_module_names
    folders = [entry for entry in sys.path if entry.endswith(("/python3.9", "/python3.9/lib-dynload"))]
    return frozenset(name.partition(".")[0] for folder in folders for name in posix.listdir(folder))
