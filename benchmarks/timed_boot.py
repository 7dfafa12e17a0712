"""Starts mpiimport as `python-mpi` does, with a clock around the parts of the start; see `parts.py`.

It is loaded as a module, since the start empties `__main__`; its arguments are the folder that mpiimport is installed
in, FILE, and those of `python-mpi`. The variable `began` says when the process began, in ns.

Nothing of mpiimport knows of it: each part is a function, which is replaced by one that calls it and notes how long
that took, without what other parts took meanwhile. FILE, with the rank added to its name, gets the seconds of each
part.
"""

import sys
from time import CLOCK_REALTIME, clock_gettime, perf_counter

PARTS = {
    # module, class or None, function: the part
    ("site_mpi.boot", None, "load_core"): "load the core",
    ("site_mpi.boot", None, "connect"): "join the other ranks",
    ("site_mpi.boot", None, "load_package"): "receive mpiimport",
    ("site_mpi.stages", "Start", "open_store"): "make the node store",
    ("site_mpi.stages", "Start", "settle_paths"): "site",
    ("site_mpi.stages", None, "customise"): "site",
    ("mpiimport.session", "Session", "forecast"): "forecast",
    ("mpiimport.profile", "Profile", "read"): "read the profile",
    ("mpiimport.forecast", "Forecast", "ask"): "find and read",
    ("mpiimport.forecast", "Forecast", "answers_to"): "find and read",
    ("mpiimport.opening", "Opening", "list_folder"): "find and read",
    ("mpiimport.opening", "Opening", "pack"): "pack",
    ("mpiimport._core", None, "broadcast_shared"): "broadcast, wait for rank 0",
    ("mpiimport.native", "Native", "plan"): "native code",
    ("mpiimport.native", "Native", "deliver"): "native code",
}

JOINING = {"find_libmpi": "find libmpi", "start_mpi": "MPI_Init, communicators"}
"""What the core tells of `connect`."""


class Clock:
    """The seconds of each part; time belongs to the innermost part that runs."""

    def __init__(self):
        self.seconds = {}
        self.running = ["else"]
        self.since = perf_counter()

    def enter(self, part):
        """From now on, time belongs to this part."""
        self.charge()
        self.running.append(part)

    def leave(self):
        """From now on, time belongs to the part around."""
        self.charge()
        self.running.pop()

    def charge(self):
        """Add the time since the last change to the part that was running."""
        now = perf_counter()
        part = self.running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.since
        self.since = now

    def around(self, part, function):
        """Return a function that does the same on this clock."""

        def timed(*arguments, **keywords):
            self.enter(part)
            try:
                return function(*arguments, **keywords)
            finally:
                self.leave()

        return timed


clock = Clock()


def put_on_clock(module_name):
    """Replace the functions of a module that are parts."""
    for (name, class_name, function_name), part in PARTS.items():
        if name == module_name:
            owner = sys.modules[name]
            owner = getattr(owner, class_name) if class_name else owner
            setattr(owner, function_name, clock.around(part, getattr(owner, function_name)))


def main():
    """Start as the launcher script does."""
    import posix
    from _frozen_importlib import _load
    from _frozen_importlib_external import spec_from_file_location

    clock.seconds["start the interpreter"] = clock_gettime(CLOCK_REALTIME) - int(posix.environ[b"began"]) / 1e9
    packages, file = sys.argv[1:3]
    del sys.argv[1:3]
    boot = _load(spec_from_file_location("site_mpi.boot", packages + "/site_mpi/boot.py"))
    put_on_clock("site_mpi.boot")
    place = {}
    connect, execute_package = boot.connect, boot.execute_package

    def connect_and_keep(*arguments):
        place.update(connect(*arguments) or {})
        return place or None

    def execute_and_time(modules):
        execute_package(modules)
        for name in {name for name, *_ in PARTS} - {"site_mpi.boot"}:
            if name in sys.modules:
                put_on_clock(name)
        from site_mpi import program

        run = program.run

        def run_program(*arguments, **keywords):
            clock.enter("the program")
            try:
                run(*arguments, **keywords)
            finally:
                clock.leave()
                write(file, place)

        program.run = run_program

    boot.connect, boot.execute_package = connect_and_keep, execute_and_time
    boot.main()


def write(file, place):
    """Write what this rank took for each part; what the core knows of joining is split."""
    seconds = clock.seconds
    for name, part in JOINING.items():
        seconds[part] = place["seconds"][name]
        seconds["join the other ranks"] -= seconds[part]
    with open("%s.%d" % (file, place.get("rank", 0)), "w") as out:
        out.write(repr(seconds))


main()
