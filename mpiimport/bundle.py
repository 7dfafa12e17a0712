"""The bundle: the openings of a program, made ahead of time into one file that the root reads instead of the tree.

Format 1: the line `mpiimport bundle 1`; the size in bytes of the table of contents, and its CRC-32, as 8 and 4
little-endian bytes; the table, a marshalled dict; and the sections that it lists, one after another: the index and the
body of the opening for `site` and of the one for the program (see `opening.py`), then the native libraries.
"""

import marshal
import posix
import sys
from time import time

from mpiimport import _core, answers
from mpiimport.opening import packed
from mpiimport.profile import DistrustedError, open_own
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Optional

    from mpiimport.native import Native
    from mpiimport.opening import Opening

    State = Optional[tuple[int, int]]
    """Of a file or folder: (time of modification in ns, size in bytes), or None."""

MAGIC = b"mpiimport bundle "
FORMAT = b"1"
PIECE_BYTES = 8 << 20


class UnusableError(Exception):
    """Why a bundle cannot be used, as the rest of a sentence that begins with it."""


class Bundled:
    """An opening out of a bundle: its index, and what stands behind that. It takes the place of an `Opening`."""

    def __init__(self, index: "dict[str, Any]", *body: bytes) -> None:
        self.index = index
        self.body = list(body)
        self.profile = None

    def pack(self, *, with_code: bool = True) -> "list[bytes]":  # noqa: ARG002
        """Return the message in parts; a bundle has the code of its modules, so every rank gets it."""
        return [*packed(self.index), *self.body]

    def move(self, before: str, now: str, modified_ns: "int | None", stems: "frozenset[str]") -> None:
        """Let what was found on a search path with the folder `before` hold for one with `now` in its place.

        Where a name came or went there, nothing is said of it. `before` may be `now`, with other files in it.
        """
        body = b"".join(self.body)
        listed = self.index["listings"].pop(before, None)
        known = frozenset() if listed is None else marshal.loads(memoryview(body)[listed:])
        differing = known ^ stems if before == now else known | stems
        records = {}
        for folders, offsets in self.index["records"].items():
            if before in folders:
                folders = tuple([now if folder == before else folder for folder in folders])
                offsets = {name: at for name, at in offsets.items() if name.rpartition(".")[2] not in differing}
            records[folders] = offsets
        self.index["records"] = records
        self.index["listings"][now] = len(body)
        self.body = [body, marshal.dumps(stems)]
        changing = self.index["changing"]
        if before in changing:
            del changing[before]
            changing[now] = modified_ns


class Bundle:
    """A bundle that was read. Raises FileNotFoundError, or UnusableError."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            descriptor = open_own(path, (posix.geteuid(), 0, posix.stat(boot.own_folder()).st_uid))
        except DistrustedError as cause:
            raise UnusableError("is not used: %s" % cause) from None
        try:
            self.size_bytes = posix.fstat(descriptor).st_size
            self.table = self.read_table(descriptor)
            sections: list[tuple[str, int, int]] = self.table["sections"]
            if self.end + sum(size for _, size, _ in sections) != self.size_bytes:
                raise UnusableError("is truncated. Make it again")
            parts = []
            for _, size, checksum in sections[:4]:
                parts.append(read(descriptor, size))
                if _core.crc32(parts[-1]) != checksum:
                    raise UnusableError("is damaged. Make it again")
        finally:
            posix.close(descriptor)
        self.site = Bundled(marshal.loads(parts[0]), parts[1])
        self.program = Bundled(marshal.loads(parts[2]), parts[3])
        self.native: dict[str, tuple[int, int, int]] = {}
        at = self.end + sum(map(len, parts))
        for name, size, checksum in sections[4:]:
            self.native[name] = (at, size, checksum)
            at += size

    def read_table(self, descriptor: int) -> "dict[str, Any]":
        """Read the table of contents; `end` is where the sections begin."""
        head = read(descriptor, len(MAGIC) + len(FORMAT) + 1 + 12)
        if head[: len(MAGIC)] != MAGIC:
            raise UnusableError("is no bundle of mpiimport")
        if len(head) < len(MAGIC) + len(FORMAT) + 1 + 12:
            raise UnusableError("is truncated. Make it again")
        if head[len(MAGIC) : -12] != FORMAT + b"\n":
            raise UnusableError("is of another version of mpiimport. Make it again")
        size, checksum = int.from_bytes(head[-12:-4], "little"), int.from_bytes(head[-4:], "little")
        self.end = len(head) + size
        if self.end > self.size_bytes:
            raise UnusableError("is truncated. Make it again")
        data = read(descriptor, size)
        if _core.crc32(data) != checksum:
            raise UnusableError("is damaged. Make it again")
        table: dict[str, Any] = marshal.loads(data)
        return table

    def check(self, identity: "dict[str, str]", *, stat: bool) -> None:
        """Raise UnusableError if this is not for this Python, or, with `stat`, if what it was made of has changed."""
        for what, value in identity.items():
            if self.table["identity"].get(what) != value:
                raise UnusableError(
                    "is for another %s (`%s`, and this is `%s`). Make one for this"
                    % (what, self.table["identity"].get(what), value)
                )
        if stat:
            states: dict[str, State] = self.table["states"]
            for path, found in zip(states, _core.states(list(states))):
                if not same(found, states[path]):
                    raise UnusableError("is out of date: `%s` has changed since it was made. Make it again" % path)

    def place(self, path0: "str | None", *, stat: bool) -> None:
        """Let the program's opening hold for a program whose folder is `path0`, and for folders as they are now."""
        before = self.table["path0"]
        moved = [(before, path0)] if before is not None and path0 not in (before, None) else []
        if stat:
            changing: dict[str, int | None] = self.program.index["changing"]
            for (folder, modified_ns), found in zip(list(changing.items()), _core.states(list(changing))):
                if (found[0] if found else None) != modified_ns and (folder, path0) not in moved:
                    moved.append((folder, folder))
        if not moved:
            return
        modules = _core.Modules([], b"", "", None)
        modules.list([now for _, now in moved])
        known = modules.folders()
        for folder, now in moved:
            modified_ns, stems = known.get(now, (answers.modified(now), frozenset()))
            self.program.move(folder, now, modified_ns, stems)

    def limit(self, native: "Native", *, wanted: bool) -> None:
        """Leave out of the openings what this job does not copy to its hosts."""
        for one in (self.site, self.program):
            files, links, libraries, folders, _ = one.index["native"]
            sizes = {path: self.native[path][1] for path in files} if wanted else {}
            total = native.fit(sizes)
            one.index["native"] = (list(sizes), links, libraries, folders, total) if sizes else ([], [], {}, {}, 0)


def same(found: "State", known: "State") -> bool:
    """Whether a file, or a folder, whose size says nothing and is kept as -1, is as it was."""
    if found is None or known is None:
        return found is known
    return found[0] == known[0] and known[1] in (-1, found[1])


def read(descriptor: int, size_bytes: int) -> bytes:
    """Read so many bytes, or up to the end of the file."""
    data = posix.read(descriptor, size_bytes)
    while len(data) < size_bytes:
        more = posix.read(descriptor, size_bytes - len(data))
        if not more:
            break
        data += more
    return data


def identity() -> "dict[str, str]":
    """Return what decides which modules a Python finds, in words for messages."""
    return {
        "version of mpiimport": _core.__version__,
        "Python": "%s %s" % (sys.implementation.cache_tag, sys.version),
        "interpreter": sys.executable,  # it decides on the prefix, which `site` has not settled yet
        "optimization level": str(sys.flags.optimize),
        "PYTHONPATH": boot.environment("PYTHONPATH") or "",
    }


def write(path: str, program: str, path0: "str | None", site: "Opening", opening: "Opening") -> int:
    """Make a bundle of two openings; it has its name once it is whole. Return its size in bytes. Raises OSError."""
    files = sorted({*site.native[0], *opening.native[0]})
    sections: list[tuple[str, int, int]] = []
    parts: list[bytes] = []
    for name, one in (("site", site), ("program", opening)):
        size, index, *body = one.pack()
        del size
        for kind, data in (("index", index), ("body", b"".join(body))):
            parts.append(data)
            sections.append(("%s %s" % (name, kind), len(data), _core.crc32(data)))
    for file in files:
        checksum = size_bytes = 0
        for piece in pieces(file):
            checksum = _core.crc32(piece, checksum)
            size_bytes += len(piece)
        sections.append((file, size_bytes, checksum))
    rests = sorted({*files, *rests_on(site), *rests_on(opening)})
    table = {
        "identity": identity(),
        "program": program,
        "path0": path0,
        "created": time(),
        "sections": sections,
        "states": {path: kept(path, state) for path, state in zip(rests, _core.states(rests))},
    }
    data = marshal.dumps(table)
    head = b"%s%s\n%s%s" % (MAGIC, FORMAT, len(data).to_bytes(8, "little"), _core.crc32(data).to_bytes(4, "little"))
    unfinished = "%s.%d" % (path, posix.getpid())
    descriptor = posix.open(unfinished, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o644)
    try:
        try:
            written = sum(put(descriptor, part) for part in (head, data, *parts))
            written += sum(put(descriptor, piece) for file in files for piece in pieces(file))
            posix.fchmod(descriptor, posix.fstat(descriptor).st_mode & ~0o022)
        finally:
            posix.close(descriptor)
        posix.rename(unfinished, path)
    except BaseException:
        posix.unlink(unfinished)
        raise
    return written


def rests_on(opening: "Opening") -> "Iterable[str]":
    """Yield the files and folders of the environment that an opening rests on."""
    for answer in opening.answers.values():
        if answer.origin is not None and answer.origin.startswith(opening.stable):
            yield answer.origin
    for folder in opening.listings:
        if folder not in opening.changing:
            yield folder
    yield from opening.files
    yield from opening.folders
    yield from opening.links
    if type(opening.extra) is dict:  # what `site` looked at
        for _, path in opening.extra:
            yield path


def kept(path: str, state: "State") -> "State":
    """Return what is kept of a state: a folder's size says nothing."""
    if state is not None and posix.stat(path).st_mode & 0o170000 == 0o040000:
        return state[0], -1
    return state


def pieces(path: str) -> "Iterable[bytes]":
    """Yield the content of a file."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        while piece := posix.read(descriptor, PIECE_BYTES):
            yield piece
    finally:
        posix.close(descriptor)


def put(descriptor: int, data: bytes) -> int:
    """Write all of this. Return its size in bytes."""
    view = memoryview(data)
    while view:
        view = view[posix.write(descriptor, view) :]
    return len(data)
