"""An opening: answers foreseen and found by the root, packed into one message.

Format, all of it in memory and between ranks that run the same Python: 8 bytes with the size of the index, the
marshalled index, then the code of all modules, end to end.
"""

import marshal
import posix
from _frozen_importlib_external import FileFinder, PathFinder

from mpiimport import answers
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Opening:
    """Answers by full name, and the folders whose every importable name is known.

    `listings` maps a folder to the first parts of its file names, up to a dot: a module whose name is not among them
    is not there. `changing` maps folders outside the environment to their modification times in ns. `native` is what
    `Native.plan` chose; `extra` is what travels with the opening for the one who asked for it.
    """

    def __init__(self, stable: "tuple[str, ...]") -> None:
        self.stable = stable
        self.answers: dict[str, Answer] = {}
        self.listings: dict[str, frozenset[str] | None] = {}
        self.changing: dict[str, int] = {}
        self.native: Any = ([], [], {}, {}, 0)
        self.extra: Any = None
        self.size_bytes = 0

    def list_folder(self, folder: str) -> "frozenset[str] | None":
        """Return the first parts of the names in a folder; empty for one that does not exist, None where unknown."""
        if folder in self.listings:
            return self.listings[folder]
        stems = None
        importer: object = False  # something that only its own finder can list
        if type(folder) is str:
            importer = PathFinder._path_importer_cache(folder)  # type: ignore[attr-defined]
        if importer is None or type(importer) is FileFinder:
            try:
                if not (folder + "/").startswith(self.stable):
                    self.changing[folder] = posix.stat(folder).st_mtime_ns
                stems = frozenset([name.partition(".")[0] for name in posix.listdir(folder)])
            except (FileNotFoundError, NotADirectoryError):
                stems = frozenset() if importer is None and not is_file(folder) else None
            except OSError:
                stems = None
        self.listings[folder] = stems
        return stems

    def answer(self, fullname: str, folders: "list[str]") -> "Answer | None":
        """Return the answer to a question, or None if the opening does not know it."""
        found = self.answers.get(fullname)
        if found is not None and found.path == folders:
            return found if not found.witnesses or answers.holds(found, fullname) else None
        name = fullname.rpartition(".")[2]
        listings = self.listings
        for folder in folders:
            stems = listings.get(folder)
            if stems is None or name in stems:
                return None
        missing = Answer(folders, answers.MISSING)
        if self.changing:
            missing.witnesses = [(folder, self.changing[folder], None) for folder in folders if folder in self.changing]
            if not answers.holds(missing, fullname):
                return None
        return missing

    def extensions(self) -> "list[str]":
        """List the origins of the extension modules that were foreseen."""
        return [found.origin for found in self.answers.values() if found.kind == answers.EXTENSION and found.origin]

    def pack(self, *, with_code: bool = True) -> bytes:
        """Return the message; without the code of modules if every rank is to read that itself."""
        index = []
        codes = []
        for fullname, found in self.answers.items():
            size_bytes = -1
            if with_code and found.code is not None:
                size_bytes = len(found.code)
                codes.append(found.code)
            index.append((fullname, found.path, found.kind, found.origin, found.locations, found.witnesses, size_bytes))
        listings = {folder: stems for folder, stems in self.listings.items() if stems is not None}
        packed = marshal.dumps((index, listings, self.changing, self.stable, self.native, self.extra))
        message = b"".join([len(packed).to_bytes(8, "little"), packed, *codes])
        self.size_bytes = len(message)
        return message


def unpack(message: "bytes | memoryview") -> Opening:
    """Return the opening that `pack` made into this message."""
    view = memoryview(message)
    start = 8 + int.from_bytes(view[:8], "little")
    index, listings, changing, stable, native, extra = marshal.loads(view[8:start])
    opening = Opening(stable)
    opening.listings, opening.changing = listings, changing
    opening.native, opening.extra = native, extra
    opening.size_bytes = len(message)
    for fullname, path, kind, origin, locations, witnesses, size_bytes in index:
        code = None
        if size_bytes >= 0:
            code = view[start : start + size_bytes]
            start += size_bytes
        opening.answers[fullname] = Answer(path, kind, origin, locations, code, witnesses)
    return opening


def is_file(path: str) -> bool:
    """Whether there is something at this path that is no folder: an archive."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
