"""The algorithm of 2014, from which mpiimport descends, for today's Python: a baseline, and not for use.

Rank 0 finds and reads; the others take part in one broadcast for each module, at the moment when they ask for it. So
all ranks have to ask for the same modules in the same order: set PYTHONHASHSEED. Source travels and is compiled on
every rank. An extension module is written by every rank into a folder of its own in /tmp (or `SEED_TMPDIR`), and
loaded from there. As in 2014, that folder stays behind when a job is aborted.
Today's wheels find their libraries relative to themselves: what lies in `NAME.libs` beside a package `NAME` is written
too, which was not needed in 2014.

    mpiexec -n 16 env PYTHONHASHSEED=0 python -S benchmarks/seed.py script.py [argument ...]
"""

import sys

SITE_PACKAGES = "%s/lib/python%d.%d/site-packages" % (sys.executable.rpartition("/bin/")[0], *sys.version_info[:2])
sys.path.append(SITE_PACKAGES)
from mpi4py import MPI  # noqa: E402 - found by every rank itself: all else comes over it

sys.path.remove(SITE_PACKAGES)

import marshal  # noqa: E402
import posix  # noqa: E402
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder, SourceFileLoader  # noqa: E402

WORLD = MPI.COMM_WORLD
FOLDER = "%s/seed-%d-%d" % (posix.environ.get(b"SEED_TMPDIR", b"/tmp").decode(), posix.getpid(), WORLD.rank)
MISSING, SOURCE, EXTENSION, NAMESPACE = range(4)


class Counts:
    """What this rank did."""

    broadcasts = 0
    size_bytes = 0
    extensions = 0
    libraries = 0


def broadcast(value=None):
    """Give every rank what rank 0 has: first its size, then the bytes. Collective."""
    data = bytearray(marshal.dumps(value)) if WORLD.rank == 0 else None
    size = bytearray((len(data) if data is not None else 0).to_bytes(8, "little"))
    WORLD.Bcast([size, MPI.BYTE])
    if data is None:
        data = bytearray(int.from_bytes(size, "little"))
    WORLD.Bcast([data, MPI.BYTE])
    Counts.broadcasts += 1
    Counts.size_bytes += len(data)
    return marshal.loads(data)


def read(path):
    """Return the bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    """Write a file of this rank, and the folders it is in."""
    for end in range(len(FOLDER), len(path)):
        if path[end] == "/":
            make_folder(path[:end])
    with open(path, "xb") as file:
        file.write(data)


def make_folder(path, known=set()):  # noqa: B006
    """Make a folder of this rank, once."""
    if path not in known:
        known.add(path)
        posix.mkdir(path, 0o700)


class Source(SourceFileLoader):
    """Compiles what was broadcast."""

    def __init__(self, fullname, path, source):
        super().__init__(fullname, path)
        self.source = source

    def get_code(self, fullname):  # noqa: ARG002
        """Return the code, without a look at the file or its bytecode."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder:
    """In the place of `PathFinder`: asks rank 0, together with all other ranks."""

    def __init__(self):
        self.packages_with_libraries = set()

    def find_spec(self, fullname, path=None, target=None):
        """Return the spec of the module that rank 0 found. Collective."""
        kind, origin, locations, data, libraries = broadcast(
            self.find(fullname, path, target) if WORLD.rank == 0 else None
        )
        if kind == MISSING:
            return None
        if kind == NAMESPACE:
            loader = None
        elif kind == SOURCE:
            loader = Source(fullname, origin, data)
        else:
            loader = ExtensionFileLoader(fullname, self.place(fullname, origin, data, libraries))
        spec = ModuleSpec(fullname, loader, origin=origin, is_package=locations is not None)
        spec.has_location = kind != NAMESPACE
        if kind == EXTENSION:
            spec.origin = loader.path
        spec.submodule_search_locations = locations
        return spec

    def find(self, fullname, path, target):
        """Do on rank 0 what every rank would do."""
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None:
            return MISSING, None, None, None, None
        locations = spec.submodule_search_locations
        locations = None if locations is None else list(locations)
        if isinstance(spec.loader, SourceFileLoader):
            return SOURCE, spec.origin, locations, read(spec.origin), None
        if isinstance(spec.loader, ExtensionFileLoader):
            return EXTENSION, spec.origin, locations, read(spec.origin), self.libraries_of(fullname, spec.origin)
        return NAMESPACE, spec.origin, locations, None, None

    def libraries_of(self, fullname, origin):
        """Return what stands in `NAME.libs` beside the top-level package, once: [(path below the top, bytes)]."""
        folder = top_folder(fullname, origin) + "/" + fullname.partition(".")[0] + ".libs"
        if folder in self.packages_with_libraries:
            return []
        self.packages_with_libraries.add(folder)
        try:
            names = posix.listdir(folder)
        except FileNotFoundError:
            return []
        return [("%s/%s" % (folder.rpartition("/")[2], name), read("%s/%s" % (folder, name))) for name in names]

    def place(self, fullname, origin, data, libraries):
        """Write the module and its libraries, as they lie to each other. Return the module's copy."""
        for name, library in libraries:
            write("%s/%s" % (FOLDER, name), library)
        copy = FOLDER + origin[len(top_folder(fullname, origin)) :]
        write(copy, data)
        Counts.extensions += 1
        Counts.libraries += len(libraries)
        return copy


def top_folder(fullname, origin):
    """Return the folder that the top-level package of an extension module is in."""
    return origin.rsplit("/", fullname.count(".") + 1)[0]


def remove(folder):
    """Remove what this rank has written."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def main():
    """Run the program."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = Finder()
    import site

    site.main()
    sys.path[:] = broadcast(sys.path)
    del sys.argv[0]
    source = broadcast(read(sys.argv[0]) if WORLD.rank == 0 else None)
    sys.path.insert(0, sys.argv[0].rpartition("/")[0])
    program = {"__name__": "__main__", "__file__": sys.argv[0], "__builtins__": __builtins__}
    try:
        exec(compile(source, sys.argv[0], "exec"), program)
        if posix.environ.get(b"SEED_COUNTS"):
            counts = Counts.broadcasts, Counts.size_bytes, Counts.extensions, Counts.libraries
            sys.stderr.write("seed: %d broadcasts, %d bytes, %d extension modules, %d libraries\n" % counts)
    finally:
        remove(FOLDER)


try:
    main()
except BaseException as cause:
    if not isinstance(cause, SystemExit) or cause.code:
        sys.excepthook(*sys.exc_info())
        WORLD.Abort(1)
    raise
