"""From a bare interpreter to a connected rank that has mpiimport: the only Python file of ours that a leaf reads.

Here: the settings, the choice of an MPI library, and the delivery of the other modules by broadcast. Nothing here
may import anything but built-in modules. What the modules do once they are there is in `site_mpi.stages`.
"""

import _imp
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec, _load  # type: ignore[attr-defined]
from _frozen_importlib_external import SourceFileLoader, spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any, NoReturn, Optional

    Place = dict[str, Any]
    OwnModule = tuple[str, str, Optional[list[str]], bytes]

PACKAGE = (
    "mpiimport",
    "mpiimport.answers",
    "mpiimport.files",
    "mpiimport.finder",
    "mpiimport.handoff",
    "mpiimport.loader",
    "mpiimport.lockstep",
    "mpiimport.misses",
    "mpiimport.native",
    "mpiimport.opening",
    "mpiimport.session",
    "site_mpi",
    "site_mpi.program",
    "site_mpi.stages",
)
"""The modules that the root delivers."""

ROOT_PACKAGE = ("mpiimport.bundle", "mpiimport.forecast", "mpiimport.profile", "mpiimport.scan")
"""The modules that only the root needs."""

BUNDLED_PACKAGE = ("mpiimport.bundle",)
"""Those of them that a root with a bundle needs."""

RECORDER = ("mpiimport.recorder",)
"""What each rank needs for a report, and nobody else."""

PLAIN_PACKAGE = ("site_mpi", "site_mpi.program")
"""The modules that a process without other ranks needs."""

OPTIONS = (
    # name, short, value's name, default, what it does
    ("command", "c", "CODE", None, "run this code, as python -c"),
    ("module", "m", "NAME", None, "run this module, as python -m"),
    ("verbose", "v", None, 0, "say how each module was imported, on rank 0; twice: on all ranks"),
    ("debug", "d", None, 0, "every module locally, no communication; the same as --policy local"),
    ("tmpdir", "T", "DIR", None, "the folder for node stores, instead of /dev/shm, $TMPDIR or /tmp"),
    ("implementation", "I", "NAME", None, "mpich, openmpi or mpiabi: use no other, and make its symbols global"),
    ("policy", None, "NAME", "opening", "opening, lockstep, locate or local"),
    ("libmpi", None, "FILE", None, "the MPI library, instead of the one that mpi4py would use"),
    ("thread-level", None, "NAME", None, "single, funneled, serialized or multiple (as mpi4py asks for by default)"),
    ("timeout", None, "SECONDS", "600", "how long one rank may wait for another before the job is ended"),
    ("store", None, "WHEN", "auto", "copy native code to each host: always, never, or auto: from shared filesystems"),
    ("store-limit", None, "MB", "2000", "how much native code is copied to each host at the most, in megabytes"),
    (
        "profile",
        None,
        "FILE",
        "auto",
        "what earlier runs imported, for the next: a file, always (below ~/.cache), off, auto: always on shared disks",
    ),
    (
        "scan",
        None,
        "WHEN",
        "auto",
        "without a profile, follow import statements: always, never, auto: on shared disks",
    ),
    ("bundle", None, "FILE", None, "read from this file, made by --write-bundle, what the program imports"),
    ("validate", None, "WHAT", "stat", "whether the bundle is still right: stat its files, or none: trust it"),
    ("write-bundle", None, "FILE", None, "make a bundle for the program instead of running it"),
    ("include", None, "NAMES", "", "further modules for --write-bundle, separated by commas"),
    ("stable", None, "PATHS", "", "folders, separated by colons, whose modules do not change during a run"),
    ("report", None, "FILE", None, "say in this .html, .json or .txt file where the time of imports went"),
    ("abort-on-exit", None, None, 0, "sys.exit(n) with n other than 0 on one rank ends the job (of python-mpi)"),
    ("require", None, None, 0, "fail where there is no MPI, instead of running as plain Python"),
    ("local", None, None, 0, "leave MPI alone, for one program beside others in an MPI world"),
    ("help", "h", None, 0, "show this and exit"),
    ("version", "V", None, 0, "show the versions and exit"),
)
"""Every setting. `--thread-level` is `MPIIMPORT_THREAD_LEVEL` in the environment and `thread_level` in `install()`."""

PYTHONS_LONG_OPTION = "--check-hash-based-pycs"
"""Python's own, with a value: the launcher script has handed it over."""

ONLY_OPTIONS = ("command", "module", "write-bundle", "include", "help", "version")
"""What is no setting for all programs, and so no variable of the environment."""

CHOICES = {
    "store": ("auto", "always", "never"),
    "validate": ("stat", "none"),
    "scan": ("auto", "always", "never"),
    "policy": ("opening", "lockstep", "locate", "local"),
    "implementation": ("mpich", "openmpi", "mpiabi"),
    "thread_level": ("single", "funneled", "serialized", "multiple"),
}

SHARED_FILESYSTEMS = {
    0x6969: "nfs",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x00C36400: "ceph",
    0x65735546: "fuse",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x517B: "smb",
    0x5346414F: "afs",
    0x6B414653: "kafs",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0xAAD7AAEA: "panfs",
    0x20030528: "orangefs",
    0x01021997: "9p",
    0x013111A8: "ibrix",
    0x61756673: "aufs",
    0xBACBACBC: "vmhgfs",
    0x786F4256: "vboxsf",
    0xBEEFDEAD: "snfs",
}
"""What `statfs` says of filesystems that many hosts share, and their names."""

LAUNCHERS = (
    # the variable that tells: a rank, the number of ranks; the family of MPI libraries it can start, where it is one
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "openmpi"),
    ("MPI_LOCALRANKID", "PMI_SIZE", "mpich"),  # Hydra, of MPICH and Intel MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "mpich"),
    ("PMI_RANK", "PMI_SIZE", None),
    ("PMIX_RANK", None, None),
    ("PALS_RANKID", None, None),
    ("ALPS_APP_PE", None, None),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", None),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", None),
)

RANKS = (
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PALS_RANKID",
    "ALPS_APP_PE",
    "FLUX_TASK_RANK",
    "JSM_NAMESPACE_RANK",
)

LOCAL_RANKS = (
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "SLURM_LOCALID",
    "PALS_LOCAL_RANKID",
    "FLUX_TASK_LOCAL_ID",
)

END_S = 2.0
"""How long the other ranks leave one of them to say why all end."""


class UsageError(Exception):
    """What the user asked for does not make sense; said in one sentence, once."""


class Settings:
    """What the user chose: options of `python-mpi`, else `MPIIMPORT_*` variables, else defaults. Read once."""

    abort_on_exit: int
    bundle: "str | None"
    command: "str | None"
    debug: int
    help: int
    implementation: "str | None"
    include: str
    libmpi: "str | None"
    local: int
    module: "str | None"
    policy: str
    profile: str
    report: "str | None"
    require: int
    scan: str
    stable: str
    store: str
    store_limit: str
    thread_level: "str | None"
    timeout: str
    tmpdir: "str | None"
    validate: str
    verbose: int
    version: int
    write_bundle: "str | None"

    def __init__(self, **chosen: "Any") -> None:
        for option, _, value_name, default, _ in OPTIONS:
            name = option.replace("-", "_")
            value = chosen.pop(name, None)
            source = "--" + option
            if value is None:
                source = "MPIIMPORT_" + name.upper()
                value = environment(source) if option not in ONLY_OPTIONS else None
                if value == "":
                    value = None
                if value is not None and value_name is None:
                    if not (value.isascii() and value.isdigit()):
                        raise UsageError("%s is `%s`; set it to 1, or to 0 for off" % (source, value))
                    value = int(value)
            if value is None:
                value = default
            elif name in CHOICES:
                check_choice(name, value, source)
            if name == "timeout":
                self.timeout_s = number(value, source, "of seconds above 0")
            elif name == "store_limit":
                self.store_limit_mb = number(value, source, "of megabytes", zero=True)
            setattr(self, name, value)
        if chosen:
            raise UsageError("there is no setting `%s`" % "`, `".join(sorted(chosen)))
        if self.debug:
            self.policy = "local"


def check_choice(name: str, value: str, source: str) -> None:
    """Raise UsageError for a value that is not among the choices; `source` is the option or variable it came from."""
    if value not in CHOICES[name]:
        raise UsageError("%s is `%s`; choose one of %s" % (source, value, ", ".join(CHOICES[name])))


def number(value: "str | float", source: str, what: str, *, zero: bool = False) -> float:
    """Return a setting as a number. Raises UsageError."""
    try:
        result = float(value)
    except ValueError:
        result = -1.0
    if not (0 < result < 1e9 or (zero and result == 0)):
        raise UsageError("%s is `%s`; it must be a number %s" % (source, value, what))
    return result


def unknown_variables() -> "list[str]":
    """List the variables that look like settings of ours and are none."""
    ours = [name for name in posix.environ if name.startswith(b"MPIIMPORT_")]
    return sorted({name.decode("utf-8", "surrogateescape") for name in ours} - known_variables()) if ours else []


def known_variables() -> "set[str]":
    """Return the variables that are read by the launcher, by this file, and for the cache."""
    options = {option[0] for option in OPTIONS} - {*ONLY_OPTIONS} | {"python", "cache-dir"}
    return {"MPIIMPORT_" + option.replace("-", "_").upper() for option in options}


def environment(name: str) -> "str | None":
    """Return a variable of the environment, or None; `os` is not there yet."""
    value = posix.environ.get(name.encode())
    return None if value is None else value.decode("utf-8", "surrogateescape")


def parse(arguments: "Sequence[str]", *, settings: "Settings | None" = None) -> "tuple[Settings, list[str]]":
    """Split the arguments of `python-mpi` into (settings, what is left: the program and its arguments).

    With `settings`, the arguments are those of `python -S` instead: only the program is looked for.
    """
    chosen: dict[str, Any] = {}
    arguments = list(arguments)

    def take(option: "tuple[Any, ...]", value: "str | None") -> bool:
        name, _, value_name, default, _ = option
        name = name.replace("-", "_")
        if value_name is None:
            if value is not None:
                raise UsageError("--%s takes no value" % option[0])
            chosen[name] = chosen.get(name, default) + 1
        else:
            if value is None:
                if not arguments:
                    raise UsageError("--%s needs a value: %s" % (option[0], value_name))
                value = arguments.pop(0)
            chosen[name] = value
        return bool(name in ("command", "module"))

    ended = False
    while arguments and not ended and arguments[0][:1] == "-" and arguments[0] != "-":
        argument = arguments.pop(0)
        if argument == "--":
            break
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            option = next((option for option in OPTIONS if option[0] == name), None)
            if argument == PYTHONS_LONG_OPTION:
                del arguments[:1]
                continue
            if option is None:
                raise UsageError("there is no option --%s; python-mpi --help lists all" % name)
            ended = take(option, value if equals else None)
            continue
        letters = argument[1:]
        while letters and not ended:
            letter, letters = letters[0], letters[1:]
            option = next((option for option in OPTIONS if option[1] == letter), None)
            if option is not None and option[2] is not None:
                ended = take(option, letters or None)
                break
            if option is not None:
                take(option, None)
            elif letter in "WX":  # Python's own: the launcher script has handed them over
                if not letters:
                    if not arguments:
                        raise UsageError("-%s needs a value" % letter)
                    arguments.pop(0)
                break
            elif letter not in "bBEOPqsu" and settings is None:
                raise UsageError("there is no option -%s; python-mpi --help lists all" % letter)
    return Settings(**chosen), arguments


def usage() -> str:
    """Return the text of `--help`."""
    lines = ["usage: python-mpi [option] ... [-c code | -m module | script | -] [argument] ...", "", "options:"]
    for name, short, value_name, _, text in OPTIONS:
        form = ("-%s, " % short if short else "    ") + "--" + name + (" " + value_name if value_name else "")
        lines.append("  %-28s %s" % (form, text))
    lines += [
        "",
        "Python's own -b -B -E -O -OO -P -q -s -u -W -X are passed on.",
        "Each is also a variable, MPIIMPORT_TMPDIR for --tmpdir, but for " + ", ".join(ONLY_OPTIONS) + ".",
    ]
    return "\n".join(lines) + "\n"


def launcher() -> "tuple[str, int | None, str | None] | None":
    """Say who started this process: (variable, number of ranks or None, family of MPI libraries or None), or None."""
    for rank, size, family in LAUNCHERS:
        if environment(rank) is not None:
            count = environment(size or ("SLURM_STEP_NUM_TASKS" if is_srun(rank) else ""))
            return rank, int(count) if count and count.isdigit() else None, family
    # Slurm sets SLURM_PROCID in batch scripts too, where nothing was launched.
    tasks = environment("SLURM_STEP_NUM_TASKS")
    if environment("SLURM_PROCID") is not None and tasks and tasks.isdigit():
        return "SLURM_PROCID", int(tasks), None
    return None


def is_srun(variable: str) -> bool:
    """Whether the launcher that is told by this variable is Slurm's srun, and not one that srun started."""
    if environment("SLURM_STEP_NUM_TASKS") is None:
        return False
    if variable == "PMIX_RANK":  # prterun sets it, too
        return (environment("PMIX_NAMESPACE") or "").startswith("slurm.")
    return variable in ("PMI_RANK", "SLURM_PROCID")


def is_first() -> bool:
    """Whether this process is rank 0, as far as the environment tells: it speaks for all."""
    return all(environment(name) in (None, "0") for name in RANKS) and (
        environment("SLURM_STEP_NUM_TASKS") is None or environment("SLURM_PROCID") in (None, "0")
    )


def is_first_on_host() -> bool:
    """Whether this process speaks for its host, as far as the environment tells."""
    locals_ = [environment(name) for name in LOCAL_RANKS]
    known = [rank for rank in locals_ if rank is not None]
    return all(rank == "0" for rank in known) if known else is_first()


def say(message: str) -> None:
    """Write a message of ours to standard error."""
    sys.stderr.write("mpiimport: %s\n" % message)
    sys.stderr.flush()


def libmpi_candidates(settings: Settings, folder: str) -> "list[str]":
    """List where libmpi may be, in the order in which mpi4py searches; `folder` is where mpiimport is installed."""
    family = settings.implementation or (environment("MPI4PY_MPIABI") or "").lower().replace("-", "").replace("_", "")
    names = {"mpich": ["libmpi.so.12"], "impi": ["libmpi.so.12"], "openmpi": ["libmpi.so.40"]}.get(
        family, ["libmpi.so", "libmpi.so.12", "libmpi.so.40"]
    )
    chosen = settings.libmpi or environment("MPI4PY_LIBMPI")
    if chosen:
        candidates = []
        for entry in chosen.split(":"):
            candidates += ["%s/%s" % (entry, name) for name in names] if is_folder(entry) else [entry]
        return candidates
    if family == "mpiabi":
        return ["libmpi_abi.so.1", "libmpi_abi.so.0"]
    candidates = []
    # A mpi4py that was built on this machine is linked to one library and no other will do.
    suffix = _imp.extension_suffixes()[0]
    for entry in [*sys.path[: next((i for i, e in enumerate(sys.path) if e.endswith(".zip")), 0)], folder]:
        if entry:
            candidates.append("needed-by:%s/mpi4py/MPI%s" % (entry, suffix))
    prefix = sys.executable.rpartition("/")[0].rpartition("/")[0]
    outside = [sys.base_exec_prefix]
    home = environment("HOME")
    user = environment("PYTHONUSERBASE") or (home + "/.local" if home else None)
    if user and not sys.flags.no_user_site:
        outside.insert(0, user)
    places = [folder + "/lib/" for folder in outside if folder not in ("", "/usr")]
    if prefix in (sys.base_prefix, sys.base_exec_prefix):
        places.append("")
    else:  # an environment; whether it is open to what is outside stands in a file that only the root is to read
        places[:0] = [prefix + "/lib/", ""]
    candidates += [place + name for place in places for name in names]
    return candidates + (["libmpich.so.12"] if family in ("", "mpich") else [])


def is_folder(path: str) -> bool:
    """Whether there is a folder at this path."""
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


def is_replaceable(path: str) -> bool:
    """Whether a new file may take this name: it has none yet, or that of a file, and not of a folder or a device."""
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o100000
    except OSError:
        return True  # or why not, writing will tell


def thread_level(settings: Settings) -> int:
    """Return the thread level to ask for, 0 to 3: our setting, else what mpi4py would ask for."""
    name = settings.thread_level
    if name is None:
        threads = (environment("MPI4PY_RC_THREADS") or "").lower()
        name = (environment("MPI4PY_RC_THREAD_LEVEL") or "multiple").lower()
        if threads in ("0", "n", "no", "f", "false", "off"):
            name = "single"
        check_choice("thread_level", name, "MPI4PY_RC_THREAD_LEVEL")
    return CHOICES["thread_level"].index(name)


def load_core(folder: str) -> "Any":
    """Load the Rust core by its full path, without a search."""
    core = sys.modules.get("mpiimport._core")
    if core is None:
        core = _load(spec_from_file_location("mpiimport._core", folder + "/mpiimport/_core.abi3.so"))
    return core


def are_on_shared_filesystems(paths: "list[str]") -> "list[bool]":
    """Whether files are on filesystems that other hosts may use too."""
    return [kind in SHARED_FILESYSTEMS for kind in load_core(own_folder()).filesystem_types(paths)]


def is_far(settings: Settings) -> bool:
    """Whether reading modules is to be saved: not where all are on disks of this host, as fast for each rank."""
    if settings.write_bundle is not None or settings.scan == "always":
        return True
    folders = {own_folder(), sys.prefix, *(entry for entry in sys.path if entry[:1] == "/")}
    return any(are_on_shared_filesystems(sorted(folders)))


def connect(settings: Settings, folder: str) -> "Place | None":
    """Join the other ranks. Return this rank's place in the job as a dict, or None where there is only this process.

    Collective. Raises UsageError where a setting is wrong, OSError where no library fits the launcher, RuntimeError
    where MPI does not work.
    """
    unknown = unknown_variables()
    if unknown and is_first():
        say("there is no variable `%s`; python-mpi --help lists all. Going on without." % "`, `".join(unknown))
    if settings.local or settings.policy == "local":
        return None
    started_by = launcher()
    if started_by is None and settings.require:
        raise UsageError(
            "no MPI launcher started this process, and --require or MPIIMPORT_REQUIRE asks for one. Use mpiexec or "
            "srun."
        )
    if started_by is None or started_by[1] == 1:
        return None
    variable, size, family = started_by
    if {family, settings.implementation} == {"mpich", "openmpi"}:
        raise UsageError(
            "--implementation or MPIIMPORT_IMPLEMENTATION is `%s`, but the launcher belongs to %s. Leave it out, or "
            "use the mpiexec of %s." % (settings.implementation, family, settings.implementation)
        )
    place: Place = load_core(folder).connect(
        libmpi_candidates(settings, folder),
        make_global=settings.implementation is not None,
        launcher=settings.implementation or family,
        thread_level=thread_level(settings),
        timeout_s=settings.timeout_s,
        verbose=settings.verbose > 1,
    )
    if size is not None and place["size"] == 1:
        if is_srun(variable):
            raise OSError(
                "srun started %d ranks, but `%s` sees only itself: it does not understand srun's --mpi. Use `srun "
                "--mpi=pmi2` with MPICH and Intel MPI, `--mpi=pmix` with Open MPI, or set MPIIMPORT_LIBMPI to the "
                "libmpi that belongs to your srun." % (size, place["library"])
            )
        raise OSError(
            "the launcher started %d ranks, but `%s` sees only itself: it does not belong to this launcher. Set "
            "MPIIMPORT_LIBMPI to the libmpi of your mpiexec." % (size, place["library"])
        )
    place["launcher"] = variable
    agree(place, settings)
    return place


def agree(place: "Place", settings: Settings) -> None:
    """Make sure that every rank runs the same Python and mpiimport, by the same policy, and makes a report or not.

    Collective.
    """
    core: Any = sys.modules["mpiimport._core"]
    options = " -" + "O" * sys.flags.optimize if sys.flags.optimize else ""
    version = "Python %d.%d.%d%s with mpiimport %s" % (*sys.version_info[:3], options, core.__version__)
    if settings.policy != "opening":
        version += " and --policy " + settings.policy
    fields = (version, 80), (place["host"], 64), ("01"[place["local_rank"] == 0], 1)
    mine = b"".join(text.encode()[:size].ljust(size) for text, size in fields)
    everyone = core.gather(mine, "every rank to say which Python it runs")
    problem = ""
    if everyone is not None:
        place["hosts"] = sum(one[144:] == b"1" for one in everyone)
        if settings.report is not None:
            place["host_of_rank"] = [one[80:144].decode("utf-8", "replace").strip() for one in everyone]
            problem = report_problem(settings.report)
        differing = [
            "rank %d on %s %s" % (rank, one[80:144].decode("utf-8", "replace").strip(), one[:80].decode().strip())
            for rank, one in enumerate(everyone)
            if one[:80] != mine[:80]
        ]
        if differing:
            problem = "rank 0 runs %s, but %s%s. Start all ranks with the same Python and the same options." % (
                version,
                ", ".join(differing[:3]),
                " and %d more differ" % (len(differing) - 3) if len(differing) > 3 else "",
            )
    said = "%d%s" % (settings.report is not None, problem)
    said = core.broadcast(said.encode("utf-8", "surrogateescape"), "rank 0 to compare the Pythons")
    said = said.decode("utf-8", "surrogateescape")
    place["records"], problem = said[0] == "1", said[1:]
    if problem:
        raise UsageError(problem)


def reports(settings: Settings, place: "Place | None") -> bool:
    """Whether this rank records its imports for a report: with others if the root wants it, else for its own."""
    if place is not None:
        return bool(place["records"])
    return settings.report is not None and settings.write_bundle is None and is_first()


def report_problem(path: str) -> str:
    """Return why no report can be written to this file, or nothing."""
    if not path.endswith((".html", ".json", ".txt")):
        return "cannot write the report `%s`: its name must end in .html, .json or .txt" % path
    folder = path[: path.rfind("/") + 1] or "."
    trial = "%s/.mpiimport-report-%d" % (folder, posix.getpid())
    try:
        if not is_replaceable(path):
            return "cannot write the report `%s`: that is no file" % path
        posix.close(posix.open(trial, posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC, 0o600))
        posix.unlink(trial)
    except OSError as cause:
        return "cannot write the report `%s`: %s" % (path, cause.strerror)
    return ""


class PackageFinder:
    """Finds the modules of mpiimport itself among what was delivered; in `sys.meta_path` only until they are loaded."""

    def __init__(self, modules: "list[OwnModule]") -> None:
        self.modules = {fullname: (origin, locations, code) for fullname, origin, locations, code in modules}

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,  # noqa: ARG002
        target: "ModuleType | None" = None,  # noqa: ARG002
    ) -> "ModuleSpec | None":
        """Return the spec of one of our modules, whose loader executes what was delivered."""
        if fullname not in self.modules:
            return None
        origin, locations, _ = self.modules[fullname]
        spec = ModuleSpec(fullname, self, origin=origin, is_package=locations is not None)  # type: ignore[arg-type]
        spec.submodule_search_locations = locations
        spec.has_location = True
        return spec

    def create_module(self, spec: ModuleSpec) -> None:  # noqa: ARG002
        """Use the ordinary module type."""
        return

    def exec_module(self, module: "ModuleType") -> None:
        """Execute the delivered code and leave behind the loader that the file itself would have had."""
        spec: Any = module.__spec__
        code = marshal.loads(self.modules[spec.name][2])
        spec.loader = module.__loader__ = SourceFileLoader(spec.name, spec.origin)
        exec(code, module.__dict__)


def read_package(fullnames: "tuple[str, ...]", folder: str) -> "list[OwnModule]":
    """Read modules of ours, as (fullname, origin, locations, marshalled code)."""
    modules = []
    for fullname in fullnames:
        locations = [folder + "/" + fullname] if "." not in fullname else None
        origin = folder + "/" + fullname.replace(".", "/") + ("/__init__.py" if locations else ".py")
        try:
            code = SourceFileLoader(fullname, origin).get_code(fullname)
        except (OSError, EOFError, SyntaxError) as cause:
            raise RuntimeError("mpiimport is not installed as it should be: %s. Install it again." % cause) from None
        modules.append((fullname, origin, locations, marshal.dumps(code)))
    return modules


def whole_package(own: "tuple[str, ...]", folder: str) -> "tuple[bytes, list[OwnModule]]":
    """Read what the root needs: the modules that it delivers, marshalled, and its `own`."""
    return marshal.dumps(read_package(PACKAGE, folder)), read_package(own, folder)


def opens_alone(settings: Settings) -> bool:
    """Whether a rank without others imports by a profile or a bundle: the only one of a launcher, on shared disks."""
    started_by = launcher()
    if started_by is None or started_by[1] != 1 or settings.local or settings.policy != "opening":
        return False
    if (settings.bundle is None and settings.profile == "off") or settings.write_bundle is not None:
        return False
    return is_far(settings)


def load_package(place: "Place | None", settings: Settings, folder: str, *, alone: bool = False) -> "Any":
    """Load the modules of ours that this rank needs; the root alone reads them. Collective.

    The root, and who opens `alone`, opens the bundle, too, if the user chose one: it has these modules. Return it.
    """
    bundle = None
    sent: bytes | None = None
    own: list[OwnModule] = []
    if place is None or place["rank"] == 0:
        bundle, package = choose_bundle(settings, folder) if alone or place is not None else (None, None)
        sent, own = package or whole_package(ROOT_PACKAGE, folder)
    if place is None:
        assert sent is not None, "a process without other ranks is its own root"
        recorder = read_package(RECORDER, folder) if reports(settings, place) else []
        execute_package(marshal.loads(sent) + own + recorder)
        return bundle
    execute_package(marshal.loads(load_core(folder).broadcast(sent, "rank 0 to read mpiimport")) + own)
    if place["records"]:
        sent = marshal.dumps(read_package(RECORDER, folder)) if place["rank"] == 0 else None
        execute_package(marshal.loads(load_core(folder).broadcast(sent, "rank 0 to read mpiimport")))
    return bundle


def identity(folder: str) -> "dict[str, str]":
    """Return what decides which modules a Python finds, in words for messages."""
    return {
        "version of mpiimport": load_core(folder).__version__,
        "folder of mpiimport": folder,
        "Python": "%s %s" % (sys.implementation.cache_tag, sys.version),
        "interpreter": sys.executable,  # it decides on the prefix, which `site` has not settled yet
        "optimization level": str(sys.flags.optimize),
        "PYTHONPATH": environment("PYTHONPATH") or "",
    }


def open_bundle(path: str, folder: str) -> "Any":
    """Open a bundle of this user, of root, or of who installed mpiimport. Raises what `_core.Bundle` does."""
    return load_core(folder).Bundle(path, (posix.geteuid(), 0, posix.stat(folder).st_uid))


def choose_bundle(settings: Settings, folder: str) -> "tuple[Any, tuple[bytes, list[OwnModule]] | None]":
    """Open the bundle that the user chose. Return it and, if it is to be trusted, the modules of ours that it has.

    One that cannot be used is named, and left out. Raises RuntimeError if there is no such file.
    """
    path = settings.bundle
    if path is None or settings.policy != "opening":
        return None, None
    try:
        bundle = open_bundle(path, folder)
        table = marshal.loads(bundle.table)
        for what, value in identity(folder).items():
            if table["identity"].get(what) != value:
                raise ValueError(
                    "is for another %s (`%s`, and this is `%s`). Make one for this"
                    % (what, table["identity"].get(what), value)
                )
        package = None
        if settings.validate == "none":
            _, size_bytes, checksum = table["sections"][0]
            package = marshal.loads(bundle.read(bundle.start, size_bytes, checksum))
    except ValueError as cause:
        say("the bundle `%s` %s. Going on without it." % (path, cause))
        return None, None
    except OSError as cause:
        raise RuntimeError("cannot read the bundle `%s`: %s" % (path, cause.strerror)) from None
    return bundle, package


def execute_package(modules: "list[OwnModule]") -> None:
    """Make modules of ours importable and import them."""
    finder = PackageFinder(modules)
    sys.meta_path.insert(0, finder)
    before = set(sys.modules)
    try:
        for fullname, *_ in modules:
            __import__(fullname)
    finally:
        sys.meta_path.remove(finder)
    for fullname in set(sys.modules) - before:
        if fullname.partition(".")[0] not in ("mpiimport", "site_mpi"):
            del sys.modules[fullname]  # the root needs `opcode`; the program must find the same on every rank


def end(status: int, message: str, *, speaks: bool, aborts: bool = True) -> "NoReturn":
    """End this process, and the job if it is connected and `aborts`. If `speaks`, this rank gives the message."""
    if speaks:
        say(message)
    if launcher() is not None:
        import time

        # The launcher may end the job with the first rank that ends: not before it is said, and forwarded.
        try:
            time.sleep(END_S / 4 if speaks else END_S)
        except KeyboardInterrupt:
            aborts = True  # twice: at once
    if aborts:
        abort(status, 0)
    sys.exit(status)


def abort(status: int, grace_s: float) -> None:
    """End the job, if this process is connected: see `_core.abort`."""
    core: Any = sys.modules.get("mpiimport._core")
    if core is not None and core.is_active():
        core.abort(status, grace_s)


def end_for(cause: BaseException) -> "NoReturn":
    """End this process for what went wrong before the program: errors of ours in one sentence, said once."""
    if isinstance(cause, UsageError):  # the same on every rank
        end(2, str(cause), speaks=is_first())
    if isinstance(cause, OSError):  # no MPI library: the same on every rank of a host
        end(1, str(cause), speaks=is_first_on_host(), aborts=False)
    if type(cause) is RuntimeError or isinstance(cause, (KeyboardInterrupt, MemoryError)):  # and others of its host
        core: Any = sys.modules.get("mpiimport._core")
        first = core is None or core.is_first_on_host()
        if isinstance(cause, RuntimeError):
            end(1, str(cause), speaks=first)
        if isinstance(cause, MemoryError):
            end(1, "there is no memory left to start with.", speaks=first)
        end(130, "interrupted during the start.", speaks=first)
    abort(1, END_S)
    raise cause


def own_folder() -> str:
    """Return the folder that mpiimport and site_mpi are installed in."""
    return __file__.rpartition("/")[0].rpartition("/")[0]


def main() -> None:
    """Do what `python-mpi` is asked to do."""
    main_module = sys.modules["__main__"].__dict__
    for name in [name for name in main_module if not name.startswith("__")]:
        del main_module[name]
    linecache: Any = sys.modules.get("linecache")
    if linecache is not None:  # from 3.13 on it knows the lines of `-c`, which are the launcher's
        linecache.cache.pop("<string>", None)
        getattr(linecache, "_interactive_cache", {}).clear()
    arguments = sys.argv[1:]
    folder = own_folder()
    pop_path0()
    try:
        settings, rest = parse(arguments)
        if settings.help or settings.version:
            if is_first():
                versions = "python-mpi %s (Python %s)\n" % (load_core(folder).__version__, sys.version.split()[0])
                sys.stdout.write(usage() if settings.help else versions)
            sys.exit(0)
        place = connect(settings, folder)
        if settings.write_bundle is not None and place is not None:
            raise UsageError("--write-bundle is for one process: start python-mpi without mpiexec")
        alone = place is None and opens_alone(settings)
        if place is None and reports(settings, place):
            problem = report_problem(settings.report or "")
            if problem:
                raise UsageError(problem)
        elif place is None and not alone and not settings.verbose and settings.write_bundle is None:
            run_plain(settings, rest, arguments, folder)
            return
        bundle = load_package(place, settings, folder, alone=alone)
    except SystemExit:
        raise
    except BaseException as cause:
        end_for(cause)
    from site_mpi import stages

    stages.Start(settings, place, bundle, alone=alone).run_program(rest, arguments)


if sys.version_info >= (3, 11):
    # Frames live in chunks of 16 KB, which CPython maps and unmaps whenever calls cross the end of one: thousands of
    # times, where an import loop happens to run at that depth. What `main` calls has the rest of a chunk of 256 KB.
    main.__code__ = main.__code__.replace(co_stacksize=1 << 14)


def pop_path0() -> "list[str]":
    """Take from `sys.path` what Python put before it for the program: `site` does not see it yet. Return it, a list."""
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False):
        return []
    return [sys.path.pop(0)]


def run_plain(settings: Settings, rest: "list[str]", arguments: "list[str]", folder: str) -> None:
    """Do what plain Python does: there is nobody to share with."""
    execute_package(read_package(PLAIN_PACKAGE, folder))
    from site_mpi import program

    kind, target, argv = program.describe(settings, rest)
    program.restore_arguments(argv, arguments)
    run_site(folder)
    program.run(program.prepare(kind, target), None)


def run_site(folder: str) -> None:
    """Run the real `site`, as if Python had been started without `-S`."""
    import site

    sys.flags = load_core(folder).flags_with_site(sys.flags)
    site.main()


def start_here() -> None:
    """Start mpiimport for the program that has just imported `site_mpi` under `python -S`. Collective."""
    folder = own_folder()
    path0 = pop_path0()
    try:
        settings = Settings()
        place = connect(settings, folder)
        if place is None:
            run_site(folder)
            sys.path[:0] = path0
            return
        bundle = load_package(place, settings, folder)
    except BaseException as cause:
        end_for(cause)
    from site_mpi import stages

    asked, rest = parse(command_line()[1:], settings=settings)
    stages.Start(settings, place, bundle).start_here(asked, rest, path0)


def command_line() -> "list[str]":
    """Return the command line of this process, Python's own options included."""
    if hasattr(sys, "orig_argv"):
        return sys.orig_argv
    with open("/proc/self/cmdline", "rb") as file:  # 3.9
        return file.read().decode("utf-8", "surrogateescape").split("\0")[:-1]


def install(chosen: "dict[str, object]") -> None:
    """Do what `mpiimport.install` does, in a process whose `site` has run. Collective."""
    settings = Settings(**chosen)
    place = connect(settings, own_folder())
    if place is None:
        return
    from site_mpi import stages

    stages.Start(settings, place).install()
