"""What a report is made of: the imports of this rank, and where their time went. Loaded only where one is wanted.

importlib calls its own functions by their names in its namespace. While this records, functions are there that do the
same and look at the clock; in a traceback they are importlib's. The core has what was recorded, and makes the report
when MPI ends: by then no Python is left. What the rows and sums are, `report.py` knows, too.
"""

import marshal
import posix
import sys
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader
from _thread import _local
from time import perf_counter, time

from mpiimport import _core, answers, lockstep
from mpiimport.loader import DeliveredLoader
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from mpiimport.answers import Answer
    from mpiimport.session import Session

PHASES = ("find", "wait", "read", "unmarshal", "dlopen", "execute", "other")
"""Where the time of an import goes, that of other imports inside it left out."""
FIND, WAIT, READ, UNMARSHAL, DLOPEN, EXECUTE, OTHER = range(7)

MODULE, STAGE = "module", "stage"
"""The two kinds of rows."""

ANSWERS = ("opening", "missing", "node", "lockstep", "local")
"""How questions were answered, as `mpiimport.stats` counts it."""

SUMS = (
    "import_s",
    *(phase + "_s" for phase in PHASES),
    "connect_s",
    "forecast_s",
    "opening_s",
    "ready_s",
    *ANSWERS,
    "built_in",
    "failed",
    "missed",
    "extensions",
    "sources_read",
    "foreseen",
    "broadcast_bytes",
    "code_bytes",
    "operations_avoided",
    "rows",
)
"""What is known of every rank."""


class Question:
    """One question that this rank asked, mostly on behalf of an import."""

    __slots__ = (
        "answer",
        "began",
        "fullname",
        "is_asked",
        "is_foreseen_next",
        "is_import",
        "is_missed",
        "kind",
        "number",
        "origin",
        "parent",
        "size_bytes",
        "spent",
    )

    def __init__(self, number: int, parent: int, fullname: str, began: float, *, is_import: bool) -> None:
        self.number = number
        self.parent = parent
        self.fullname = fullname
        self.began = began
        self.is_import = is_import
        self.is_asked = False
        self.is_foreseen_next = False
        self.is_missed = False
        self.answer: str | None = None
        self.kind: str | None = None
        self.origin: str | None = None
        self.size_bytes: int | None = None
        self.spent = [0.0] * len(PHASES)


class Thread:
    """What one thread imports: the imports inside one another, and on what the time goes at the moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.questions: list[Question] = []
        self.phase = OTHER
        self.since = 0.0

    def enter(self, phase: int) -> int:
        """From now on the time goes on this. Return on what it went before."""
        now = perf_counter()
        if self.questions:
            self.questions[-1].spent[self.phase] += now - self.since
        self.since = now
        before, self.phase = self.phase, phase
        return before


class Recorder:
    """Records what a session imports, from `start` to the end."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.local = _local()
        self.began = perf_counter()
        self.numbers = 0
        self.threads = 0
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.sums["connect_s"] = sum(session.seconds.values())
        self.listed: set[str] = set()

    def start(self) -> None:
        """Begin to record."""
        session = self.session
        _core.report_start(len(SUMS), *(self.maker() if session.is_root() else (None, b"")))
        bootstrap, external = sys.modules["_frozen_importlib"], sys.modules["_frozen_importlib_external"]
        replace(bootstrap, "_find_and_load_unlocked", self.importing)
        replace(bootstrap, "_find_spec", self.finding)
        replace(bootstrap, "module_from_spec", self.timed(OTHER, of_native=DLOPEN))
        replace(bootstrap, "_load_unlocked", self.timed(EXECUTE))
        replace(external, "_compile_bytecode", self.timed(UNMARSHAL))
        replace(external.SourceLoader, "get_code", self.timed(READ))
        replace(DeliveredLoader, "get_code", self.timed(UNMARSHAL))
        replace(lockstep, "ask", self.timed(WAIT))
        replace(session.misses, "claim", self.timed(WAIT))
        replace(session.misses, "copy_native", self.timed(READ))
        replace(session.finder, "tell", self.telling)
        replace(session, "broadcast_opening", self.staged("opening_s"))
        replace(session, "forecast", self.staged("forecast_s"))
        replace(session, "begin_program", self.staged("ready_s"))

    def maker(self) -> "tuple[list[str], bytes]":
        """Return the command that makes the report, and what it is told, on the root."""
        place, settings = self.session.place, self.session.settings
        path = settings.report or ""
        if path[:1] != "/":
            path = posix.getcwd() + "/" + path
        header = {
            "path": path,
            "sums": SUMS,
            "mpiimport": _core.__version__,
            "python": sys.version.split()[0],
            "arguments": (["python-mpi"] if sys.argv[:1] == ["-c"] else sys.argv[:1]) + sys.argv[1:],
            "began": time(),
            "policy": settings.policy if self.session.opens else "local",
            "launcher": place["launcher"] if place is not None else None,
            "library": " ".join(place["library_version"].split("\n")[0].split()) if place is not None else None,
            "hosts": place["hosts"] if place is not None else 1,
            "host_of_rank": place["host_of_rank"] if place is not None else [posix.uname().nodename],
        }
        isolated = ["-s"] if boot.environment("PYTHONHOME") else ["-I"]
        command = [sys.executable, *isolated, "-S", "-B", boot.own_folder() + "/mpiimport/report.py"]
        return command, marshal.dumps(header)

    # What is put in the place of functions of importlib and of ours

    def thread(self) -> Thread:
        """Return what is known of this thread."""
        found: Thread | None = self.local.__dict__.get("thread")
        if found is None:
            self.threads += 1
            found = self.local.thread = Thread(self.threads - 1)
        return found

    def timed(self, phase: int, of_native: "int | None" = None) -> "Callable[[Any], Any]":
        """Have the time of a function go on this, or on that for a native module, where it is called for an import."""

        def around(function: "Any") -> "Any":
            def call(*arguments: "Any", **keywords: "Any") -> "Any":
                thread = self.thread()
                if not thread.questions:
                    return function(*arguments, **keywords)
                chosen = phase
                if of_native is not None and isinstance(arguments[0].loader, ExtensionFileLoader):
                    chosen = of_native
                before = thread.enter(chosen)
                try:
                    return function(*arguments, **keywords)
                finally:
                    thread.enter(before)

            return call

        return around

    def importing(self, function: "Any") -> "Any":
        """Record an import, of which only the first of a module comes here."""

        def call(name: "Any", *arguments: "Any", **keywords: "Any") -> "Any":
            question, before = self.begin(name, is_import=True)
            error = None
            try:
                return function(name, *arguments, **keywords)
            except BaseException as cause:
                error = type(cause).__name__
                raise
            finally:
                self.end(question, before, error)

        return call

    def finding(self, function: "Any") -> "Any":
        """Record the search for a module: for an import, or for its own sake."""

        def call(name: "Any", *arguments: "Any", **keywords: "Any") -> "Any":
            thread = self.thread()
            question = thread.questions[-1] if thread.questions else None
            begun = None
            if question is None or question.fullname != name or question.is_asked:
                begun = self.begin(name, is_import=False)
                question = begun[0]
            question.is_asked = True
            before = thread.enter(FIND)
            error = None
            try:
                spec = function(name, *arguments, **keywords)
                describe(question, spec)
                return spec
            except BaseException as cause:
                error = type(cause).__name__
                raise
            finally:
                thread.enter(before)
                if begun is not None:
                    self.end(*begun, error)

        return call

    def telling(self, function: "Any") -> "Any":
        """Record how our finder answered."""
        session = self.session

        def call(fullname: str, how: str, answer: "Answer | None") -> None:
            missed = len(session.finder.missed)
            function(fullname, how, answer)
            thread = self.thread()
            question = thread.questions[-1] if thread.questions else None
            begun = None
            if question is None or question.fullname != fullname or question.answer is not None:
                begun = self.begin(fullname, is_import=False)
                question = begun[0]
            question.is_asked = True
            question.answer = how
            question.is_missed = len(session.finder.missed) > missed
            if answer is not None:
                question.is_foreseen_next = question.is_missed and session.takes_notes and answer.kind != answers.LOCAL
                question.kind, question.origin = answer.kind, answer.origin
                if answer.code is not None:
                    question.size_bytes = len(answer.code)
                if how != "local" and not session.is_root():
                    self.sums["operations_avoided"] += self.operations(answer)
            if begun is not None:
                self.end(*begun, None)

        return call

    def staged(self, name: str) -> "Callable[[Any], Any]":
        """Record one step of the start, or of `mpiimport.deliver`."""

        def around(function: "Any") -> "Any":
            def call(*arguments: "Any", **keywords: "Any") -> "Any":
                began = perf_counter()
                try:
                    return function(*arguments, **keywords)
                finally:
                    now = perf_counter()
                    self.sums[name] += now - (self.began if name == "ready_s" else began)
                    what = arguments[-1] if name == "opening_s" else name[:-2]
                    self.put((STAGE, what, self.micro(began), self.micro(now)))

            return call

        return around

    # Rows and sums

    def begin(self, fullname: str, *, is_import: bool) -> "tuple[Question, int]":
        """Begin a question. Return it, and on what the time of this thread went before."""
        thread = self.thread()
        before = thread.enter(OTHER)
        parent = thread.questions[-1].number if thread.questions else -1
        question = Question(self.numbers, parent, fullname, thread.since, is_import=is_import)
        self.numbers += 1
        thread.questions.append(question)
        return question, before

    def end(self, question: Question, before: int, error: "str | None") -> None:
        """End a question, and record it if it was asked at all."""
        thread = self.thread()
        thread.enter(before)
        thread.questions.remove(question)  # the last, unless the thread runs several stacks in turn
        if not question.is_asked and error is None and self.numbers == question.number + 1:
            return  # it was there by then
        if question.kind == answers.EXTENSION and question.origin is not None:
            copy = self.session.native.copy_of(question.origin)
            if copy != question.origin:
                question.size_bytes = answers.modified_and_size(copy)[1]
        micros = [round(spent * 1e6) for spent in question.spent]
        row = (
            MODULE,
            question.number,
            question.parent,
            question.fullname,
            question.is_import,
            question.answer,  # None if the import of its package has imported it
            question.kind,
            question.origin,
            self.micro(question.began),
            self.micro(thread.since),
            micros,
            question.size_bytes,
            question.is_missed,
            question.is_foreseen_next,
            error,
            thread.number,
        )
        sums = self.sums
        sums["import_s"] += sum(question.spent)
        for phase, spent in zip(PHASES, question.spent):
            sums[phase + "_s"] += spent
        sums["built_in"] += question.answer in ("built-in", "frozen")
        sums["failed"] += error is not None
        sums["code_bytes"] += question.size_bytes or 0
        sums["rows"] += 1
        self.put(row)

    def put(self, row: "tuple[Any, ...]") -> None:
        """Hand a row to the core, with the sums as they are now."""
        finder, sums = self.session.finder, self.sums
        for how in ANSWERS:
            sums[how] = finder.counts[how]
        sums["missed"] = len(finder.missed)
        sums["extensions"] = finder.extensions
        sums["sources_read"] = finder.sources_read
        sums["broadcast_bytes"] = self.session.broadcast_bytes
        if row[0] == STAGE:
            sums["foreseen"] = sum(len(one) for opening in finder.openings for one in opening.records.values())
        _core.report_record(marshal.dumps(row), list(sums.values()))

    def micro(self, moment: float) -> int:
        """Return a moment in us since this began."""
        return round((moment - self.began) * 1e6)

    def operations(self, answer: "Answer") -> int:
        """Estimate what plain Python would have asked of the filesystem for this: `COUNTED` in `report.py` says it."""
        home = answers.home_of(answer.origin, answer.locations)
        folders = answer.path if home not in answer.path else answer.path[: answer.path.index(home) + 1]
        new = [folder for folder in folders if folder not in self.listed]
        self.listed.update(new)
        found = len(folders) + 2 * len(new)
        if answer.kind == answers.SOURCE:
            found += 4 if answer.locations is None else 7
        elif answer.kind == answers.EXTENSION:
            native = self.session.native
            opened = [answer.origin, *[path for path, _ in native.libraries.get(answer.origin or "", ())]]
            found += 1 + sum(2 for path in opened if path in native.present)
        elif answer.kind == answers.NAMESPACE:
            found += len(answer.locations or ())
        return found


def describe(question: Question, spec: "Any") -> None:
    """Take note of what was found, where our finder has not told it."""
    if spec is None:
        if question.kind is None:
            question.kind = answers.MISSING
        return
    if question.answer is None:
        origin = getattr(spec, "origin", None)
        question.answer = origin if origin in ("built-in", "frozen") else "other"
    elif question.kind == answers.MISSING:
        question.answer, question.kind = "other", None  # another finder has it
    if question.kind in (None, answers.LOCAL):
        loader = getattr(spec, "loader", None)
        if question.answer in ("built-in", "frozen"):
            question.kind = question.answer
        elif loader is None:
            question.kind = answers.NAMESPACE
        elif isinstance(loader, SourceFileLoader):
            question.kind = answers.SOURCE
        else:
            question.kind = answers.EXTENSION if isinstance(loader, ExtensionFileLoader) else "other"
    if question.origin is None and getattr(spec, "has_location", False):
        question.origin = spec.origin


def replace(owner: "Any", name: str, around: "Callable[[Any], Any]") -> None:
    """Put what `around` makes of a function in its place. Tracebacks and warnings take it for a part of importlib."""
    function = getattr(owner, name)
    call = around(function)
    call.__code__ = call.__code__.replace(co_filename="<frozen importlib._bootstrap>", co_name=name)
    call.__name__, call.__doc__ = name, function.__doc__
    setattr(owner, name, call)
