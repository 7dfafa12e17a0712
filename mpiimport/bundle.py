"""The bundle: the openings of a program, made ahead of time into one file that the root reads instead of the tree.

Its sections: the modules of mpiimport itself, which `boot.choose_bundle` has read; the states of what it rests on; the
index and the body of the opening for `site` and of the one for the program, see `opening.py`; the native libraries.
docs/reference/bundle.md has the format, and `rust/src/bundle.rs` reads it.
"""

import errno
import marshal
import posix
from time import time

from mpiimport import _core, answers
from mpiimport.opening import packed
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
FORMAT = b"3"
PIECE_BYTES = 8 << 20


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
    """A bundle that was opened. Raises ValueError with the rest of a sentence that begins with the file."""

    def __init__(self, opened: "_core.Bundle") -> None:
        self.opened = opened
        self.table: dict[str, Any] = marshal.loads(opened.table)
        self.sections: dict[str, tuple[int, int, int]] = {}
        at = opened.start
        for name, size, checksum in self.table["sections"]:
            self.sections[name] = (at, size, checksum)
            at += size
        if at != opened.size_bytes:
            raise ValueError("is truncated. Make it again")
        self.native = {name: place for name, place in self.sections.items() if name[0] == "/"}
        self.site = self.opening("site")
        self.program = self.opening("program")

    def read(self, name: str) -> bytes:
        """Read a section. Raises ValueError for a damaged one."""
        try:
            return self.opened.read(*self.sections[name])
        except OSError as cause:
            raise ValueError("cannot be read: %s" % cause.strerror) from None

    def opening(self, name: str) -> Bundled:
        """Read one of the openings."""
        return Bundled(marshal.loads(self.read(name + " index")), self.read(name + " body"))

    def check(self) -> None:
        """Raise ValueError if what this was made of has changed."""
        states: dict[str, State] = marshal.loads(self.read("states"))
        for path, found in zip(states, _core.states(list(states))):
            if not same(found, states[path]):
                raise ValueError("is out of date: `%s` has changed since it was made. Make it again" % path)

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


def write(path: str, program: str, path0: "str | None", site: "Opening", opening: "Opening") -> int:
    """Make a bundle of two openings; it has its name once it is whole. Return its size in bytes. Raises OSError."""
    if not boot.is_replaceable(path):
        raise OSError(errno.EEXIST, "that is no file")
    files = sorted({*site.native[0], *opening.native[0]})
    sections: list[tuple[str, int, int]] = []
    parts: list[bytes] = []

    def add(name: str, data: bytes) -> None:
        parts.append(data)
        sections.append((name, len(data), _core.crc32(data)))

    folder = boot.own_folder()
    rests = sorted({*files, *rests_on(site), *rests_on(opening)})
    states = {path: kept(path, state) for path, state in zip(rests, _core.states(rests))}
    add("mpiimport", marshal.dumps(boot.whole_package(boot.BUNDLED_PACKAGE, folder)))
    add("states", marshal.dumps(states))
    for name, one in (("site", site), ("program", opening)):
        _, index, *body = one.pack()
        add(name + " index", index)
        add(name + " body", b"".join(body))
    for file in files:
        checksum = size_bytes = 0
        for piece in pieces(file):
            checksum = _core.crc32(piece, checksum)
            size_bytes += len(piece)
        sections.append((file, size_bytes, checksum))
    table = {
        "identity": boot.identity(folder),
        "program": program,
        "path0": path0,
        "created": time(),
        "sections": sections,
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
