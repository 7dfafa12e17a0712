"""The profile: what the ranks of earlier runs of this program asked, read by the root before the forecast.

The core writes it when MPI ends, see `rust/src/profile.rs`. What another user could have written is not used.
"""

import _imp
import posix
import sys

from mpiimport import _core
from mpiimport.session import PATH0
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mpiimport.opening import Question

KIND = b"mpiimport profile "
FORMAT = KIND + b"1"


class Profile:
    """One file of questions. `path` is where it is and will be, or None where there is no place for it."""

    def __init__(
        self, chosen: str, kind: str, target: str, program_path: "list[str]", path0: "str | None" = None
    ) -> None:
        """Choose the file: `chosen` is the setting, `program_path` is `sys.path` as the program finds it.

        `path0` is the absolute path of what is in `sys.path` for the program's sake. With `-m` and `-c` that is the
        current folder, and a program that is started elsewhere is still the same.
        """
        fields = {
            "program": "%s %s" % (kind, target),
            "python": "%s %s" % (sys.implementation.cache_tag, sys.version),
            "options": "-" + "O" * sys.flags.optimize,
            "prefix": "%s %s" % (sys.prefix, sys.exec_prefix),
            "path": ":".join(PATH0 if entry in ("", path0) else entry for entry in program_path),
        }
        lines = [FORMAT, *(("%s %s" % (name, ascii(value)[1:-1])).encode() for name, value in fields.items())]
        self.header = b"".join(line + b"\n" for line in lines)
        self.earlier = b""
        self.path0 = path0
        self.is_chosen = chosen not in ("auto", "always")
        self.path: str | None
        if self.is_chosen:
            self.path = absolute(chosen)
        else:
            folder = cache_folder()
            name = "".join(letter if letter.isalnum() else "-" for letter in target.rpartition("/")[2][:40])
            digest = _imp.source_hash(0, self.header).hex()
            self.path = folder and "%s/profiles/%s-%s.profile" % (folder, name or kind, digest)

    def read(self) -> "str | None":
        """Read what is there. Return why it is not used, or None.

        A file that the user named and that is no profile of this user is not written either.
        """
        path = self.path
        if self.is_chosen:
            self.path = None
        if path is None:
            return "there is no home folder for a cache; set MPIIMPORT_CACHE_DIR"
        try:
            text = _core.read_own(path)
            if self.is_chosen and not text.startswith(KIND):
                raise ValueError("is not used: it is no profile")
        except FileNotFoundError:
            self.path = path
            return None
        except OSError as cause:
            return "cannot read the profile `%s`: %s" % (path, cause.strerror)
        except ValueError as cause:
            return "the profile `%s` %s" % (path, cause)
        self.path = path
        header, end, body = text.partition(b"\n\n")
        if header + b"\n" != self.header or not end:
            return "the profile `%s` is not used: it is of another program, Python, or version of mpiimport" % path
        lines = body.split(b"\n")
        if lines.pop() or not all(line[: line.find(b"\t")].isdigit() for line in lines):
            return "the profile `%s` is not used: it is damaged" % path
        self.earlier = body
        return None

    def asked(self, kind: str) -> "list[tuple[str, tuple[str, ...]]]":
        """Return the questions of this kind: their first field, and the others."""
        found = []
        here = {PATH0: self.path0 or PATH0}
        known: dict[str, tuple[str, ...]] = {}  # most folders are asked for many names
        for line in self.earlier.decode("utf-8", "surrogateescape").split("\n"):
            _, _, question = line.partition("\t")
            this, _, fields = question.partition("\t")
            if this == kind:
                first, _, rest = fields.partition("\t")
                if rest not in known:
                    known[rest] = tuple(here.get(folder, folder) for folder in rest.split("\t"))
                found.append((here.get(first, first), known[rest]))
        return found

    def modules(self) -> "list[Question]":
        """Return the questions for modules."""
        return [(folders, fullname) for fullname, folders in self.asked("module")]


def absolute(path: str) -> str:
    """Return a path that stays the same when the program changes its folder."""
    if path[:1] == "/":
        return path
    try:
        return posix.getcwd() + "/" + path
    except OSError:  # the folder is gone
        return path


def cache_folder() -> "str | None":
    """Return where mpiimport keeps what serves the next run, or None."""
    chosen = boot.environment("MPIIMPORT_CACHE_DIR")
    if chosen:
        return absolute(chosen)
    base = boot.environment("XDG_CACHE_HOME")
    if not base or base[:1] != "/":
        home = boot.environment("HOME")
        if not home or home[:1] != "/":
            return None
        base = home + "/.cache"
    return base + "/mpiimport"
