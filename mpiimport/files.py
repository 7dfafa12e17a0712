"""Files and folders that are asked for by way of the import system: distributions, data of packages, lists of modules.

`importlib.metadata`, `pkgutil` and the loaders ask; openings answer, and only below the folders that do not change
during a run. What an opening does not have is asked of the filesystem by the code that always asked it.
"""

import _io
import errno
import posix
import sys
from _frozen_importlib_external import FileFinder, SourceFileLoader, _get_supported_file_loaders  # type: ignore[attr-defined]

from mpiimport.loader import after_execution

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    from mpiimport.opening import Opening, Received
    from mpiimport.session import Session

LIMIT_BYTES = 1_000_000
"""Larger files are not delivered."""

MISSING = (errno.ENOENT, errno.ENOTDIR)
"""The errors that are answers: there is no such file, or no such folder."""

HOOKS = ["zipimporter", "FileFinder.path_hook.<locals>.path_hook_for_FileFinder"]
"""The path hooks of every Python: where they come first, a folder is the second one's."""


class Files:
    """What the openings of this rank know of files and folders, and what is asked of them."""

    def __init__(self, session: "Session") -> None:
        self.session = session

    def read(self, path: str) -> "bytes | int | None":
        """Return what is in a file, or the number of the error that opening it gives; None if it was not foreseen."""
        return next((opening.file(path) for opening in self.ask("file", path) if path in opening.files), None)

    def names(self, path: str) -> "list[str] | int | None":
        """Return the names in a folder, or the number of the error that listing it gives; None if not foreseen."""
        return next((opening.folder(path) for opening in self.ask("folder", path) if path in opening.folders), None)

    def resolve(self, path: str) -> "str | None":
        """Return what a path is without symbolic links; None if it was not foreseen."""
        return next((opening.links[path] for opening in self.ask("link", path) if path in opening.links), None)

    def ask(self, kind: str, path: str) -> "Sequence[Received]":
        """Take note of a question, and return the openings that may answer it."""
        session = self.session
        if session.current_policy() != "opening" or not is_stable(path, session.stable):
            return ()
        session.note(kind, path)
        finder = session.finder
        return () if finder.confirms_missing or not finder.is_installed() else finder.openings

    def prepare(self, spec: "ModuleSpec") -> None:
        """Have a module that looks at files and folders ask here first, once it is executed."""
        if spec.name == "sysconfig" and isinstance(spec.loader, SourceFileLoader):
            redirect_sysconfig(spec, self)
        redirect = REDIRECTED.get(spec.name)
        if redirect is not None and isinstance(spec.loader, SourceFileLoader):
            after_execution(spec, lambda module: redirect(module, self))


def is_stable(path: str, stable: "tuple[str, ...]") -> bool:
    """Whether a file or folder is below those that do not change during a run, or is the interpreter."""
    if type(path) is not str or "/../" in path + "/":
        return False
    return (path + "/").startswith(stable) or path == sys.executable


def foresee(opening: "Opening", kind: str, path: str) -> None:
    """Add to an opening what there is now of a `file`, `folder` or `link` that an earlier run asked for."""
    if not is_stable(path, opening.stable):
        return
    try:
        if kind == "folder":
            opening.folders[path] = posix.listdir(path)
            return
        if kind == "link":
            from os.path import realpath

            opening.links[path] = realpath(path)
            return
        status = posix.stat(path)
        kind_of_file = status.st_mode & 0o170000
        if kind_of_file == 0o040000:
            opening.files[path] = errno.EISDIR
        elif kind_of_file == 0o100000 and status.st_size <= LIMIT_BYTES:
            with _io.open_code(path) as file:
                opening.files[path] = file.read()
    except OSError as cause:
        if cause.errno in MISSING:
            (opening.folders if kind == "folder" else opening.files)[path] = cause.errno
    except ValueError:
        pass  # of a path with a null character


NOWHERE = "/dev/null/nowhere"
"""What does not exist, and is asked of no shared filesystem."""


def redirect_metadata(module: "Any", files: Files) -> None:
    """Have `importlib.metadata`, or its backport `importlib_metadata`, find distributions and read their files here."""
    from functools import wraps

    if not hasattr(module, "FastPath"):
        return  # an old backport
    fast_path, distribution = module.FastPath, module.PathDistribution
    children, read_text = fast_path.children, distribution.read_text

    @wraps(children)
    def known_children(self: "Any") -> "Any":
        names = files.names(self.root)
        if names == errno.ENOENT:
            return children(fast_path(NOWHERE))  # what it imports to look into what is no folder, it still does
        return names if type(names) is list else children(self)  # it knows about archives

    @wraps(read_text)
    def known_text(self: "Any", filename: "Any") -> "str | None":
        path: Any = getattr(self, "_path", None)
        if type(path) is sys.modules["pathlib"].PosixPath:
            data = files.read(str(path.joinpath(filename)))
            if type(data) is int:
                return None
            if type(data) is bytes:
                try:
                    return data.decode().replace("\r\n", "\n").replace("\r", "\n")
                except UnicodeDecodeError:
                    pass  # the original says so
        text: str | None = read_text(self, filename)
        return text

    fast_path.children, distribution.read_text = known_children, known_text
    if not hasattr(fast_path, "mtime"):
        return  # 3.9 lists the folder each time
    mtime = fast_path.mtime.fget

    @wraps(mtime)
    def known_mtime(self: "Any") -> "float | None":
        openings = files.ask("folder", self.root)
        if any(opening.folders.get(self.root, errno.ENOTDIR) != errno.ENOTDIR for opening in openings):
            return -1.0  # no folder's, so that another list is made once the filesystem is asked
        modified: float | None = mtime(self)
        return modified

    fast_path.mtime = property(known_mtime)


def redirect_sysconfig(spec: "ModuleSpec", files: Files) -> None:
    """Have `sysconfig` ask here where the interpreter and its folders are: it takes a function of `os.path` along."""
    import os

    paths: Any = os.path
    loader: Any = spec.loader
    execute = loader.exec_module
    original = paths.realpath

    def realpath(path: "Any", **keywords: "Any") -> "Any":
        """Return a path without symbolic links."""
        known = files.resolve(path) if type(path) is str and not keywords else None
        return original(path, **keywords) if known is None else known

    def exec_module(module: "ModuleType") -> None:
        del loader.exec_module  # a loader can be pickled and compared
        paths.realpath = realpath
        try:
            execute(module)
        finally:
            paths.realpath = original

    loader.exec_module = exec_module


def redirect_pkgutil(module: "Any", files: Files) -> None:
    """Have `pkgutil` list the modules in folders here."""
    from functools import wraps

    os: Any = module.os
    suffixes = tuple(module.importlib.machinery.all_suffixes())
    get_importer = module.get_importer

    def isdir(path: str) -> bool:
        names = files.names(path)
        return os.path.isdir(path) if names is None else type(names) is list

    def listdir(path: str) -> "list[str]":
        names = files.names(path)
        if type(names) is not list:
            listed: list[str] = os.listdir(path)
            return listed
        # The others are looked at whether they are folders, and then left out.
        return [name for name in names if "." not in name or name.endswith(suffixes)]

    @wraps(get_importer)
    def known_importer(path_item: "Any") -> "Any":
        is_folder = type(files.names(path_item)) is list and path_item not in sys.path_importer_cache
        if is_folder and [getattr(hook, "__qualname__", "") for hook in sys.path_hooks[:2]] == HOOKS:
            sys.path_importer_cache[path_item] = FileFinder(path_item, *_get_supported_file_loaders())
        return get_importer(path_item)

    looks = stand_in(os, {"listdir": listdir, "path": stand_in(os.path, {"isdir": isdir})})
    lists = module._iter_file_finder_modules
    known_lists = type(lists)(lists.__code__, {**lists.__globals__, "os": looks}, lists.__name__, lists.__defaults__)
    module._iter_file_finder_modules = known_lists
    module.iter_importer_modules.register(FileFinder, known_lists)
    module.get_importer = known_importer


REDIRECTED: "dict[str, Callable[[ModuleType, Files], None]]" = {
    "importlib.metadata": redirect_metadata,
    "importlib_metadata": redirect_metadata,
    "pkgutil": redirect_pkgutil,
}
"""The modules that ask for files and folders, and how they are led here."""


def stand_in(module: "ModuleType", replaced: "dict[str, Any]") -> "ModuleType":
    """Return a module like this one, in which some names mean something else."""
    copy = type(sys)(module.__name__)
    copy.__dict__.update(module.__dict__)
    copy.__dict__.update(replaced)
    return copy
