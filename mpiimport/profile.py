"""The profile: what the ranks of earlier runs of this program asked, read by the root before the forecast.

The core writes it when MPI ends, see `rust/src/profile.rs`. What another user could have written is not used.
"""

import _imp
import posix
import sys

from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpiimport.opening import Question

FORMAT = b"mpiimport profile 1"


class DistrustedError(Exception):
    """Somebody else could have written this file; says how."""


class Profile:
    """One file of questions. `path` is where it is, or None where there is no place for it."""

    def __init__(self, chosen: str, kind: str, target: str, program_path: "list[str]") -> None:
        """Choose the file: `chosen` is the setting, `program_path` is `sys.path` as the program finds it."""
        fields = {
            "program": "%s %s" % (kind, target),
            "python": "%s %s" % (sys.implementation.cache_tag, sys.version),
            "options": "-" + "O" * sys.flags.optimize,
            "prefix": "%s %s" % (sys.prefix, sys.exec_prefix),
            "path": ":".join(program_path),
        }
        lines = [FORMAT, *(("%s %s" % (name, ascii(value)[1:-1])).encode() for name, value in fields.items())]
        self.header = b"".join(line + b"\n" for line in lines)
        self.earlier = b""
        self.path: str | None = chosen
        if chosen == "auto":
            folder = cache_folder()
            name = "".join(letter if letter.isalnum() else "-" for letter in target.rpartition("/")[2][:40])
            digest = _imp.source_hash(0, self.header).hex()
            self.path = folder and "%s/profiles/%s-%s.profile" % (folder, name or kind, digest)

    def read(self) -> "str | None":
        """Read what is there. Return why it is not used, or None."""
        if self.path is None:
            return "there is no home folder for a cache; set MPIIMPORT_CACHE_DIR"
        try:
            text = read_own(self.path)
        except FileNotFoundError:
            return None
        except OSError as cause:
            return "cannot read the profile `%s`: %s" % (self.path, cause.strerror)
        except DistrustedError as cause:
            return "the profile `%s` is not used: %s" % (self.path, cause)
        header, end, body = text.partition(b"\n\n")
        if header + b"\n" != self.header or not end:
            return "the profile `%s` is not used: it is of another program, Python, or version of mpiimport" % self.path
        lines = body.split(b"\n")
        if lines.pop() or not all(line[: line.find(b"\t")].isdigit() for line in lines):
            return "the profile `%s` is not used: it is damaged" % self.path
        self.earlier = body
        return None

    def asked(self, kind: str) -> "list[tuple[str, tuple[str, ...]]]":
        """Return the questions of this kind: their first field, and the others."""
        found = []
        known: dict[str, tuple[str, ...]] = {}  # most folders are asked for many names
        for line in self.earlier.decode("utf-8", "surrogateescape").split("\n"):
            _, _, question = line.partition("\t")
            this, _, fields = question.partition("\t")
            if this == kind:
                first, _, rest = fields.partition("\t")
                found.append((first, known.setdefault(rest, tuple(rest.split("\t")))))
        return found

    def modules(self) -> "list[Question]":
        """Return the questions for modules."""
        return [(folders, fullname) for fullname, folders in self.asked("module")]


def cache_folder() -> "str | None":
    """Return where mpiimport keeps what serves the next run, or None."""
    chosen = boot.environment("MPIIMPORT_CACHE_DIR")
    if chosen:
        return chosen
    base = boot.environment("XDG_CACHE_HOME")
    if not base or base[:1] != "/":
        home = boot.environment("HOME")
        if not home or home[:1] != "/":
            return None
        base = home + "/.cache"
    return base + "/mpiimport"


def open_own(path: str, owners: "tuple[int, ...]") -> int:
    """Open a file that only these users can have written. Raises OSError, or DistrustedError if others can."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    status = posix.fstat(descriptor)
    reason = None
    if status.st_mode & 0o170000 != 0o100000:
        reason = "it is no file"
    elif status.st_uid not in owners:
        reason = "it belongs to another user"
    elif status.st_mode & 0o022:
        reason = "others can write to it; chmod go-w would mend that"
    if reason is not None:
        posix.close(descriptor)
        raise DistrustedError(reason)
    return descriptor


def read_own(path: str) -> bytes:
    """Read a file that only this user can have written. Raises OSError, or DistrustedError if others can."""
    descriptor = open_own(path, (posix.geteuid(),))
    try:
        parts = []
        while part := posix.read(descriptor, 1 << 24):
            parts.append(part)
        return b"".join(parts)
    finally:
        posix.close(descriptor)
