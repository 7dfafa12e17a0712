"""The forecast: the root finds what the program is expected to ask, by the profile of an earlier run or by a scan.

The scan follows import statements through the bytecode and executes nothing. What is found is found and read by many
threads in the core, where it is ordinary, and by the real machinery of `importlib` otherwise.
"""

import _imp
import itertools
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

    Asked = tuple[list[Question], list[Question], _core.Finding]
    """Questions that are being answered: all of them; those that the core answers, in its order; its answers."""
    Answered = tuple[Question, Answer | None, CodeType | None]
    """A question, its answer, and the code object if there is one already. No answer: the time was over."""


#: What `sysconfig` imports when it is first asked, by a name that it computes: `sysconfig._get_sysconfigdata_name`.
BUILD_DATA = "_sysconfigdata_%s_%s_%s" % (sys.abiflags, sys.platform, getattr(sys.implementation, "_multiarch", ""))


class Forecast:
    """Adds to an opening what a program may ask.

    Whatever the program's own modules import counts, inside functions too. Of installed packages, whose functions are
    many and mostly not called, these count:

    - What is imported with a module that is likely to be imported, or by its `__getattr__`: it is likely too.
    - What such a module names in native code, as Cython does with what is imported for C, if it is of the same package
      or of one that is likely anyway: it is likely too.
    - What is imported inside functions of such a module: it is possible. But another package than the module's own,
      which it can do without, only if that is likely anyway.
    - What is imported with a module that is possible, of its own package and the standard library: it is possible too.

    Other ranks wait meanwhile, so it stops after `limit_s` seconds; what it did not come to is missed.
    """

    def __init__(self, opening: "Opening", limit_s: float) -> None:
        self.opening = opening
        self.began = perf_counter()
        self.limit_s = limit_s
        self.stopped = False
        self.visited: dict[str, Answer | None] = {}
        self.waiting: list[str] = []
        self.waiting_for: dict[str, list[str]] = {}
        self.unanswered: set[str] = set()
        self.roots: set[str] = set()
        self.statements: dict[str, list[tuple[int, list[str]]]] = {}
        self.installed: set[str] = set()
        self.likely: set[str] = set()
        self.optional: dict[str, set[str]] = {}
        self.changed: set[str] = set()
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
        """Foresee what module `fullname` imports, "" for the program, whose code runs inside `package`, "" for none."""
        if installed:
            self.installed.add(fullname)
        statements = self.statements.setdefault(fullname, [])
        try:
            found = list(scan.imports_of(code, with_calls=installed))
        except IndexError:
            found = []  # what such bytecode means, only who executes it can know
        for name, fromlist, level, when in found:
            base = name
            if level:
                parent = package
                for _ in range(level - 1):
                    parent = parent.rpartition(".")[0]
                base = parent + "." + name if name and parent else parent or name
            if base:
                parts = [base + "." + attribute for attribute in fromlist or () if attribute != "*"]
                statements.append((when, [base, *parts]))
        self.follow_statements(fullname)

    def follow_names(self, names: "list[str]", fullname: str) -> None:
        """Foresee what extension module `fullname` imports, which has these names."""
        self.installed.add(fullname)
        own = fullname + "."
        self.statements[fullname] = [(scan.NAMED, [name]) for name in names if not name.startswith(own)]
        self.follow_statements(fullname)

    def follow_statements(self, fullname: str) -> None:
        """Foresee what the import statements of a module import, as far as they are likely enough to be executed."""
        likely = not fullname or fullname in self.likely
        installed = fullname in self.installed
        own = fullname.partition(".")[0]
        for when, names in self.statements[fullname]:
            top = names[0].partition(".")[0]
            if not installed:
                counts = True
            elif top == own or top in self.standard:
                counts = likely or when == scan.WITH_MODULE
            else:
                counts = likely and (when == scan.WITH_MODULE or top in self.likely)
                if likely and not counts:
                    self.optional.setdefault(top, set()).add(fullname)
            if counts:
                for name in names:
                    self.follow_name(name, likely=likely and not (installed and when == scan.IN_FUNCTION))

    def follow_name(self, fullname: str, *, likely: bool = True) -> None:
        """Foresee the import of a module and of the packages it is in."""
        if not fullname or (fullname in self.likely if likely else fullname in self.visited):
            return
        parent = fullname.rpartition(".")[0]
        if parent:
            self.follow_name(parent, likely=likely)
        if likely:
            self.likely.add(fullname)
            self.changed.update(self.optional.pop(fullname, ()))
        if fullname not in self.visited:
            self.visited[fullname] = None
            self.unanswered.add(fullname)
            if parent in self.unanswered:
                self.waiting_for.setdefault(parent, []).append(fullname)
            else:
                self.waiting.append(fullname)
        elif fullname in self.statements:
            self.changed.add(fullname)

    def follow_roots(self, fullnames: "Iterable[str]") -> None:
        """Foresee the import of modules that are asked for by name."""
        for fullname in fullnames:
            self.roots.add(fullname)
            self.follow_name(fullname)

    def follow_questions(self, questions: "Iterable[Question]") -> None:
        """Foresee just these questions."""
        asked = self.ask(list(questions))
        for question, answer, _ in self.answers_to(asked) if asked is not None else ():
            if answer is not None:
                self.add(question[1], answer)
                if answer.kind == answers.EXTENSION and answer.origin is not None:
                    self.sure.append(answer.origin)

    def finish(self) -> None:
        """Follow all that was taken note of, and complete the opening."""
        self.follow_all()
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

    def follow_all(self) -> None:
        """Find what is waiting, and follow what was found: the one beside the other."""
        asked: Asked | None = None
        found: list[Answered] = []
        while not self.is_late():
            changed, self.changed = self.changed, set()
            for fullname in sorted(changed):
                self.follow_statements(fullname)
            if asked is None:
                asked = self.ask(self.next_questions(), beside=bool(found))
            if asked is not None and (not found or asked[2].is_done()):
                found += self.answers_to(asked)
                asked = None
            elif found:
                self.follow_answer(*found.pop(0))
            elif not self.changed:
                break
        if asked is not None:
            found += self.answers_to(asked)
        for (_, fullname), answer, _ in found:  # the time is over, but it has been read
            if answer is not None:
                self.visited[fullname] = answer
                self.add(fullname, answer)

    def next_questions(self) -> "list[Question]":
        """Return the questions for what is waiting: for a module, after the package that it is in was found."""
        questions: list[Question] = []
        for fullname in self.waiting:  # grows meanwhile
            parent = fullname.rpartition(".")[0]
            if not parent and BuiltinImporter.find_spec(fullname):
                self.note_answer(fullname)
            elif _imp.is_frozen(fullname):
                if fullname not in sys.modules:
                    package = fullname if _imp.is_frozen_package(fullname) else parent
                    self.follow_code(_imp.get_frozen_object(fullname), package, fullname, installed=True)
                self.note_answer(fullname)
            else:
                path = self.path_of(parent)
                if path is None:
                    self.note_answer(fullname)
                else:
                    questions.append((tuple(answers.searched(path)), fullname))
        self.waiting.clear()
        return questions

    def note_answer(self, fullname: str) -> None:
        """Take note that a module was found, or is none: what is below it need not wait any more."""
        self.unanswered.discard(fullname)
        self.waiting += self.waiting_for.pop(fullname, ())

    def follow_answer(self, question: "Question", answer: "Answer | None", code: "CodeType | None") -> None:
        """Add an answer to the opening, and follow the import statements of the module that was found."""
        fullname = question[1]
        self.visited[fullname] = answer
        self.note_answer(fullname)
        if answer is None:
            return
        self.add(fullname, answer)
        if answer.kind == answers.EXTENSION and answer.origin is not None:
            self.follow_names(self.modules.names_in(answer.origin), fullname)
        if code is None and answer.code is not None:
            try:
                code = marshal.loads(_core.decompress(bytes(answer.code)))
            except (EOFError, ValueError, TypeError):
                self.opening.add(fullname, Answer(answer.path, answers.LOCAL))  # who imports it meets the error
        if code is not None:
            package = fullname if answer.locations is not None else fullname.rpartition(".")[0]
            installed = bool(answer.origin and answer.origin.startswith(self.opening.stable))
            self.follow_code(code, package, fullname, installed=installed)
        if fullname == "sysconfig":
            self.follow_name(BUILD_DATA, likely=False)

    def path_of(self, parent: str) -> "list[str] | None":
        """Return the path on which the modules of a package are searched, `sys.path` for "", None if it is none."""
        if not parent:
            return sys.path
        path = getattr(sys.modules.get(parent), "__path__", None)
        above = self.visited.get(parent)
        found = path or (above.locations if above is not None else None)
        return None if found is None else list(found)

    def ask(self, questions: "list[Question]", *, beside: bool = False) -> "Asked | None":
        """Find what questions ask for, if there are any, or begin to: `beside` what this thread does."""
        if not questions:
            return None
        grouped: dict[tuple[tuple[str, ...], bool], list[str]] = {}
        for folders, fullname in questions:
            if self.is_ordinary(folders):
                grouped.setdefault((folders, fullname in self.likely), []).append(fullname)
        ordinary = [(folders, fullname) for (folders, _), names in grouped.items() for fullname in names]
        without_finder = [entry for entry, finder in sys.path_importer_cache.items() if finder is None]
        self.modules.list(without_finder)
        groups = [
            ([one for one in folders if one not in without_finder], [last_part(name) for name in names], is_likely)
            for (folders, is_likely), names in grouped.items()
        ]
        self.note_out_of_reach(without_finder)
        return questions, ordinary, self.modules.find(groups, beside=beside)

    def answers_to(self, asked: "Asked") -> "list[Answered]":
        """Wait for the answers to questions, and return them."""
        questions, ordinary, finding = asked
        answered_here, all_code = finding.wait()
        found = dict(zip(ordinary, answered_here))
        view = memoryview(all_code)
        answered: list[Answered] = []
        for question in questions:
            folders, fullname = question
            fields = found.get(question)
            if self.out_of_reach.intersection(folders):
                answered.append((question, Answer(list(folders), answers.LOCAL), None))
            elif fields is not None:
                kind, origin, locations, place, state = fields
                code = None if place is None else view[place[0] : place[1]]
                self.states[question] = state
                answered.append((question, Answer(list(folders), kind, origin, locations, code), None))
            elif self.is_late():
                answered.append((question, None, None))
            else:
                answered.append(
                    (question, *answers.ask(fullname, list(folders), self.opening.stable, writes_bytecode=True))
                )
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
        """List the extension modules that are likely to be imported, if the program is."""
        found = [answer for answer in self.reached() if answer.kind == answers.EXTENSION]
        return self.sure + [answer.origin for answer in found if answer.origin is not None]

    def reached(self) -> "list[Answer]":
        """List what was found of what is likely to be imported, if the program is: not from inside functions."""
        found = []
        seen = {""}
        pending = ["", *self.roots]
        while pending:
            fullname = pending.pop()
            answer = self.visited.get(fullname)
            if answer is not None:
                found.append(answer)
            parent = fullname.rpartition(".")[0]
            executed = [
                names
                for when, names in self.statements.get(fullname, ())
                if when != scan.IN_FUNCTION and (when != scan.NAMED or names[0] in self.likely)
            ]
            for name in (parent, *itertools.chain.from_iterable(executed)):
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
