"""The file operations of the ranks of a job, as strace saw them. What they mean is for others to say."""

import re
from pathlib import Path
from typing import NamedTuple

CALLS = "%file,fstat,write"
"""What is traced: calls that take a path, `fstat`, and what ranks say on standard error."""

# Each rank says its number in another variable; strace follows its threads and children, each into a file.
TRACED_RANK = 'exec strace -ff -y -qq -s 300 -e trace=%s -e signal=none -o "$0/${PMI_RANK-$OMPI_COMM_WORLD_RANK}" "$@"'

CALL = re.compile(
    r"(?P<name>\w+)\("
    r"(?:(?:AT_FDCWD|(?P<number>\d+))(?:<(?P<base>[^>]*)>)?(?:, |(?=\))))?"
    r'(?:"(?P<path>(?:[^"\\]|\\.)*)"(?:\.\.\.)?)?'
    r"(?P<rest>.*?)\)? += (?:\?|-?\w+)(?:<[^>]*>)?(?: (?P<error>E[A-Z0-9]+) \(.*)?$"
)
KINDS = {
    "openat": "open",
    "newfstatat": "stat",
    "lstat": "stat",
    "statx": "stat",
    "readlinkat": "readlink",
    "faccessat": "access",
    "faccessat2": "access",
}


class Operation(NamedTuple):
    """One file operation."""

    kind: str
    """`open`, `list` (a folder is opened), `stat`, `lstat`, `fstat`, `readlink`, `access`, else the call's name."""
    path: str
    error: str
    """The name of the error, empty for none."""


class Said(NamedTuple):
    """A line that a rank wrote to standard error, among its operations."""

    line: str


def trace(mpi, ranks, folder, *program, **keywords):
    """Run a program on some ranks of an MPI. Return what each of them did, a list of `Operation` and `Said` per rank.

    `folder` is an empty one, for the traces. Threads and child processes come after the rank's main thread.
    """
    result = mpi.run(ranks, "sh", "-c", TRACED_RANK % CALLS, folder, *program, **keywords)
    if result.returncode != 0:
        raise RuntimeError("`%s` failed: %r" % (" ".join(map(str, program)), result))
    return [
        [event for file in sorted(Path(folder).glob("%d.*" % rank), key=process) for event in events(file)]
        for rank in range(ranks)
    ]


def process(file):
    """Return the process id in the name of a trace."""
    return int(file.suffix[1:])


def events(file):
    """Read one trace."""
    with file.open(errors="replace") as lines:
        for line in lines:
            call = CALL.match(line)
            if call is None:
                continue
            name, number, base, path, rest, error = call.group("name", "number", "base", "path", "rest", "error")
            if name == "write":
                if number == "2":
                    yield from (Said(said) for said in (path or "").split("\\n") if said)
                continue
            if name.startswith("symlink"):  # what comes first is a text; the link itself is in a node store
                continue
            kind = KINDS.get(name, name)
            if not path and number is not None:
                kind, path = "fstat", base
            elif kind == "open" and "O_DIRECTORY" in rest:
                kind = "list"
            elif "AT_SYMLINK_NOFOLLOW" in rest or name == "lstat":
                kind = "lstat"
            path = (path or "").replace("\\", "")
            if not path.startswith("/"):
                path = "%s/%s" % (base or "", path)
            yield Operation(kind, normal(path), error or "")


def normal(path):
    """Return a path without `.`, `..` and empty parts, links not followed."""
    parts = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def below(events, folders):
    """Return those of the operations that are on these folders and what is in them, and all that was said."""
    prefixes = tuple("%s/" % folder for folder in folders)
    return [event for event in events if type(event) is Said or (event.path + "/").startswith(prefixes)]
