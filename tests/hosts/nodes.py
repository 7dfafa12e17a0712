"""Process 1 of a simulated cluster: makes the nodes, then waits until its creator is gone, and everything with it.

It was started in namespaces of its own (network, mounts, processes, IPC). Below it are the filesystem, the login node,
which shares its network and processes, and the hosts, which have all namespaces of their own. A node's root folder is
made from nothing: the machine's system folders, read-only; what only this node has, in memory; and the shared paths,
each at the place where the machine has it, through the node's own mount of the slow filesystem.

    /run/fs/NODE       the slow filesystem, mounted once for each node; it shows the machine's whole tree
    /run/root          where a node's root folder is put together, in that node's own view
    /run/cluster       what all nodes see: `rsh`, `control` (the slow filesystem's socket), `pids/NODE`
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernel
import links

LOGIN = "login"
FILESYSTEMS = Path("/run/fs")
ROOT = Path("/run/root")
COMMON = Path("/run/cluster")

# What a node has of the machine itself. Python, its packages and MPI come by the shared filesystem.
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}


def main():
    """Make the cluster that standard input describes, on behalf of the process at the other end of the socket."""
    creator = socket.socket(fileno=int(sys.argv[1]))
    creator.set_inheritable(False)
    try:
        start(json.load(sys.stdin), creator)
    except BaseException:
        report(creator)
        sys.exit(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans leave no zombies
    creator.send(b"ready")
    while True:
        request = creator.recv(1000).decode().split()
        if not request:
            return  # the creator has ended, however
        link, state = request
        links.switch(link, on=state == "up")
        creator.send(b"ok")


def start(wanted, creator):
    """Start the filesystem, then the nodes."""
    kernel.keep_mounts_private()
    kernel.mount("proc", "/proc", kind="proc")
    kernel.mount("run", "/run", kind="tmpfs")
    nodes = [LOGIN, *wanted["hosts"]]
    addresses = {node: "10.77.%d.%d" % divmod(number, 250) for number, node in enumerate(nodes, start=1)}
    ROOT.mkdir()
    (COMMON / "pids").mkdir(parents=True)
    shutil.copy(Path(__file__).parent / "rsh", COMMON)
    names = ["127.0.0.1 localhost", *("%s %s" % (addresses[node], node) for node in nodes)]
    (COMMON / "hosts").write_text("\n".join(names) + "\n")
    start_filesystem(wanted, nodes)
    links.switch("lo", on=True)
    links.create_bridge("switch")
    links.add_address("switch", addresses[LOGIN], 16)
    links.switch("switch", on=True)
    for node in nodes:
        start_node(node, addresses[node], wanted, creator)


def start_filesystem(wanted, nodes):
    """Mount the slow filesystem for each node."""
    argv = [wanted["slowfs"], "--backing", "/", "--control", COMMON / "control"]
    for node in nodes:
        (FILESYSTEMS / node).mkdir(parents=True)
        argv += ["--mount", "%s=%s" % (node, FILESYSTEMS / node)]
    for name, value in wanted["settings"].items():
        argv += ["--" + name, str(value)]
    with open(COMMON / "slowfs.log", "wb") as log:
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("slowfs did not start: " + (COMMON / "slowfs.log").read_text())


def start_node(node, address, wanted, creator):
    """Start a node's first process, which does nothing but be there, and connect the node with the switch."""
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("%s did not start" % node)
        if node != LOGIN:
            links.put_on_bridge(node, "switch")
            links.switch(node, on=True)
        return
    in_child(creator, lambda: enter_namespaces(node, address, wanted, creator))


def enter_namespaces(node, address, wanted, creator):
    """Make a node's namespaces, and fork the process that stays in them."""
    kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
    if node != LOGIN:
        kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWPID)
        links.create_pair("eth0", node, pid=1)
        links.add_address("eth0", address, 16)
        links.switch("eth0", on=True)
        links.switch("lo", on=True)
    ready, is_ready = os.pipe()
    # The child is about to change the root folder of us both: the file is opened before.
    with open(COMMON / "pids" / node, "w") as note:
        pid = os.fork()
        if not pid:
            in_child(creator, lambda: become_node(node, wanted, creator, is_ready))
        note.write(str(pid))
    os.close(is_ready)
    if os.read(ready, 1) != b".":
        raise RuntimeError("%s ended" % node)


def become_node(node, wanted, creator, is_ready):
    """Make the node's root folder, report to the creator, and sleep for ever."""
    socket.sethostname(node)
    make_root(node, wanted)
    os.setsid()
    creator.send(node.encode())  # the kernel adds our process number, as the creator sees it
    os.write(is_ready, b".")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kept by exec: the kernel buries the orphans
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execvp("sleep", ["sleep", "infinity"])


def make_root(node, wanted):
    """Put the node's root folder together, and make it the root."""
    kernel.mount("root", ROOT, kind="tmpfs", options="mode=755")
    for folder in map(Path, SYSTEM_FOLDERS):
        if folder.is_symlink():
            inside(folder).symlink_to(os.readlink(folder))
        elif folder.is_dir():
            show_system(folder, wanted["layers"])
    fresh("/proc", kind="proc")
    fresh("/sys", kind="sysfs")
    # Slurm's daemon does not start without.
    kernel.mount("/sys/fs/cgroup", inside("/sys/fs/cgroup"), flags=kernel.MS_BIND | kernel.MS_REC)
    fresh("/dev", kind="tmpfs", options="mode=755")
    for device in DEVICES:
        show("/dev/" + device, inside("/dev/" + device))
    fresh("/dev/pts", kind="devpts", options="newinstance,ptmxmode=666,mode=620")
    for name, target in DEVICE_LINKS.items():
        inside("/dev/" + name).symlink_to(target)
    fresh("/dev/shm", kind="tmpfs", options="mode=1777,size=" + wanted["shm_size"])
    fresh("/tmp", kind="tmpfs", options="mode=1777,size=" + wanted["tmp_size"])
    fresh("/var/tmp", kind="tmpfs", options="mode=1777,size=" + wanted["tmp_size"])
    fresh("/run", kind="tmpfs", options="mode=755")
    inside("/root").mkdir(mode=0o700)
    show(COMMON, inside(COMMON), read_only=True)
    make_identity(node)
    for path, read_only in sorted(wanted["shared"].items()):
        share(node, path, read_only=read_only)
    kernel.pivot_root(ROOT)


def make_identity(node):
    """Give the node what no two machines have in common."""
    identity = COMMON / "identity" / node
    identity.mkdir(parents=True)
    own = {
        "/etc/hostname": node,
        "/etc/machine-id": uuid.uuid4().hex,
        "/proc/sys/kernel/random/boot_id": str(uuid.uuid4()),
    }
    for path, text in own.items():
        if inside(path).exists():
            (identity / Path(path).name).write_text(text + "\n")
            show(identity / Path(path).name, inside(path))
    show(COMMON / "hosts", inside("/etc/hosts"))


def share(node, path, *, read_only):
    """Show a path of the machine at the same place on the node, through the node's mount of the slow filesystem."""
    original = os.path.realpath(path)
    for place in sorted({path, original}):
        show(str(FILESYSTEMS / node) + original, inside(place), read_only=read_only)


def inside(path):
    """Return where a path of the node is while its root folder is put together."""
    return Path("%s/%s" % (ROOT, path))


def show_system(folder, layers):
    """Show a system folder of the machine, read-only; what the layers have of it comes before what the machine has."""
    above = [place for place in (Path("%s/%s" % (layer, folder)) for layer in layers) if place.is_dir()]
    show(folder, inside(folder), read_only=True)
    if above:
        options = "lowerdir=" + ":".join(map(str, [*above, folder]))
        kernel.mount("system", inside(folder), kind="overlay", flags=kernel.MS_RDONLY, options=options)


def fresh(path, *, kind, options=""):
    """Give the node a filesystem that only it has."""
    inside(path).mkdir(parents=True, exist_ok=True)
    kernel.mount(kind, inside(path), kind=kind, options=options)


def show(source, target, *, read_only=False):
    """Show a place of the machine in the node's root folder."""
    if not target.exists():
        if os.path.isdir(source):
            target.mkdir(parents=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
    kernel.bind(source, target, read_only=read_only)


def in_child(creator, action):
    """Do it and exit; the creator hears of a failure."""
    try:
        action()
        os._exit(0)
    except BaseException:
        report(creator)
        os._exit(1)


def report(creator):
    """Tell the creator what failed. The first who does is the one who knows."""
    with contextlib.suppress(OSError):
        creator.send(traceback.format_exc().encode()[-60000:])


if __name__ == "__main__":
    main()
