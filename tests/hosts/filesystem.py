"""The slow filesystem, seen from a test: its counts, speed and faults. What it is stands in slowfs/src/main.rs."""

import collections
import contextlib
import socket
import subprocess
from pathlib import Path

import mpi as mpis

TARGET = mpis.ROOT / "target" / "slowfs"
PROGRAM = TARGET / "release" / "slowfs"

# What a host may keep of the shared filesystem: nothing, so that each operation is counted; or what real clients keep.
NO_CACHE = {"ttl_s": 0, "keep_cache": 0}
CLIENT_CACHE = {"ttl_s": 5, "keep_cache": 1}


def build():
    """Build it where it is not up to date."""
    manifest = Path(__file__).resolve().parent / "slowfs" / "Cargo.toml"
    argv = ["cargo", "build", "--quiet", "--release", "--locked", "--manifest-path", manifest, "--target-dir", TARGET]
    subprocess.run(argv, check=True, timeout=600)


class Count(collections.namedtuple("Count", "host rank caller operation count size_bytes")):
    """How often a caller asked for an operation. Where it is no rank, `rank` is None and `caller` is `(its name)`."""

    @classmethod
    def read(cls, line):
        host, caller, operation, count, size_bytes = line.split("\t")
        return cls(host, _rank(caller), caller, operation, int(count), int(size_bytes))


class Traced(collections.namedtuple("Traced", "seconds host rank caller operation size_bytes path")):
    """One operation, with the path it was about."""

    @classmethod
    def read(cls, line):
        seconds, host, caller, operation, size_bytes, path = line.split("\t")
        return cls(float(seconds), host, _rank(caller), caller, operation, int(size_bytes), path)


def _rank(caller):
    return int(caller) if caller.isdigit() else None


class Stats:
    """What was asked, and how long the servers worked for it."""

    def __init__(self, text):
        busy, *lines = text.splitlines()
        self.metadata_busy_s, self.data_busy_s = map(float, busy.split("\t")[1:])
        self.counts = [Count.read(line) for line in lines]

    def count(self, **wanted):
        """Return the number of operations of this `host`, `rank`, `caller`, `operation`, where one is given."""
        return sum(count.count for count in self._of(wanted))

    def size_bytes(self, **wanted):
        """Return the bytes read and written by this `host`, `rank`, `caller`, `operation`, where one is given."""
        return sum(count.size_bytes for count in self._of(wanted))

    def _of(self, wanted):
        return [count for count in self.counts if all(getattr(count, name) == value for name, value in wanted.items())]

    def __repr__(self):
        lines = [
            "%-6s %-12s %-15s %8d %12d" % (c.host, c.caller, c.operation, c.count, c.size_bytes) for c in self.counts
        ]
        return "\n".join(["metadata server busy %.3f s" % self.metadata_busy_s, *lines])


class Filesystem:
    """Commands to the slow filesystem that listens at a socket."""

    def __init__(self, control):
        self._control = control

    def stats(self):
        """Return what was asked since the start, or the last `reset`."""
        return Stats(self._ask("stats"))

    def reset(self):
        """Count from now."""
        self._ask("reset")

    def set(self, **settings):
        """Change `service_us`, `latency_us`, `read_us`, `mb_per_s`, `ttl_s`, `keep_cache`, from now."""
        for name, value in settings.items():
            self._ask("set", name.replace("_", "-"), value)

    @contextlib.contextmanager
    def trace(self):
        """Record each operation; the list is filled when the block is left."""
        operations = []
        self._ask("trace", "start")
        yield operations
        operations += map(Traced.read, self._ask("trace", "stop").splitlines())

    def eio(self, host, *place):
        """Let a host's operations fail; with a path, those below it; with the name of an operation, only these."""
        self._ask("eio", host, *place)

    def hang(self, host, *place):
        """Let a host's operations wait for `heal`; see `eio`. Who waits cannot be killed, as with a real one."""
        self._ask("hang", host, *place)

    def held(self, host):
        """Return how many operations of a host wait for `heal`."""
        return int(self._ask("held", host))

    def heal(self, host):
        """End `eio` or `hang`."""
        self._ask("heal", host)

    def _ask(self, *words):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(self._control)
            control.sendall((" ".join(map(str, words)) + "\n").encode())
            answer = b"".join(iter(lambda: control.recv(1 << 20), b"")).decode()
        if answer.startswith("error: "):
            raise ValueError(answer[len("error: ") :].strip())
        return answer
