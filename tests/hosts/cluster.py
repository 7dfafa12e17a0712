"""Several hosts on one machine: a cluster of namespaces with a slow shared filesystem, for tests to start MPI jobs on.

    with Cluster(hosts=4, writable=[folder]) as cluster:
        result = cluster.run([*cluster.mpi(MPICH, ranks_per_host=2), "python-mpi", folder / "program.py"])
        opened = cluster.filesystem.stats().count(host="h0", rank=1, operation="open")

A host has its own name, network, processes, IPC, /dev/shm, /tmp and /run. It sees the machine's system folders and the
shared paths, nothing else of the machine. The shared paths (Python's prefix, the virtual environment, the MPIs, and
what a test adds) stand where the machine has them and are seen through the slow filesystem, which has one cache per
host, one metadata server for all, and counts. All of it lives below one process, and ends with its creator.
"""

import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import mpi as mpis
from hosts import filesystem, launchers

LOGIN = "login"
START_LIMIT_S = 60
UNSHARE = ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "private"]
ENTER = ["nsenter", "--mount", "--net", "--ipc", "--pid", "--uts", "--target"]
RANK_VARIABLES = (b"OMPI_COMM_WORLD_RANK", b"PMI_RANK")


def unavailable():
    """Return None, or why no cluster can be started here."""
    if os.geteuid():
        return "simulated hosts need root"
    for tool in ("unshare", "nsenter", "sleep", "timeout"):
        if not shutil.which(tool):
            return "simulated hosts need `%s`" % tool
    if not os.path.exists("/dev/fuse"):
        return "simulated hosts need /dev/fuse"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        return "simulated hosts need rights that are missing here: %s" % tried.stderr.strip()
    try:
        filesystem.build()
        with Cluster(hosts=1):
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return "simulated hosts need their filesystem: %s" % error
    except RuntimeError as error:
        return "simulated hosts need rights that are missing here: %s" % str(error).splitlines()[-1]


def within(seconds, condition):
    """Wait until a condition holds; return whether it does."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return bool(condition())


def python_paths():
    """Return where this Python and its virtual environment lie."""
    if sys.base_prefix == "/usr":  # every node has /usr; what is Python's there is shared all the same
        found = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.realpath(sys.executable)]
    else:
        found = [sys.base_prefix, sys.base_exec_prefix]
    return [*found, sys.prefix]


class Cluster:
    """A login node, from which jobs are launched, and hosts `h0`, `h1`, ...; a context manager.

    :param hosts: how many.
    :param writable: paths that all nodes share and may write to.
    :param shared: further paths that all nodes share, besides Python, the virtual environment and the MPIs.
    :param layers: folders with an `etc` or `usr` of their own, which all nodes see laid over the machine's.
    :param shm_size, tmp_size: size of each node's /dev/shm, and of its /tmp and /var/tmp.
    :param settings: of the filesystem: `service_us`, the time of the metadata server for one operation, one after
        another; `latency_us`, the time of each on its way, side by side; `read_us` and `mb_per_s` of the data server;
        `ttl_s` and `keep_cache`, what hosts may keep: `NO_CACHE` or `CLIENT_CACHE`, which is the default.
    """

    def __init__(self, hosts=4, *, writable=(), shared=(), layers=(), shm_size="1g", tmp_size="1g", **settings):
        self.hosts = ["h%d" % number for number in range(hosts)]
        read_only = [*python_paths(), mpis.ROOT / ".mpi", *shared]
        settings = {**filesystem.CLIENT_CACHE, **settings}
        self._wanted = {
            "hosts": self.hosts,
            "shared": {**{str(path): True for path in read_only}, **{str(path): False for path in writable}},
            "settings": {name.replace("_", "-"): value for name, value in settings.items()},
            "layers": [str(path) for path in layers],
            "shm_size": shm_size,
            "tmp_size": tmp_size,
            "slowfs": str(filesystem.PROGRAM),
        }

    def __enter__(self):
        # What arrives at our end tells who sent it. When it is closed, however we end, the cluster ends.
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._line.settimeout(START_LIMIT_S)
        nodes = Path(__file__).resolve().parent / "nodes.py"
        with theirs:
            argv = [*UNSHARE, sys.executable, "-I", "-S", nodes, str(theirs.fileno())]
            descriptors = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "pass_fds": [theirs.fileno()]}
            self._process = subprocess.Popen(argv, text=True, **descriptors)
        try:
            with self._process.stdin as wanted:
                json.dump(self._wanted, wanted)
            self._pids = self._meet_nodes()
            self.filesystem = filesystem.Filesystem(str(self.seen_from_here("run/cluster/control", on=LOGIN)))
            self.filesystem.reset()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self._line.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()  # takes its child along
            self._process.wait()

    def _meet_nodes(self):
        pids = {}
        while True:
            text, sender = self._receive()
            if text == "ready":
                return pids
            if text not in (LOGIN, *self.hosts):
                raise RuntimeError("the cluster did not start: %s" % (text or "its first process ended"))
            pids[text] = sender

    def _receive(self):
        text, ancillary, _, _ = self._line.recvmsg(65536, socket.CMSG_SPACE(struct.calcsize("3i")))
        sender = struct.unpack("3i", ancillary[0][2])[0] if ancillary else None
        return text.decode(), sender

    # Programs

    def run(self, argv, *, on=LOGIN, env=None, timeout_s=mpis.LIMIT_S):
        """Run a program on a node to its end, at most `timeout_s` seconds."""
        began = time.monotonic()
        with self.start(argv, on=on, env=env, timeout_s=timeout_s) as program:
            try:
                stdout, stderr = program.communicate(timeout=timeout_s + 8)
            except subprocess.TimeoutExpired:  # frozen, or waiting for a filesystem that hangs
                program.kill()
                return mpis.Result(124, "", "it cannot be killed", time.monotonic() - began)
        return mpis.Result(program.returncode, stdout, stderr, time.monotonic() - began)

    def start(self, argv, *, on=LOGIN, env=None, timeout_s=mpis.LIMIT_S):
        """Start a program on a node, in a plain environment, for at most `timeout_s` seconds; return the `Popen`."""
        return subprocess.Popen(
            list(map(str, [*ENTER, self._pids[on], "--", "timeout", "-k", "5", timeout_s, *argv])),
            env={**mpis.clean_environment(), "HOME": "/root", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def mpi(self, mpi, ranks_per_host, *, hosts=None, env=None):
        """Return the command line of an MPI's launcher, for the login node, to be followed by the program."""
        always = {**mpis.FIRST_RUN, "PATH": mpis.clean_environment()["PATH"], "LD_LIBRARY_PATH": mpi.prefix / "lib"}
        return launchers.command(mpi, hosts or self.hosts, ranks_per_host, {**always, **(env or {})})

    def seen_from_here(self, path, *, on):
        """Return where a file of a node can be read by the test itself, while the node lives."""
        return Path("/proc/%d/root/%s" % (self._pids[on], path))

    # Faults; those of the filesystem are its own

    def ranks(self):
        """Return the processes of each rank that runs now."""
        found = collections.defaultdict(list)
        for pid in self._processes(self.hosts):
            with contextlib.suppress(OSError):
                settings = Path("/proc/%d/environ" % pid).read_bytes().split(b"\0")
                env = dict(setting.split(b"=", 1) for setting in settings if b"=" in setting)
                rank = next((env[name] for name in RANK_VARIABLES if name in env), None)
                if rank is not None:
                    found[int(rank)].append(pid)
        return dict(found)

    def kill_rank(self, rank):
        """Kill all processes of a rank."""
        for pid in self.ranks()[rank]:
            os.kill(pid, signal.SIGKILL)

    def kill_host(self, host):
        """Kill all processes of a host, for good. Others see its connections closed, unless it was cut off before."""
        os.kill(self._pids[host], signal.SIGKILL)

    def freeze(self, host):
        """Stop all processes of a host; its kernel still answers."""
        inside, entrances = self._stoppable(host)
        _signal(entrances, signal.SIGSTOP)
        while any(_state(pid) not in ("T", "Z", "") for pid in entrances):
            time.sleep(0.001)
        _signal(inside, signal.SIGSTOP)

    def thaw(self, host):
        """End `freeze`."""
        inside, entrances = self._stoppable(host)
        _signal([*inside, *entrances], signal.SIGCONT)

    def partition(self, host):
        """Cut a host off the network: what is sent is lost, and nobody is told. With `kill_host`, a power cut."""
        self._switch(host, "down")

    def rejoin(self, host):
        """End `partition`."""
        self._switch(host, "up")

    def remount(self, host, path, options):
        """Change a mount of a host: `size=1m`, `noexec`, `ro`..."""
        result = self.run(["mount", "-o", "remount," + options, path], on=host)
        if result.returncode:
            raise RuntimeError("cannot remount %s on %s: %s" % (path, host, result.stderr))

    def _stoppable(self, host):
        inside = [pid for pid in self._processes([host]) if pid != self._pids[host]]
        # A `nsenter` that sees its child stop would stop itself, at a moment of its own: it is stopped before, and
        # continued after.
        entrances = set()
        for pid in inside:
            with contextlib.suppress(OSError):
                parent = int(_status(pid)[1])
                if Path("/proc/%d/comm" % parent).read_text() == "nsenter\n":
                    entrances.add(parent)
        return inside, entrances

    def _switch(self, host, state):
        self._line.sendall(("%s %s" % (host, state)).encode())
        answer, _ = self._receive()
        if answer != "ok":
            raise RuntimeError("cannot switch the link of %s: %s" % (host, answer))

    def _processes(self, hosts):
        namespaces = set()
        for host in hosts:
            with contextlib.suppress(OSError):  # killed
                namespaces.add(os.readlink("/proc/%d/ns/pid" % self._pids[host]))
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            with contextlib.suppress(OSError):
                if os.readlink("/proc/%d/ns/pid" % pid) in namespaces:
                    yield pid


def _status(pid):
    """Return the fields of `/proc/PID/stat` from the process's state on."""
    return Path("/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()


def _state(pid):
    with contextlib.suppress(OSError):
        return _status(pid)[0]
    return ""


def _signal(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
