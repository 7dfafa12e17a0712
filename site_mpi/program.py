"""The program: what `python-mpi` was asked to run, read by the root, run by every rank as `__main__`."""

import marshal
import sys
import time
from _frozen_importlib_external import SourceFileLoader, SourcelessFileLoader

from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, NoReturn

    from mpiimport.session import Session
    from site_mpi.boot import Settings

FORWARD_S = 0.5
"""A launcher that hears of the end first may drop what a rank wrote before it (0.1 s is enough but under load)."""

GRACE_S = 5.0
"""How long threads and exit functions of a program that failed may take before the job is ended all the same."""


class Program:
    """What to run. `code` is the marshalled code of a script, command or standard input; None for modules.

    `status` is set instead, where the program cannot be started: every rank exits with it. `asked` tells it from the
    programs that other ranks of the job may have been asked to run.
    """

    def __init__(
        self,
        kind: str,
        target: str,
        path0: "str | None",
        code: "bytes | None" = None,
        status: "int | None" = None,
        source: str = "",
        asked: "tuple[str, str] | None" = None,
    ) -> None:
        self.kind = kind
        self.target = target
        self.path0 = path0
        self.code = code
        self.status = status
        self.source = source
        self.asked = asked

    def folder(self) -> "str | None":
        """Return the absolute path of what is put into `sys.path` for the program, or None."""
        import os

        if self.path0 != "":
            return self.path0
        try:
            return os.getcwd()
        except OSError:  # it is gone
            return None

    def pack(self) -> "tuple[Any, ...]":
        """Return the program as what `marshal` can carry."""
        return (self.kind, self.target, self.path0, self.code, self.status, self.source, self.asked)


def describe(settings: "Settings", rest: "list[str]") -> "tuple[str, str, list[str]]":
    """Return (kind, target, sys.argv) of what the command line asks for."""
    if settings.command is not None:
        return "command", settings.command, ["-c", *rest]
    if settings.module is not None:
        return "module", settings.module, ["-m", *rest]
    if not rest or rest[0] == "-":
        return "stdin", "", rest or [""]
    return "script", rest[0], rest


def restore_arguments(argv: "list[str]", arguments: "list[str]") -> None:
    """Let `sys.argv` and `sys.orig_argv` say what plain Python's would; `sitecustomize` sees them already."""
    sys.argv = argv
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = [sys.orig_argv[0], *arguments]


def asked(kind: str, target: str) -> "tuple[str, str]":
    """Return what tells this program from others."""
    return kind, absolute(target) if kind in ("script", "module") else target


def prepare(kind: str, target: str) -> Program:
    """Read the program, on the root. Of one that cannot be started, say what plain Python would."""
    program = read(kind, target)
    program.asked = asked(kind, target)
    return program


def read(kind: str, target: str) -> Program:
    """Do what `prepare` does."""
    import os

    unsafe = not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated
    try:
        if kind == "command":
            source = target
            code = compile(source, "<string>", "exec", dont_inherit=True)
            return Program(kind, "", "" if unsafe else None, marshal.dumps(code), None, source)
        if kind == "stdin":
            code = compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True)
            return Program(kind, "", "" if unsafe else None, marshal.dumps(code))
        if kind == "module":
            return Program(kind, target, os.getcwd() if unsafe else None)
        if is_archive(target):
            return Program("folder", target, absolute(target))
        try:
            with open(target, "rb") as file:
                data = file.read()
        except OSError as cause:
            sys.stderr.write(
                "%s: can't open file %r: [Errno %d] %s\n"
                % (sys.executable, absolute(target), cause.errno or 0, cause.strerror)
            )
            return Program(kind, target, None, None, 2)
        path = absolute(target)
        if target.endswith(".pyc"):
            code = SourcelessFileLoader("__main__", target).get_code("__main__")  # type: ignore[assignment]
        else:
            if b"\0" in data:
                line = data.count(b"\n", 0, data.index(b"\0")) + 1
                raise SyntaxError("source code cannot contain null bytes", (path, line, None, None))
            code = compile(data, path, "exec", dont_inherit=True)
        path0 = os.path.dirname(os.path.realpath(target)) if unsafe else None
        return Program(kind, path, path0, marshal.dumps(code))
    except (SyntaxError, ValueError) as cause:  # ValueError: null bytes in `-c`, in older Pythons
        show(cause, None)
        return Program(kind, target, None, None, 1)


def absolute(path: str) -> str:
    """Return the absolute path that Python makes of a script's: it is not normalised."""
    import os

    if path == ".":
        return os.getcwd()

    return path if path[:1] == "/" else os.getcwd() + "/" + path


def is_archive(path: str) -> bool:
    """Whether a finder of `sys.path_hooks` takes this path, as it does folders and zip files."""
    import os

    if os.path.isdir(path):
        return True
    for hook in sys.path_hooks:
        try:
            hook(path)
        except ImportError:
            continue
        return True
    return False


def run(program: Program, session: "Session | None", *, is_roots: bool = True) -> None:
    """Run the program as `__main__` and end this process as plain Python would, the job with it if it failed.

    One that is not the root's, in a job of several programs, ends the job even if it cannot be started.
    """
    if program.status is not None:
        if session is not None and session.place is not None:
            time.sleep(FORWARD_S)
        if not is_roots:
            boot.abort(program.status, GRACE_S)
        sys.exit(program.status)
    if program.path0 is not None:
        sys.path.insert(0, program.path0)
    main = sys.modules["__main__"].__dict__
    try:
        if program.kind in ("module", "folder"):
            import runpy

            runpy._run_module_as_main(  # type: ignore[attr-defined]
                program.target if program.kind == "module" else "__main__", program.kind == "module"
            )
        else:
            if program.kind == "script":
                kind = SourcelessFileLoader if program.target.endswith(".pyc") else SourceFileLoader
                main["__loader__"] = kind("__main__", program.target)
                main["__file__"] = program.target
            elif program.kind == "stdin":
                main["__file__"] = "<stdin>"
            else:
                remember_source(program)
            if program.kind != "command" and sys.version_info < (3, 15):
                main["__cached__"] = None
            exec(marshal.loads(program.code or b""), main)
    except SystemExit as cause:
        if session is not None and not session.is_root() and is_of_runpy(cause):
            if is_roots:
                sys.exit(1)  # the root says why
            boot.abort(1, GRACE_S)
        if session is not None and session.settings.abort_on_exit and session.place is not None:
            status = exit_status(cause)
            if status:
                sys.modules["mpiimport._core"].abort(status, GRACE_S)
        raise
    except BaseException as cause:
        fail(cause, session)


def remember_source(program: Program) -> None:
    """Let tracebacks show the lines of `-c`, as Python does from 3.13 on."""
    if sys.version_info < (3, 13):
        return
    import linecache

    by_code = hasattr(linecache, "_interactive_cache")
    code = marshal.loads(program.code or b"") if by_code else "<string>"
    linecache._register_code(code, program.source, "<string>")


def is_of_runpy(cause: SystemExit) -> bool:
    """Whether there is no such module: `runpy` itself raised this, before any code of the program ran."""
    traceback = cause.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_name == "_run_module_as_main"


def exit_status(cause: SystemExit) -> int:
    """Return the exit status that this SystemExit gives the process."""
    if cause.code is None:
        return 0
    return cause.code & 0xFF if isinstance(cause.code, int) else 1


def fail(cause: BaseException, session: "Session | None") -> "NoReturn":
    """Show an exception that the program did not catch, and end the job: the others may wait for this rank."""
    traceback = cause.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals is globals():
        traceback = traceback.tb_next
    show(cause, traceback)
    status = 130 if isinstance(cause, KeyboardInterrupt) else 1
    abort(cause, status, session)
    sys.exit(status)


def abort(cause: BaseException, status: int, session: "Session | None") -> None:
    """Have the job end with this status when this process does, and say which rank is the reason."""
    place = session.place if session is not None else None
    core: Any = sys.modules.get("mpiimport._core")
    if session is None or place is None or place["size"] == 1 or not core.is_active():
        return
    boot.say(
        "rank %d on %s ended with %s; ending the job with status %d."
        % (place["rank"], place["host"], type(cause).__name__, status)
    )
    time.sleep(FORWARD_S)
    core.abort(status, GRACE_S)


def abort_on_uncaught(session: "Session") -> None:
    """Have an exception that the program does not catch end the job, where the interpreter runs the program."""
    previous = sys.excepthook

    def excepthook(kind: "type[BaseException]", cause: BaseException, traceback: "TracebackType | None") -> None:
        previous(kind, cause, traceback)
        abort(cause, 130 if issubclass(kind, KeyboardInterrupt) else 1, session)

    sys.excepthook = excepthook


def show(cause: BaseException, traceback: "TracebackType | None") -> None:
    """Print an exception as the interpreter does when nothing catches it."""
    sys.last_type, sys.last_value, sys.last_traceback = type(cause), cause, traceback
    if sys.version_info >= (3, 12):
        sys.last_exc = cause
    sys.excepthook(type(cause), cause.with_traceback(traceback), traceback)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # closed by the program, or None
