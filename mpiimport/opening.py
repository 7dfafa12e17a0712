"""An opening: answers foreseen and found by the root, packed into one message that each host holds once.

Format, between ranks that run the same Python: 8 bytes with the size of the index, the marshalled index, and a body of
marshalled records and code. A rank unmarshals the index, and of the body only what its program asks for.
"""

import marshal
import posix
import sys
from _frozen_importlib_external import (  # type: ignore[attr-defined]
    FileFinder,
    PathFinder,
    _get_supported_file_loaders,
)

from mpiimport import answers
from mpiimport.answers import Answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Opening:
    """What the root puts together: answers by full name, and the folders whose every importable name is known.

    `listings` maps a folder to the first parts of its file names, up to a dot: a module whose name is not among them
    is not there. `changing` maps folders outside the environment to their modification times in ns. `native` is what
    `Native.plan` chose; `extra` is what travels with the opening for the one who asked for it.
    """

    def __init__(self, stable: "tuple[str, ...]") -> None:
        self.stable = stable
        self.answers: dict[str, Answer] = {}
        self.listings: dict[str, frozenset[str] | None] = {}
        self.changing: dict[str, int | None] = {}
        self.native: Any = ([], [], {}, {}, 0)
        self.extra: Any = None

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
                if not (folder + "/").startswith(self.stable):
                    self.changing[folder] = None
            except (OSError, ValueError):
                stems = None
        self.listings[folder] = stems
        return stems

    def extensions(self) -> "list[str]":
        """List the origins of the extension modules that were foreseen."""
        return [found.origin for found in self.answers.values() if found.kind == answers.EXTENSION and found.origin]

    def pack(self, *, with_code: bool = True) -> bytes:
        """Return the message; without the code of modules if every rank is to read that itself."""
        body: list[bytes | memoryview] = []
        end = 0

        def append(data: "bytes | memoryview") -> int:
            nonlocal end
            body.append(data)
            end += len(data)
            return end - len(data)

        paths: dict[tuple[str, ...], int] = {}
        records = {}
        for fullname, found in self.answers.items():
            code = (append(found.code), len(found.code)) if with_code and found.code is not None else None
            path = paths.setdefault(tuple(found.path), len(paths))
            record = (path, found.kind, found.origin, found.locations, found.witnesses, code)
            records[fullname] = append(marshal.dumps(record))  # type: ignore[arg-type]
        listings = {
            folder: append(marshal.dumps(stems)) for folder, stems in self.listings.items() if stems is not None
        }
        index = marshal.dumps(
            ([*map(list, paths)], records, listings, self.changing, self.stable, self.native, self.extra)
        )
        return b"".join([len(index).to_bytes(8, "little"), index, *body])


class Received:
    """An opening as a rank has it: the index unmarshalled, the body shared with the other ranks of the host."""

    def __init__(self, message: "bytes | memoryview") -> None:
        view = memoryview(message)
        start = 8 + int.from_bytes(view[:8], "little")
        self.body = view[start:]
        self.size_bytes = len(view)
        self.paths: list[list[str]]
        self.records: dict[str, int]
        self.listings: dict[str, int]
        self.changing: dict[str, int | None]
        index = marshal.loads(view[8:start])
        self.paths, self.records, self.listings, self.changing, self.stable, self.native, self.extra = index

    def cache_importers(self, folders: "list[str]") -> None:
        """Have `PathFinder` know these folders, as it does in plain Python by the time a program adds path hooks."""
        for folder in folders:
            if folder in self.listings and folder not in sys.path_importer_cache:
                if folder in self.changing:
                    exists = self.changing[folder] is not None
                else:
                    exists = bool(marshal.loads(self.body[self.listings[folder] :]))
                importer: Any = FileFinder(folder, *_get_supported_file_loaders()) if exists else None
                sys.path_importer_cache[folder] = importer

    def foresaw(self, fullname: str, folders: "list[str]") -> bool:
        """Whether this opening has source for this question, though maybe not what is in the file by now."""
        offset = self.records.get(fullname)
        if offset is None:
            return False
        path, kind, *_ = marshal.loads(self.body[offset:])
        return kind == answers.SOURCE and self.paths[path] == folders

    def answer(self, fullname: str, folders: "list[str]") -> "Answer | None":
        """Return the answer to a question, or None if the opening does not know it."""
        offset = self.records.get(fullname)
        if offset is not None:
            path, kind, origin, locations, witnesses, code = marshal.loads(self.body[offset:])
            if self.paths[path] == folders:
                data = self.body[code[0] : code[0] + code[1]] if code is not None else None
                found = Answer(folders, kind, origin, locations, data, witnesses)
                return found if not witnesses or answers.holds(found, fullname) else None
        name = fullname.rpartition(".")[2]
        for folder in folders:
            listed = self.listings.get(folder)
            if listed is None or name in marshal.loads(self.body[listed:]):
                return None
        missing = Answer(folders, answers.MISSING)
        if self.changing:
            missing.witnesses = [(folder, self.changing[folder], None) for folder in folders if folder in self.changing]
            if not answers.holds(missing, fullname):
                return None
        return missing


def is_file(path: str) -> bool:
    """Whether there is something at this path that is no folder: an archive."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
