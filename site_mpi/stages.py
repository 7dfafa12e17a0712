"""The three stages that replace `site`: paths settled by the root, an opening, customisation on every rank.

The real `site.main()` runs on every rank. On the root it looks at folders and files, and what it saw is recorded; on
the others it sees the record instead of the filesystem. So `.pth` files mean what they mean to this Python.

Nothing here imports `os` before `site` does: the program has the one that `site` imported.
"""

import _imp
import io
import marshal
import posix
import sys

from mpiimport import _core
from mpiimport import session as sessions
from mpiimport.files import stand_in
from mpiimport.session import Session
from site_mpi import boot, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, TypeVar

    from mpiimport.bundle import Bundled
    from mpiimport.forecast import Forecast
    from mpiimport.opening import Opening

    T = TypeVar("T")
    Record = dict[Any, Any]


REASON_BYTES = 240
"""So much of the reason why a host has no node store reaches the root."""


class Start:
    """The start of one rank, from the connection to the running program."""

    def __init__(
        self, settings: "boot.Settings", place: "boot.Place | None", bundle: "Any" = None, *, alone: bool = False
    ) -> None:
        self.session = Session(settings, place, alone=alone)
        self.bundle = bundle
        sessions.current = self.session
        sys.mpiimport = sys.modules["mpiimport"]  # type: ignore[attr-defined]
        if boot.reports(settings, place):
            from mpiimport.recorder import Recorder

            Recorder(self.session).start()

    def run_program(self, rest: "list[str]", arguments: "list[str]") -> None:
        """Do all stages, then run what the rest of the command line asks for. Collective."""
        kind, target, argv = program.describe(self.session.settings, rest)
        program.restore_arguments(argv, arguments)
        prepared = guarded(self.session, lambda: self.stages(kind, target))
        is_roots = prepared.status is not None or prepared.asked == program.asked(kind, target)
        if not is_roots:
            prepared = guarded(self.session, lambda: program.prepare(kind, target))
        if self.session.settings.write_bundle is not None:
            sys.exit(write_bundle(self.session, prepared))
        program.run(prepared, self.session, is_roots=is_roots)

    def start_here(self, asked: "boot.Settings", rest: "list[str]", path0: "list[str]") -> None:
        """Do all stages for a program that runs already, under `python -S`. Collective."""
        kind, target, _ = program.describe(asked, rest)
        guarded(self.session, lambda: self.stages(kind, target))
        sys.path[:0] = path0
        program.abort_on_uncaught(self.session)

    def install(self) -> None:
        """Foresee and deliver for a program that runs already, started by plain Python. Collective."""
        guarded(self.session, self.open_for_main)
        self.session.finder.install()
        program.abort_on_uncaught(self.session)

    def open_for_main(self) -> None:
        """Open what the file of `__main__` may import. Collective."""
        import os
        import site

        session = self.session
        self.open_store()
        session.set_stable(environment_folders(site))
        made = None
        if session.is_root():
            made = session.new_opening()
            file = getattr(sys.modules["__main__"], "__file__", None)
            if file is not None and session.forecasts():
                code = compile(read_code(os.path.abspath(file)), file, "exec", dont_inherit=True)
                session.foresee(made, "main", os.path.abspath(file), lambda forecast: forecast.follow_code(code, ""))
        received = session.broadcast_opening(made, "rank 0 to find and read what the program will import")
        del made
        session.begin_program(received)

    def stages(self, kind: str, target: str) -> "program.Program":
        """Do the three stages, and the opening for this program. Return it. Collective."""
        session = self.session
        finder = session.finder
        finder.install()
        self.open_store()
        session.open_bundle(self.bundle)
        self.settle_paths()
        customise()
        made: Opening | Bundled | None = None
        if session.bundle is not None:
            prepared = program.prepare(kind, target)
            session.bundle.place(prepared.folder(), stat=session.settings.validate == "stat")
            made = session.bundle.program
            made.index["extra"] = prepared.pack()
        elif session.is_root():
            made = session.new_opening()
            made.extra = self.forecast(made, kind, target).pack()
        received = session.broadcast_opening(made, "rank 0 to find and read what the program will import")
        del made
        prepared = program.Program(*received.extra)
        session.path0 = prepared.folder()
        received.cache_importers([session.path0 or "", *sys.path])
        session.begin_program(received)
        return prepared

    def settle_paths(self) -> None:
        """Stage one: `site.main()`, which looks at the filesystem on the root alone. Collective."""
        session = self.session
        made: Opening | Bundled | None = None
        record: Record = {}
        if session.bundle is not None:
            made = session.bundle.site
        elif session.is_root():
            session.finder.recorded = {}
            import site

            sys.flags = with_site()
            run_site(site, record, recording=True)
            session.set_stable(environment_folders(site))
            made = session.new_opening()
            recorded, session.finder.recorded = session.finder.recorded, None
            for fullname, answer in recorded.items():
                # It was found before it was known what is stable.
                answer.witnesses = [one for one in answer.witnesses if not (one[0] + "/").startswith(session.stable)]
                made.add(fullname, answer)
                for folder in answer.path:
                    made.list_folder(folder)
            made.extra = record
            if session.forecasts() and session.serves_others():
                customs = ("sitecustomize", "usercustomize")
                session.forecast(made, lambda forecast: forecast.follow_roots(customs))
        received = session.broadcast_opening(made, "rank 0 to settle sys.path")
        if not session.is_root() or session.bundle is not None:
            import site

            sys.flags = with_site()
            run_site(site, received.extra, recording=False)
            session.set_stable(environment_folders(site))

    def open_store(self) -> None:
        """Make the node store, through which the ranks of one host share what no opening foresaw. Collective."""
        session = self.session
        if session.place is None:
            return
        session.native.folder, problem = _core.store_open(store_folders(session.settings))
        session.misses.shares = session.native.folder is not None and session.place["local_size"] > 1
        reasons = _core.gather(
            (problem or "").encode()[:REASON_BYTES].ljust(REASON_BYTES), "every host to make its store"
        )
        if reasons is not None:
            lacking = [rank for rank, reason in enumerate(reasons) if reason.strip()]
            if lacking:
                boot.say(
                    "%d of %d hosts share nothing among their ranks (rank %d: %s). Set --tmpdir to a folder on each "
                    "host that has room and is not mounted noexec."
                    % (
                        len(lacking),
                        session.place["hosts"],
                        lacking[0],
                        reasons[lacking[0]].decode("utf-8", "replace").strip(),
                    )
                )

    def forecast(self, made: "Opening", kind: str, target: str) -> "program.Program":
        """Stage two, on the root: foresee what the program will import. Return the program."""
        prepared = program.prepare(kind, target)
        if prepared.status is not None or not self.session.forecasts():
            return prepared
        foresee(self.session, made, kind, prepared)
        return prepared


def store_folders(settings: "boot.Settings") -> "list[str]":
    """List where the node store may be, the first choice first."""
    if settings.tmpdir:
        return [settings.tmpdir]
    return list(dict.fromkeys(["/dev/shm", boot.environment("TMPDIR") or "/tmp", "/tmp"]))


def foresee(session: Session, made: "Opening", kind: str, prepared: "program.Program") -> "Forecast | None":
    """Add to an opening, on the root, what a program is expected to ask. Return the forecast, if there is one."""
    import os

    if prepared.path0 is not None:
        sys.path.insert(0, prepared.path0)
    session.path0 = prepared.folder()
    target = os.path.normpath(prepared.target) if prepared.target else _imp.source_hash(0, prepared.code or b"").hex()
    try:
        return session.foresee(made, kind, target, lambda forecast: follow_program(forecast, prepared))
    finally:
        if prepared.path0 is not None:
            sys.path.remove(prepared.path0)


def write_bundle(session: Session, prepared: "program.Program") -> int:
    """Write the openings that were made for a program into a bundle. Return the exit status."""
    from mpiimport import bundle

    path = session.settings.write_bundle or ""
    if prepared.status is not None:
        return prepared.status
    try:
        what = "%s %s" % (prepared.kind, prepared.target)
        size_bytes = bundle.write(path, what, prepared.folder(), *session.made)
    except OSError as cause:
        boot.say("cannot write the bundle `%s`: %s" % (path, cause.strerror))
        return 1
    modules = sum(len(one.answers) for one in session.made)
    sys.stdout.write("%s: %d modules, %.1f MB\n" % (path, modules, size_bytes / 1e6))
    return 0


def follow_program(forecast: "Forecast", prepared: "program.Program") -> None:
    """Foresee what this program may import."""
    if prepared.code is not None:
        forecast.follow_code(marshal.loads(prepared.code), "")
        return
    name = prepared.target if prepared.kind == "module" else "__main__"
    forecast.follow_roots(["runpy", name, name + ".__main__"])


def guarded(session: Session, start: "Callable[[], T]") -> "T":
    """Run `start`; an exception of ours on one rank would leave the others waiting, so it ends the job."""
    try:
        return start()
    except BaseException as cause:
        if type(cause) is RuntimeError or isinstance(cause, (KeyboardInterrupt, MemoryError)):  # a sentence
            boot.end_for(cause)
        program.fail(cause, session)


def with_site() -> "Any":
    """Return `sys.flags` as a Python without `-S` has them: what child processes are started with."""
    return boot.load_core(boot.own_folder()).flags_with_site(sys.flags)


def environment_folders(site: "ModuleType") -> "list[str]":
    """Return the folders where the interpreter and its environment keep modules: programs do not write them there.

    The prefixes as a whole are not among them: an environment's may be the folder of a project, and `/usr` has room
    for anything.
    """
    folders = {site.os.path.dirname(site.os.__file__), *site.getsitepackages()}
    for prefix in {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, *site.PREFIXES}:
        for lib in {"lib", "lib64", getattr(sys, "platlibdir", "lib")}:
            folders.add("%s/%s/python%d.%d" % (prefix, lib, *sys.version_info[:2]))
            folders.add("%s/%s/python%d%d.zip" % (prefix, lib, *sys.version_info[:2]))
    if site.ENABLE_USER_SITE and site.USER_SITE:
        folders.add(site.USER_SITE)
    return sorted(folders)


def customise() -> None:
    """Stage three: `sitecustomize` and `usercustomize`, on every rank."""
    import site

    site.execsitecustomize()
    if site.ENABLE_USER_SITE:
        site.execusercustomize()


def run_site(site: "ModuleType", record: "Record", *, recording: bool) -> None:
    """Run `site.main()` up to the customisation, its view of the filesystem recorded or replaced by the record."""
    os = site.os
    look = recorder if recording else player
    names = ("isfile", "isdir", "exists")
    path = stand_in(os.path, {name: look(record, name, getattr(os.path, name)) for name in names})
    opener = look(record, "open_code", read_code)
    replaced = {
        "os": stand_in(
            os, {"path": path, "listdir": look(record, "listdir", os.listdir), "lstat": look(record, "lstat", os.lstat)}
        ),
        "io": stand_in(io, {"open_code": lambda name: io.BytesIO(opener(name))}),
        "open": lambda name, *_, encoding=None: io.TextIOWrapper(io.BytesIO(opener(name)), encoding=encoding),
        "execsitecustomize": lambda: None,
        "execusercustomize": lambda: None,
    }
    absent = object()
    kept = {name: site.__dict__.get(name, absent) for name in replaced}
    site.__dict__.update(replaced)
    try:
        site.main()
    finally:
        for name, value in kept.items():
            if value is absent:
                del site.__dict__[name]
            else:
                site.__dict__[name] = value


def read_code(path: str) -> bytes:
    """Read a file as `io.open_code` does."""
    with io.open_code(path) as file:
        return file.read()


def recorder(record: "Record", name: str, function: "Callable[[str], Any]") -> "Callable[[str], Any]":
    """Return a function that does the same and records what came of it."""

    def recorded(path: str) -> "Any":
        try:
            result = function(path)
        except OSError as cause:
            if name == "open_code" and (name, path) not in record:  # `site` looks at some folders twice
                boot.say("cannot read `%s`: %s. What it says about sys.path is ignored." % (path, cause.strerror))
            record[name, path] = (False, (cause.errno, cause.strerror))
            raise
        record[name, path] = (True, tuple(result) if name == "lstat" else result)
        return result

    return recorded


def player(record: "Record", name: str, function: "Callable[[str], Any]") -> "Callable[[str], Any]":
    """Return a function that gives what was recorded, and asks the filesystem only for what was not."""

    def played(path: str) -> "Any":
        if (name, path) not in record:
            return function(path)
        succeeded, result = record[name, path]
        if not succeeded:
            raise OSError(*result, path)
        return posix.stat_result(result) if name == "lstat" else result

    return played
