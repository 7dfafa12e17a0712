"""Questions and answers: what an import system asks, and what the real machinery of `importlib` says.

A question is a module's full name with the folders searched. Nothing here communicates, and nothing here decides
who asks: an answer is by construction what plain Python finds.
"""

import _warnings
import marshal
import posix
import sys
from _frozen_importlib_external import ExtensionFileLoader, FileFinder, PathFinder, SourceFileLoader
from time import time

from mpiimport import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType, ModuleType
    from typing import Any, ClassVar, Optional

    from typing_extensions import Buffer

    Witness = tuple[str, Optional[int], Optional[int]]

SOURCE = "source"
EXTENSION = "extension"
NAMESPACE = "namespace"
MISSING = "missing"
LOCAL = "local"
"""An error, or a loader that is not carried: every rank asks its own finders."""


class Answer:
    """What was found for one question.

    `path` is the list of folders that was searched; `locations` a package's `__path__`; `code` the marshalled code,
    compressed. `witnesses` are the folders and files outside the environment on which the answer rests, as
    `(path, mtime_ns or None, size_bytes or None)`: the answer holds while they are as they were. Their last one is
    the origin, where that lies outside the environment.
    """

    __slots__ = ("code", "kind", "locations", "origin", "path", "witnesses")

    def __init__(
        self,
        path: "list[str]",
        kind: str,
        origin: "str | None" = None,
        locations: "list[str] | None" = None,
        code: "bytes | memoryview | None" = None,
        witnesses: "Sequence[Witness]" = (),
    ) -> None:
        self.path = path
        self.kind = kind
        self.origin = origin
        self.locations = locations
        self.code = code
        self.witnesses = witnesses


SETTLED_S = 2.0
"""Source younger than this may change without its bytecode becoming invalid."""


class CapturingLoader(SourceFileLoader):
    """Gets code as `SourceFileLoader` does, and keeps the bytes that it came from."""

    bytecode = None
    state: "tuple[int, int] | None" = None  # of the source, before it was read
    writes = True
    uses_bytecode = True
    unicodedata: "ClassVar[ModuleType | None]" = None

    def path_stats(self, path: str) -> "dict[str, float]":
        """Look at the source, as `SourceFileLoader` does."""
        status = posix.stat(path)
        self.state = (status.st_mtime_ns, status.st_size)
        return {"mtime": status.st_mtime, "size": status.st_size}

    def get_data(self, path: str) -> bytes:
        """Read a file; remember it if it is the bytecode."""
        if path != self.path and not self.uses_bytecode:
            raise FileNotFoundError(path)
        data = super().get_data(path)
        self.bytecode = None if path == self.path else data
        return data

    def source_to_code(self, data: "Any", path: "Any", **keywords: int) -> "Any":  # type: ignore[override]
        """Compile source, and leave no trace: it may never be imported.

        Source that the compiler warns of is an error here, so that its import by the program shows the warning.
        """
        filters: Any = getattr(sys.modules.get("warnings", _warnings), "filters")  # noqa: B009
        before = list(filters)
        known = "unicodedata" in sys.modules
        if self.unicodedata is not None:
            sys.modules.setdefault("unicodedata", self.unicodedata)
        filters.insert(0, ("error", None, Warning, None, 0))
        try:
            return super().source_to_code(data, path, **keywords)
        finally:
            filters[:] = before
            if not known:
                # The compiler wants it for names that are not ASCII, and from the first `\N{...}` on it keeps a pointer
                # into it: this module must live as long as the interpreter.
                CapturingLoader.unicodedata = sys.modules.pop("unicodedata", self.unicodedata)

    def set_data(self, path: str, data: "Buffer", *, _mode: int = 0o666) -> None:
        """Write the bytecode of what was just compiled, where this rank is the one to do so.

        Bytecode names its source's second and size only. The forecast compiles before the program runs, which may yet
        write other source of that size in that second.
        """
        header = memoryview(data)
        if self.writes and (header[4] or time() - int.from_bytes(header[8:12], "little") > SETTLED_S):
            super().set_data(path, data, _mode=_mode)


def searched(path: "Sequence[str] | None") -> "list[str]":
    """Return the folders that an import searches: `path`, or `sys.path` for None, relative entries made absolute.

    What is no string is left out, as `PathFinder` leaves it out.
    """
    entries = sys.path if path is None else path
    for entry in entries:
        if type(entry) is not str or entry[:1] != "/":
            break
    else:
        return entries if type(entries) is list else list(entries)
    entries = [str.__str__(entry) for entry in entries if isinstance(entry, str)]
    try:
        current = posix.getcwd()
    except OSError:  # the folder is gone: nothing is found there
        return [entry for entry in entries if entry[:1] == "/" or is_hooked(entry)]
    return [
        entry if entry[:1] == "/" or is_hooked(entry) else current + "/" + entry if entry else current
        for entry in entries
    ]


def is_hooked(entry: str) -> bool:
    """Whether a path hook that is not `importlib`'s takes this entry, or raises over it: then it names no folder."""
    if not entry:
        return False
    try:
        finder = PathFinder._path_importer_cache(entry)  # type: ignore[attr-defined]
    except Exception:  # an import raises it if it comes to this entry, and it may be found before
        return True
    return finder is not None and type(finder) is not FileFinder


def ask(
    fullname: str,
    path: "Sequence[str] | None",
    stable: "tuple[str, ...]",
    *,
    writes_bytecode: bool,
    uses_bytecode: bool = True,
) -> "tuple[Answer, CodeType | None]":
    """Ask the real machinery. Return (answer, code object or None).

    `path` is None for a top-level module, else the parent's `__path__`. `stable` is the environment's folders, as a
    tuple of prefixes that end in `/`: what lies below them does not change during a run. Without `uses_bytecode` the
    source is compiled anew.
    """
    folders = list(searched(path))
    # Not find_spec: its namespace packages want their parent in sys.modules, where the forecast does not put it.
    try:
        spec = PathFinder._get_spec(fullname, sys.path if path is None else path)  # type: ignore[attr-defined]
    except Exception:  # of a path hook: it is raised again where the module is imported
        return Answer(folders, LOCAL), None
    if spec is None or (spec.loader is None and not spec.submodule_search_locations):
        return Answer(folders, MISSING, witnesses=witnesses(folders, None, stable)), None
    locations = spec.submodule_search_locations
    if locations is not None:
        locations = list(locations)
    if spec.loader is None:
        return Answer(folders, NAMESPACE, None, locations, None, witnesses(folders, None, stable)), None
    origin = spec.origin
    if type(spec.loader) is ExtensionFileLoader:
        return Answer(folders, EXTENSION, origin, locations, None, witnesses(folders, origin, stable, locations)), None
    if type(spec.loader) is not SourceFileLoader or origin is None:
        return Answer(folders, LOCAL), None
    loader = CapturingLoader(fullname, origin)
    loader.uses_bytecode = uses_bytecode
    loader.writes = writes_bytecode or not uses_bytecode  # or what the forecast wrote would stay
    try:
        code = loader.get_code(fullname)
    except Exception:  # every rank that imports it meets the same error, and only that rank shows it
        return Answer(folders, LOCAL), None
    captured = _core.compress(loader.bytecode[16:] if loader.bytecode is not None else marshal.dumps(code))
    found = witnesses(folders, origin, stable, locations, origin_state=loader.state)
    return Answer(folders, SOURCE, origin, locations, captured, found), code


def witnesses(
    folders: "list[str]",
    origin: "str | None",
    stable: "tuple[str, ...]",
    locations: "list[str] | None" = None,
    folder_modified: "Callable[[str], int | None] | None" = None,
    origin_state: "tuple[int | None, int | None] | None" = None,
) -> "tuple[Witness, ...]":
    """Return what the answer rests on: see `Answer`. `locations` are those of a package.

    What is known already of the folders and of the origin need not be looked at.
    """
    home = home_of(origin, locations)
    look = folder_modified or listed
    found: list[Witness] = []
    for folder in folders:
        if not (folder + "/").startswith(stable):
            found.append((folder, look(folder), None))
        if folder == home:
            break
    if found and origin is not None and found[-1][0] == home:
        found.append((origin, *(origin_state or modified_and_size(origin))))
    return tuple(found)


CHANGED = -1
"""As a modification time: it is not what it was when it was looked at."""


def listed(folder: str) -> "int | None":
    """Return a folder's modification time in ns, if it is the one of which its finder knows the names."""
    finder = sys.path_importer_cache.get(folder)
    try:
        status = posix.stat(folder)
    except OSError:
        return None
    if type(finder) is FileFinder and finder._path_mtime != status.st_mtime:  # type: ignore[attr-defined]
        return CHANGED
    return status.st_mtime_ns


def modified(path: str) -> "int | None":
    """Return a path's modification time in ns, or None."""
    try:
        return posix.stat(path).st_mtime_ns
    except OSError:
        return None


def modified_and_size(path: str) -> "tuple[int | None, int | None]":
    """Return a path's modification time in ns and its size in bytes, or two times None."""
    try:
        status = posix.stat(path)
    except OSError:
        return None, None
    return status.st_mtime_ns, status.st_size


def holds(answer: Answer, fullname: str, unchanged: "set[Witness] | None" = None) -> bool:
    """Whether the files and folders that the answer rests on still give it, as `FileFinder` would say.

    Folders in `unchanged` are not looked at; those that are as they were come to be in it.
    """
    for witness in answer.witnesses:
        path, mtime_ns, size_bytes = witness
        if size_bytes is not None:
            if modified_and_size(path) != (mtime_ns, size_bytes):
                return False
        elif unchanged is not None and witness in unchanged:
            continue
        elif modified(path) == mtime_ns:
            if unchanged is not None:
                unchanged.add(witness)
        else:
            # Something was written there. Whether it matters to this name, the folder's own finder knows.
            finder = PathFinder._path_importer_cache(path)  # type: ignore[attr-defined]
            spec = finder.find_spec(fullname) if finder is not None else None
            expected = answer.origin if path == home_of(answer.origin, answer.locations) else None
            if (spec.origin if spec is not None else None) != expected or (spec is not None and spec.loader is None):
                return False
    return True


def home_of(origin: "str | None", locations: "list[str] | None") -> "str | None":
    """Return the folder in which a module was found, as a file or, with `locations`, as a package."""
    if origin is None:
        return None
    folder = origin.rpartition("/")[0]
    return folder if locations is None else folder.rpartition("/")[0]
