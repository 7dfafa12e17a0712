"""`mpiimport doctor`: what python-mpi meets here, and what to do about what is wrong with it.

Alone it looks at this host; under mpiexec it also joins the ranks, and names the hosts that differ from rank 0's. The
rules are those of the modules that it asks: here it is only said what comes of them. The user's program is not run, and
what may crash or hang runs in a child process or under a time limit.
"""

import datetime
import difflib
import io
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from functools import cache
from pathlib import Path

from mpiimport import _core, answers, estimate, profile
from mpiimport.command import profile_files, python_mpi, read_profile
from mpiimport.session import Session
from site_mpi import boot, program, stages

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from mpiimport.answers import Answer
    from mpiimport.opening import Opening
    from site_mpi.boot import Place, Settings

FORMAT = 1
"""Of `--json`; described in docs/reference/doctor.md."""

OK, WARNING, PROBLEM = LEVELS = ("ok", "warning", "problem")

CHILD_LIMIT_S = 30

UNBROKEN: "Any" = {"break_long_words": False, "break_on_hyphens": False}

LOCAL_FILESYSTEMS = {
    0x0000EF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
}
"""What `statfs` says of filesystems that a host has for itself, and their names."""

FAMILIES = {"mpich": ("hydra", "mpich", "intel(r) mpi"), "openmpi": ("open mpi", "openrte", "open-mpi", "prrte")}
"""What `mpiexec --version` says of itself, by the family of MPI libraries that it starts."""

IN_CHILD = "import json, sys; sys.path[:] = [*filter(None, sys.path), sys.argv[1]]; from mpiimport import _core\n"
FIND_LIBMPI = IN_CHILD + (
    "candidates, launcher = json.loads(sys.argv[2])\n"
    "print(json.dumps(_core.find_libmpi(candidates, launcher=launcher)))\n"
)
FIND_MPI4PY = IN_CHILD + (
    "import mpi4py; mpi4py.rc.initialize = False\n"
    "from mpi4py import MPI\n"
    "found, _ = _core.find_libmpi([], launcher=None)\n"
    "print(json.dumps([mpi4py.__version__, MPI.__file__, found and found[1]]))\n"
)
SAY_PYTHON = (
    "import json, sys; print(json.dumps([sys.prefix, sys.version.split()[0], sys.modules['site_mpi'].__path__[0]]))"
)


class Report:
    """What was found: `facts` by subject, and `findings`, which are printed as they come if `shows`."""

    def __init__(self, *, shows: bool) -> None:
        self.shows = shows
        self.facts: dict[str, Any] = {}
        self.findings: list[dict[str, Any]] = []

    def add(self, level: str, subject: str, text: str, remedy: str = "", hosts: "Sequence[str]" = ()) -> None:
        """Add a finding; `hosts` are those that it is about, if not rank 0's."""
        self.findings.append(
            {"level": level, "subject": subject, "text": text, "remedy": remedy, "hosts": list(hosts)},
        )
        if self.shows:
            where = "on %s: " % listed(hosts) if hosts else ""
            lines = [*(where + text).split("\n"), *(["-> " + remedy] if remedy else [])]
            print("%-8s %-10s %s" % (level, subject, "\n".join(map(wrapped, lines)).lstrip()), flush=True)

    def ok(self, subject: str, text: str) -> None:
        """Add what is as it should be."""
        self.add(OK, subject, text)

    def warn(self, subject: str, text: str, remedy: str) -> None:
        """Add what costs something, or may be a mistake."""
        self.add(WARNING, subject, text, remedy)

    def fail(self, subject: str, text: str, remedy: str) -> None:
        """Add what keeps python-mpi from working as it should."""
        self.add(PROBLEM, subject, text, remedy)

    def refuse(self, subject: str, cause: BaseException) -> None:
        """Add an error of ours: its last sentence is what to do."""
        text, _, remedy = str(cause).rpartition(". ")
        self.fail(subject, text or remedy, remedy if text else "")

    def worst(self) -> str:
        """Return the worst level of all findings."""
        return max((one["level"] for one in self.findings), key=LEVELS.index, default=OK)

    def end(self, *, as_json: bool) -> int:
        """Print the verdict, or all as JSON. Return the exit status."""
        counts = Counter(one["level"] for one in self.findings)
        if as_json:
            print(json.dumps({"format": FORMAT, "status": self.worst(), **self.facts, "findings": self.findings}))
        else:
            print("\n%s, %s." % (number(counts[PROBLEM], "problem"), number(counts[WARNING], "warning")))
        sys.stdout.flush()
        return int(counts[PROBLEM] > 0)


def wrapped(line: str) -> str:
    """Return a line that stands beside the subject."""
    indent = 20 * " "
    return textwrap.fill(line, 120, initial_indent=indent, subsequent_indent=indent, **UNBROKEN)


def listed(names: "Sequence[str]", limit: int = 4) -> str:
    """Return names as a text of bounded length."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (" and %d more" % more if more > 0 else "")


def number(count: int, what: str) -> str:
    """Return `1 rank`, `2 ranks`."""
    return "{:,} {}{}".format(count, what, "" if count == 1 else "s")


def examine(chosen: "argparse.Namespace") -> int:
    """Look at everything and print what was found. Collective. Return the exit status."""
    boot.pop_path0()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may have any bytes
    report = Report(shows=boot.is_first() and not chosen.json)
    settings = look_at_settings(report)
    facts = report.facts
    facts.update(mpiimport=_core.__version__, host=os.uname().nodename)
    if boot.is_first_on_host():  # the other ranks of this host would find the same
        look_at_python(report)
        look_at_path(report)
        look_at_store(report, settings)
        look_at_cache(report, settings)
        look_at_launcher(report)
        look_at_libmpi(report, settings)
        look_at_mpi4py(report)
    place = join(report, settings, chosen)
    if not (boot.is_first() if place is None else place["rank"] == 0):
        if place is None and report.worst() == PROBLEM:
            time.sleep(boot.END_S)  # the launcher may end the job with the first rank that ends
            return 1
        return 0
    if chosen.program:
        look_at_program(report, settings, "module" if chosen.module else "script", chosen.program)
    return report.end(as_json=chosen.json)


def ask(argv: "Iterable[str]", env: "Mapping[str, str] | None" = None) -> "tuple[str, str]":
    """Run a program that may do anything. Return (what it printed, what is wrong with it)."""
    try:
        done = subprocess.run(
            list(argv),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            errors="replace",
            timeout=CHILD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", "it did not end in %d s" % CHILD_LIMIT_S
    except OSError as cause:
        return "", "it cannot be run: %s" % cause.strerror
    if done.returncode < 0:
        return "", "it was ended by signal %d" % -done.returncode
    if done.returncode:
        return "", (done.stderr or done.stdout).strip().rpartition("\n")[2] or "it ended with %d" % done.returncode
    return done.stdout, ""


def ask_python(code: str, *arguments: str, env: "Mapping[str, str] | None" = None) -> "tuple[Any, str]":
    """Run code in another process of this Python. Return (what it said in JSON, what is wrong)."""
    said, wrong = ask([sys.executable, "-c", code, boot.own_folder(), *arguments], env)
    return (None, wrong) if wrong else (json.loads(said.strip().rpartition("\n")[2]), "")


@cache
def filesystem_of(path: str) -> "tuple[str | None, bool]":
    """Return (name of the filesystem that a path is on, None if there is none; whether hosts share it)."""
    (kind,) = _core.filesystem_types([path])
    if kind is None:
        return None, False
    shared = boot.SHARED_FILESYSTEMS.get(kind)
    return shared or LOCAL_FILESYSTEMS.get(kind, "0x%x" % kind), shared is not None


def look_at_settings(report: Report) -> "Settings":
    """Look at the variables of the environment. Return the settings, without those that make no sense."""
    environment = sys.modules["posix"].environ
    known = boot.known_variables()
    report.facts["variables"] = {name: value for name, value in sorted(os.environ.items()) if name in known}
    for name in boot.unknown_variables():
        nearest = difflib.get_close_matches(name, known, 1)
        remedy = "Did you mean %s?" % nearest[0] if nearest else "`python-mpi --help` lists all."
        report.warn("variables", "there is no variable `%s`; it is ignored" % name, remedy)
        del environment[os.fsencode(name)]
    while True:
        try:
            settings = boot.Settings()
            boot.thread_level(settings)
            break
        except boot.UsageError as cause:  # it begins with the name of the variable
            text, _, remedy = str(cause).partition("; ")
            report.fail("variables", text, remedy[:1].upper() + remedy[1:] + ".")
            del environment[str(cause).partition(" ")[0].encode()]
    if settings.local or settings.policy == "local":
        names = [name for name in ("MPIIMPORT_LOCAL", "MPIIMPORT_DEBUG", "MPIIMPORT_POLICY") if os.environ.get(name)]
        text = "python-mpi is plain Python because of %s"
        report.warn("variables", text % listed(names), "Unset %s." % listed(names))
    if os.environ.get("PYTHONHOME"):
        report.warn(
            "variables",
            "PYTHONHOME is `%s`: every Python that starts here takes its standard library from there"
            % os.environ["PYTHONHOME"],
            "Unset PYTHONHOME: an interpreter finds its own.",
        )
    return settings


def look_at_python(report: Report) -> None:
    """Look at this Python, and at the python-mpi that belongs to it."""
    version = sys.version.split()[0]
    base = "" if sys.prefix == sys.base_prefix else " (an environment of %s)" % sys.base_prefix
    beside, on_path = python_mpi(), shutil.which("python-mpi")
    report.facts["python"] = {
        "version": version,
        "implementation": sys.implementation.name,
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "mpiimport": boot.own_folder(),
        "python_mpi": on_path or (str(beside) if beside else None),
    }
    report.ok("mpiimport", "%s in %s, on host %s" % (_core.__version__, boot.own_folder(), report.facts["host"]))
    report.ok("python", "%s %s in %s%s" % (sys.implementation.name, version, sys.prefix, base))
    if beside is None:
        report.fail("python-mpi", "there is no python-mpi beside this Python", "Install mpiimport again.")
        return
    if on_path is None:
        remedy = "Activate the environment, or start `%s` by its full path." % beside
        report.warn("python-mpi", "python-mpi is not on PATH", remedy)
    launcher = on_path or str(beside)
    others = {name: value for name, value in os.environ.items() if not name.startswith("MPIIMPORT_")}
    chosen = {name: os.environ[name] for name in ("MPIIMPORT_PYTHON",) if name in os.environ}
    said, wrong = ask([launcher, "-c", SAY_PYTHON], {**others, **chosen, "MPIIMPORT_LOCAL": "1"})
    if wrong:
        report.fail("python-mpi", "`%s` does not work: %s" % (launcher, wrong), "Install mpiimport again.")
        return
    prefix, its_version, folder = json.loads(said.strip().rpartition("\n")[2])
    if (prefix, its_version, os.path.dirname(folder)) == (sys.prefix, version, boot.own_folder()):
        report.ok("python-mpi", "%s, which starts this Python" % launcher)
        return
    report.fail(
        "python-mpi",
        "`%s` starts Python %s in %s with the mpiimport in %s; this is Python %s in %s with that in %s"
        % (launcher, its_version, prefix, os.path.dirname(folder), version, sys.prefix, boot.own_folder()),
        "Put the bin folder of the environment that you want first in PATH, and unset MPIIMPORT_PYTHON.",
    )


def look_at_path(report: Report) -> None:
    """Look on which filesystems Python searches."""
    entries = []
    by_filesystem: dict[str, list[str]] = {}
    for entry in dict.fromkeys([*sys.path, boot.own_folder(), sys.prefix]):
        name, shared = filesystem_of(entry)
        if entry in sys.path:
            entries.append({"path": entry, "filesystem": name, "shared": shared})
        if name is not None:
            by_filesystem.setdefault(name, []).append(entry)
    report.facts["path"] = entries
    on = ["%s (%s)" % (name, listed(found, 8)) for name, found in by_filesystem.items()]
    if any(entry["shared"] for entry in entries):
        text = "on %s: every rank of plain Python asks the shared ones for each module" % "; ".join(on)
    else:
        text = "on %s: no filesystem that hosts share, so there is little to save" % "; ".join(on)
    report.ok("sys.path", text)


def look_at_store(report: Report, settings: "Settings") -> None:
    """Look where this host's node store can be."""
    candidates = report.facts["store"] = [examine_folder(folder) for folder in stages.store_folders(settings)]
    usable = [one for one in candidates if one["problem"] is None]
    remedy = "Set MPIIMPORT_TMPDIR to a folder on each host that has room and is not mounted noexec."
    refused = ["`%s`: %s" % (one["folder"], one["problem"]) for one in candidates if one["problem"] is not None]
    if not usable:
        report.fail("store", "this host can have no node store; %s" % "; ".join(refused), remedy)
        return
    first = usable[0]
    text = "%s on %s, %s free" % (first["folder"], first["filesystem"], megabytes(first["free_bytes"]))
    if first["shared"]:
        report.warn("store", text + ": hosts share it, and its copies save nothing", remedy)
    elif candidates[0] is not first:
        report.warn("store", "%s; %s" % (text, "; ".join(refused)), remedy)
    else:
        report.ok("store", text)


def examine_folder(folder: str) -> "dict[str, Any]":
    """Say of a folder what matters to a node store."""
    name, shared = filesystem_of(folder)
    free_bytes = executable = None
    try:
        status = os.statvfs(folder)
    except OSError:
        pass
    else:
        free_bytes, executable = status.f_bavail * status.f_frsize, not status.f_flag & os.ST_NOEXEC
    return {
        "folder": folder,
        "filesystem": name,
        "shared": shared,
        "free_bytes": free_bytes,
        "executable": executable,
        "problem": _core.store_problem(folder),
    }


def megabytes(size_bytes: int) -> str:
    """Return a size as a text."""
    return f"{size_bytes / 1e6:,.0f} MB"


def look_at_cache(report: Report, settings: "Settings") -> None:
    """Look at the folder of the profiles."""
    folder = profile.cache_folder()
    about = report.facts["cache"] = {"folder": folder, "exists": False, "writable": False, "problem": None}
    if settings.profile == "off":
        report.ok("cache", "profiles are off (MPIIMPORT_PROFILE): every run is a first run")
        return
    where = "Set MPIIMPORT_CACHE_DIR to a folder of yours that all hosts share."
    if folder is None:
        about["problem"] = "there is no home folder for it"
        report.warn("cache", "there is no home folder for profiles: every run is a first run", where)
        return
    existing = next(one for one in (folder, *map(str, Path(folder).parents)) if os.path.exists(one))
    about["exists"] = existing == folder
    about["writable"] = os.access(existing, os.W_OK | os.X_OK) and os.path.isdir(existing)
    if not about["writable"]:
        about["problem"] = "`%s` cannot be written to" % existing
        report.warn("cache", "%s: no profile is kept, and every run is a first run" % about["problem"], where)
        return
    if not about["exists"]:
        report.ok("cache", "%s, which is made when it is needed" % folder)
        return
    for one in (folder, folder + "/profiles"):
        if os.path.exists(one):
            status = os.stat(one)
            if status.st_uid != os.geteuid():
                about["problem"] = "`%s` belongs to another user" % one
                report.warn("cache", about["problem"] + ", who can remove what is in it", where)
            elif status.st_mode & 0o022:
                about["problem"] = "others can write to `%s`" % one
                report.warn(
                    "cache",
                    about["problem"] + " and remove what is in it",
                    "Make it yours alone: `chmod go-w %s`." % one,
                )
    files = profile_files()
    for file in files:
        try:
            read_profile(file)
        except ValueError as cause:
            report.warn("cache", str(cause), "Remove it: `mpiimport profile clear %s`." % file)
    if about["problem"] is None:
        report.ok("cache", "%s, with %s" % (folder, number(len(files), "profile")))


def look_at_launcher(report: Report) -> None:
    """Look who started this, or whose mpiexec would."""
    started_by = boot.launcher()
    mpiexec, srun = shutil.which("mpiexec"), shutil.which("srun")
    variable, ranks, family = started_by or (None, None, None)
    if started_by is None:
        said = ask([mpiexec, "--version"])[0].lower() if mpiexec else ""
        family = next((name for name, words in FAMILIES.items() if any(word in said for word in words)), None)
    report.facts["mpi"] = {"launcher": variable, "ranks": ranks, "mpiexec": mpiexec, "family": family}
    if started_by is not None:
        who = "srun, which" if boot.is_srun(started_by[0]) else "one that"
        text = "%s sets %s%s" % (who, variable, " (of %s)" % family if family else "")
        report.ok(
            "launcher",
            text + (": one rank has nobody to share with, but may import by a profile or a bundle" * (ranks == 1)),
        )
    elif mpiexec:
        report.ok("launcher", "%s (of %s)" % (mpiexec, family or "an MPI that it does not name"))
    elif srun:
        report.ok("launcher", "%s (of Slurm); `srun --mpi=list` says which MPI it can start" % srun)
    else:
        report.warn("launcher", "neither mpiexec nor srun is on PATH", "Load the module of your MPI.")


def look_at_libmpi(report: Report, settings: "Settings") -> None:
    """Look which MPI library python-mpi would use, without starting it."""
    about = report.facts["mpi"]
    candidates = boot.libmpi_candidates(settings, boot.own_folder())
    answer, wrong = ask_python(FIND_LIBMPI, json.dumps([candidates, settings.implementation or about["family"]]))
    found, refused = answer or (None, [])
    candidate, about["library"], about["abi"], about["version"] = found or (None,) * 4
    about["candidate"], about["refused"] = candidate, [{"candidate": name, "reason": why} for name, why in refused]
    remedy = "Load the module of your MPI, or set MPIIMPORT_LIBMPI to the libmpi of your mpiexec."
    tried = "".join("\n%s: %s" % tuple(one) for one in refused)
    if wrong:
        report.fail("libmpi", "loading an MPI library failed: %s" % wrong, remedy)
    elif found is None:
        report.fail("libmpi", "no usable MPI library found; tried%s" % (tried or " nothing"), remedy)
    elif {about["abi"], about["family"]} == {"mpich", "openmpi"}:  # one that fits would have been searched for
        text = "`%s` is loaded already; it is an %s library, but the launcher belongs to %s"
        report.fail("libmpi", text % (about["library"], about["abi"], about["family"]), "Unset LD_PRELOAD.")
    else:
        why = "it is loaded already"
        if candidate is not None:
            chosen = [name for name in ("MPIIMPORT_LIBMPI", "MPI4PY_LIBMPI") if os.environ.get(name)]
            how = "%s names it" % chosen[0] if chosen else "it is the first that loads and fits"
            why = "found as `%s`; %s" % (candidate, how)
        text = "%s, %s, ABI %s (%s)" % (about["library"], shown(about["version"]), about["abi"], why)
        report.ok("libmpi", text + (", after" + tried if tried else ""))


def look_at_mpi4py(report: Report) -> None:
    """Look whether mpi4py uses the same MPI library, without starting MPI."""
    about: dict[str, Any] = {"version": None, "file": None, "library": None, "same_library": None}
    report.facts["mpi4py"] = about
    ours = report.facts["mpi"]["library"]
    (version, file, library), wrong = ask_mpi4py(os.environ)
    if wrong.startswith("ModuleNotFoundError: No module named 'mpi4py'"):
        report.ok("mpi4py", "it is not installed, and mpiimport does not need it")
        return
    about.update(version=version, file=file, library=library)
    remedy = "Set MPIIMPORT_LIBMPI and MPI4PY_LIBMPI to the libmpi of your mpiexec."
    if ours is None:
        if wrong:
            report.warn("mpi4py", "it cannot be imported: %s" % wrong, remedy)
        return
    # python-mpi hands its library over; a mpi4py that is linked to another does not take it.
    (version, file, given), still_wrong = ask_mpi4py({**os.environ, "MPI4PY_LIBMPI": ours})
    about.update(version=version, file=file, same_library=is_same_file(given, ours))
    if still_wrong:
        report.fail("mpi4py", "it cannot be imported with `%s`: %s" % (ours, still_wrong), remedy)
    elif not about["same_library"]:
        text = "`%s` is linked to `%s`, but python-mpi would use `%s`" % (file, given, ours)
        report.fail("mpi4py", text, "Set MPIIMPORT_LIBMPI to the library of mpi4py, or build mpi4py for yours.")
    elif not is_same_file(library, ours):
        text = "cannot import it: %s" % wrong if wrong else "has it use `%s`" % library
        report.warn("mpi4py", "plain Python %s; under python-mpi it is given `%s`" % (text, ours), remedy)
    else:
        report.ok("mpi4py", "%s in %s, on the same library" % (version, file))


def ask_mpi4py(environment: "Mapping[str, str]") -> "tuple[Any, str]":
    """Import mpi4py.MPI in another process, without starting MPI. Return ((version, file, libmpi), what is wrong)."""
    found, wrong = ask_python(FIND_MPI4PY, env=environment)
    return found or (None, None, None), wrong


def is_same_file(path: "str | None", other: str) -> bool:
    """Whether both are there and the same."""
    return bool(path) and os.path.exists(path or "") and os.path.exists(other) and os.path.samefile(path or "", other)


def join(report: Report, settings: "Settings", chosen: "argparse.Namespace") -> "Place | None":
    """Join the other ranks and compare the hosts. Collective. What keeps a rank from it is a problem in its report."""
    if boot.launcher() is None:
        return None
    settings.timeout_s = chosen.timeout + 2 * boot.END_S  # the core would end this process without its report

    def give_up() -> None:
        """End this process: MPI does not come back."""
        if boot.is_first():
            report.fail(
                "mpi",
                "MPI did not start within %g s: some ranks did not come, or cannot reach others" % chosen.timeout,
                "See what other ranks said, and try 2 ranks on one host. If other programs run in this world, start "
                "ours with MPIIMPORT_LOCAL=1.",
            )
            report.end(as_json=chosen.json)
        time.sleep(boot.END_S / 4 if boot.is_first() else boot.END_S)
        os._exit(1)

    watchdog = threading.Timer(chosen.timeout, give_up)
    watchdog.daemon = True
    watchdog.start()
    place = None
    try:
        place = boot.connect(settings, boot.own_folder())
        if place is not None:
            watchdog.cancel()  # the waits from here on have a limit of their own
            compare_hosts(report, place, settings)
    except (boot.UsageError, OSError, RuntimeError) as cause:
        if not any(one["subject"] == "libmpi" and one["level"] == PROBLEM for one in report.findings):
            report.refuse("mpi", cause)
        if isinstance(cause, OSError) and boot.is_first_on_host() and not boot.is_first():
            boot.say("%s: %s" % (report.facts["host"], cause))  # rank 0 may be fine, and cannot hear of it
        if isinstance(cause, RuntimeError):
            boot.abort(1, boot.END_S)
    finally:
        watchdog.cancel()
    return place


def compare_hosts(report: Report, place: "Place", settings: "Settings") -> None:
    """Add to rank 0's report how many ranks each host has, and what is otherwise there. Collective."""
    facts = report.facts
    compared = {"python": facts.get("python"), "library": place["library"], "version": place["library_version"]}
    mine = {
        "host": place["host"],
        "findings": [one for one in report.findings if one["level"] != OK] if "python" in facts else [],
        "compared": {name: compared[name] for name in compared if "python" in facts},
    }
    data = json.dumps(mine).encode()
    sizes = _core.gather(b"%12d" % len(data), "every host to be examined")
    longest = None if sizes is None else b"%d" % max(map(int, sizes))
    longest = _core.broadcast(longest, "rank 0 to ask for what was found")
    everyone = _core.gather(data.ljust(int(longest)), "every host to say what was found")
    if everyone is None:
        return
    ranks = [json.loads(one) for one in everyone]
    hosts = Counter(one["host"] for one in ranks)
    facts["hosts"] = [{"host": host, "ranks": count} for host, count in hosts.items()]
    levels = boot.CHOICES["thread_level"]
    wanted, provided = boot.thread_level(settings), place["thread_level"]
    facts["mpi"].update(
        ranks=place["size"],
        library=place["library"],
        abi=place["abi"],
        version=place["library_version"],
        thread_level_wanted=levels[wanted],
        thread_level=levels[provided],
    )
    per_host = ["%s: %d" % (host, count) for host, count in hosts.items()]
    text = "%s on %s (%s), thread level %s" % (
        number(place["size"], "rank"),
        number(len(hosts), "host"),
        listed(per_host),
        levels[provided],
    )
    if provided < wanted:
        report.warn("mpi", "%s, where %s was asked for" % (text, levels[wanted]), "Let only one thread speak MPI.")
    else:
        report.ok("mpi", text)
    found: dict[str, list[str]] = {}
    for one in ranks:
        for finding in one["findings"]:
            if finding not in mine["findings"]:
                found.setdefault(json.dumps(finding), []).append(one["host"])
        for name, value in one["compared"].items():
            if value != compared[name]:
                text = "%s is `%s`, but on rank 0's host `%s`" % (name, shown(value), shown(compared[name]))
                remedy = "Give all hosts the same software."
                finding = {"level": WARNING, "subject": "hosts", "text": text, "remedy": remedy}
                found.setdefault(json.dumps(finding), []).append(one["host"])
    for text, where in found.items():
        report.add(**{**json.loads(text), "hosts": where})


def shown(value: object) -> str:
    """Return a compared value as a text."""
    return (
        " ".join(map(str, value.values()))
        if isinstance(value, dict)
        else " ".join(str(value).partition("\n")[0].split())
    )


def look_at_program(report: Report, settings: "Settings", kind: str, target: str) -> None:
    """Look what is known of a program, and estimate what its imports cost. It is not run."""
    about: dict[str, Any] = {"kind": kind, "target": target, "source": None, "profile": None, "operations": None}
    report.facts["program"] = about
    remedy = "Name the program as you name it to python-mpi."
    if kind == "script":
        try:
            os.stat(target)
        except OSError as cause:
            report.fail("program", "there is no `%s`: %s" % (target, cause.strerror), remedy)
            return
    sys.dont_write_bytecode = True
    prepared = program.prepare(kind, target)
    if prepared.status is not None:  # it said why, as plain Python does
        report.fail("program", "`%s` cannot be run" % target, remedy)
        return
    import site

    session = Session(boot.Settings(scan="always", policy="opening"), None)
    session.set_stable(stages.environment_folders(site))
    made = session.new_opening()
    forecast = stages.foresee(session, made, kind, prepared)
    assert forecast is not None, "a scan always has a forecast"
    if kind == "module" and not (made.profile and made.profile.earlier) and not forecast.exists(target):
        report.fail("program", "there is no module `%s`" % target, remedy)
        return
    if made.profile is not None and made.profile.earlier:
        about["source"] = "profile"
        asked = made.profile.modules()
        missing = {(tuple(answer.path), fullname): answer for fullname, answer in forecast.missing}
        found = [made.answers.get(question) or missing.get(question) for question in asked]
        about["profile"] = describe_profile(made, len(asked))
        text = "a profile of %s, used last %s: %s" % (
            number(len(asked), "question"),
            about["profile"]["used"],
            made.profile.path,
        )
        report.ok("program", text)
    else:
        about["source"] = "scan"
        # Most names after `from package import` are no modules, and are not asked for.
        found = [answer for answer in forecast.reached() if answer.kind != answers.MISSING]
    far = boot.is_far(settings) or filesystem_of(prepared.folder() or "/")[1]
    about["foresees"] = far or settings.profile not in ("auto", "off")
    if not about["foresees"]:
        text = "all lies on disks of this host: python-mpi has each rank import by itself, and keeps no profile"
        report.ok("program", text)
    elif about["profile"] is None:
        text = "profiles are off, so every run is a first run"
        report.ok("program", text if settings.profile == "off" else "no profile yet: the first run makes it")
    say_operations(report, session, [answer for answer in found if answer is not None])
    needed_bytes = made.native[4] + sum(len(answer.code or b"") for answer in made.answers.values())
    about["store_bytes"] = needed_bytes
    usable = [one for one in report.facts["store"] if one["problem"] is None]
    if usable and usable[0]["free_bytes"] < needed_bytes:
        text = "the program's code has %s, but `%s` has %s free" % (
            megabytes(needed_bytes),
            usable[0]["folder"],
            megabytes(usable[0]["free_bytes"]),
        )
        report.warn("store", text, "Set MPIIMPORT_TMPDIR to a folder on each host that has more room.")


def describe_profile(made: "Opening", questions: int) -> "dict[str, Any]":
    """Say what matters of the profile that an opening was made from."""
    assert made.profile is not None, "there is one"
    assert made.profile.path is not None, "it was read"
    used = os.stat(made.profile.path).st_mtime
    return {
        "file": made.profile.path,
        "age_s": round(time.time() - used),
        "used": datetime.datetime.fromtimestamp(used).astimezone().isoformat(timespec="seconds"),
        "questions": questions,
    }


def say_operations(report: Report, session: Session, found: "list[Answer]") -> None:
    """Add how many file operations one rank's imports are, with and without mpiimport."""
    about = report.facts["program"]
    about.update(estimate.of(found, session.native, is_shared=lambda folder: filesystem_of(folder)[1]))
    plain, ours = about["operations"]["plain"], about["operations"]["python_mpi"]
    modules, files = number(about["modules"], "module"), number(about["native_files"], "native file")
    columns = "{all:,}, of them {shared:,} on shared filesystems"
    lines = [
        "%s and %s, by its %s; file operations of one rank, estimated:" % (modules, files, about["source"]),
        ("plain Python: %s" % columns).format(**plain),
        "(folders searched {folders:,}, modules found and read {modules:,}, native files {libraries:,})".format(
            **plain
        ),
        ("python-mpi, other than rank 0, when all is foreseen: %s" % columns).format(**ours),
    ]
    report.ok("imports", "\n".join(lines))
