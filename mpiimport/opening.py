"""An opening: answers foreseen and found by the root, packed into one message that each host holds once.

Format, between ranks that run the same Python: 8 bytes with the size of the index, the marshalled index, and a body of
marshalled records, compressed code, and files. A rank unmarshals the index, and of the body only what its program asks
for.
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

    from mpiimport.answers import Witness
    from mpiimport.profile import Profile

    Question = tuple[tuple[str, ...], str]


class Opening:
    """What the root puts together: answers by question, and the folders whose every importable name is known.

    A question is the folders searched and a full name. `listings` maps a folder to the first parts of its file names,
    up to a dot: a module whose name is not among them is not there. `changing` maps folders outside the environment to
    their modification times in ns. `files` and `folders` are data files and the names in folders that programs ask
    for themselves, or the number of the error that they give. `native` is what `Native.plan` chose; `profile` is where
    the root keeps what is asked from now on; `extra` is what travels with the opening for the one who asked for it.
    """

    def __init__(self, stable: "tuple[str, ...]", *, shares_misses: bool = True) -> None:
        self.stable = stable
        self.shares_misses = shares_misses
        self.answers: dict[Question, Answer] = {}
        self.listings: dict[str, frozenset[str] | None] = {}
        self.changing: dict[str, int | None] = {}
        self.files: dict[str, bytes | int] = {}
        self.folders: dict[str, list[str] | int] = {}
        self.links: dict[str, str] = {}
        self.native: Any = ([], [], {}, {}, 0)
        self.profile: Profile | None = None
        self.extra: Any = None

    def add(self, fullname: str, answer: Answer) -> None:
        """Add the answer to a question."""
        self.answers[tuple(answer.path), fullname] = answer

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

    def shortened(self, witness: "Witness", path: "tuple[str, ...]") -> "Witness | int":
        """Return of a folder that is in `changing` as it was only where it stands on the path."""
        folder, modified_ns, size_bytes = witness
        if size_bytes is None and folder in self.changing and self.changing[folder] == modified_ns and folder in path:
            return path.index(folder)
        return witness

    def pack(self, *, with_code: bool = True) -> "list[bytes]":
        """Return the message in parts; without the code of modules if every rank is to read that itself."""
        body: list[bytes | memoryview] = []
        end = 0

        def append(data: "bytes | memoryview") -> int:
            nonlocal end
            body.append(data)
            end += len(data)
            return end - len(data)

        records: dict[tuple[str, ...], dict[str, int]] = {}
        for (path, fullname), found in self.answers.items():
            code = (append(found.code), len(found.code)) if with_code and found.code is not None else None
            witnesses = [self.shortened(one, path) for one in found.witnesses]
            record = (found.kind, found.origin, found.locations, witnesses, code)
            records.setdefault(path, {})[fullname] = append(marshal.dumps(record))
        listings = {
            folder: append(marshal.dumps(stems)) for folder, stems in self.listings.items() if stems is not None
        }
        files = {
            path: data if isinstance(data, int) else (append(data), len(data)) for path, data in self.files.items()
        }
        folders = {
            folder: names if isinstance(names, int) else (append(marshal.dumps(names)),)
            for folder, names in self.folders.items()
        }
        index = {
            "records": records,
            "listings": listings,
            "changing": self.changing,
            "files": files,
            "folders": folders,
            "links": self.links,
            "native": self.native,
            "shares_misses": self.shares_misses,
            "takes_notes": self.profile is not None,
            "extra": self.extra,
        }
        return [*packed(index), b"".join(body)]


def packed(index: "dict[str, Any]") -> "list[bytes]":
    """Return the parts of a message that stand before its body."""
    data = marshal.dumps(index)
    return [len(data).to_bytes(8, "little"), data]


class Received:
    """An opening as a rank has it: the index unmarshalled, the body shared with the other ranks of the host."""

    def __init__(self, message: "bytes | memoryview") -> None:
        view = memoryview(message)
        start = 8 + int.from_bytes(view[:8], "little")
        self.body = view[start:]
        self.size_bytes = len(view)
        index = marshal.loads(view[8:start])
        self.records: dict[tuple[str, ...], dict[str, int]] = index["records"]
        self.listings: dict[str, int] = index["listings"]
        self.changing: dict[str, int | None] = index["changing"]
        self.files: dict[str, tuple[int, int] | int] = index["files"]
        self.folders: dict[str, tuple[int] | int] = index["folders"]
        self.links: dict[str, str] = index["links"]
        self.native: Any = index["native"]
        self.shares_misses: bool = index["shares_misses"]
        self.takes_notes: bool = index["takes_notes"]
        self.extra: Any = index["extra"]

    def is_wanted(self) -> bool:
        """Whether anything is to be gained by asking this opening, or by asking once for all ranks of a host."""
        return bool(self.shares_misses or self.records or self.takes_notes)

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

    def record(self, fullname: str, folders: "list[str]") -> "tuple[Any, ...] | None":
        """Return what was foreseen of a question: (kind, origin, locations, witnesses, place of the code), or None."""
        offset = self.records.get(tuple(folders), {}).get(fullname)
        return None if offset is None else marshal.loads(self.body[offset:])

    def foresaw(self, fullname: str, folders: "list[str]") -> bool:
        """Whether this opening has source for this question, though maybe not what is in the file by now."""
        record = self.record(fullname, folders)
        return record is not None and record[0] == answers.SOURCE

    def answer(self, fullname: str, folders: "list[str]", unchanged: "set[Witness] | None" = None) -> "Answer | None":
        """Return the answer to a question, or None if the opening does not know it. For `unchanged` see `holds`."""
        record = self.record(fullname, folders)
        if record is not None:
            kind, origin, locations, witnesses, code = record
            witnesses = [
                (folders[one], self.changing[folders[one]], None) if type(one) is int else one for one in witnesses
            ]
            data = self.body[code[0] : code[0] + code[1]] if code is not None else None
            found = Answer(folders, kind, origin, locations, data, witnesses)
            return found if not witnesses or answers.holds(found, fullname, unchanged) else None
        name = fullname.rpartition(".")[2]
        for folder in folders:
            listed = self.listings.get(folder)
            if listed is None or name in marshal.loads(self.body[listed:]):
                return None
        missing = Answer(folders, answers.MISSING)
        if self.changing:
            missing.witnesses = [(folder, self.changing[folder], None) for folder in folders if folder in self.changing]
            if not answers.holds(missing, fullname, unchanged):
                return None
        return missing

    def file(self, path: str) -> "bytes | int":
        """Return what is in a file of this opening, or the number of the error that opening it gives."""
        place = self.files[path]
        return place if isinstance(place, int) else bytes(self.body[place[0] : place[0] + place[1]])

    def folder(self, path: str) -> "list[str] | int":
        """Return the names in a folder of this opening, or the number of the error that listing it gives."""
        place = self.folders[path]
        if isinstance(place, int):
            return place
        names: list[str] = marshal.loads(self.body[place[0] :])
        return names


def is_file(path: str) -> bool:
    """Whether there is something at this path that is no folder: an archive."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
