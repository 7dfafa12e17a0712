"""The command `mpiimport`: what a user does with profiles and bundles; and `doctor`, for mpiexec, too."""

import argparse
import contextlib
import datetime
import os
import shutil
import sys
import sysconfig
from collections import Counter
from pathlib import Path

from mpiimport import _core, bundle, profile
from site_mpi import boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn


def main(arguments: "list[str] | None" = None) -> int:
    """Do what the command line asks for. Return the exit status."""
    chosen = parser().parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may be of any bytes
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except OSError as cause:
        if cause.errno is None or cause.filename is not None:  # it is not about what was printed
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again at its end
        if not isinstance(cause, BrokenPipeError):
            sys.stderr.write("mpiimport: cannot write to standard output: %s\n" % cause.strerror)
        return 1
    return status


class Parser(argparse.ArgumentParser):
    """A parser whose complaints come from one rank."""

    def error(self, message: str) -> "NoReturn":
        """Say what is wrong with the command line and end."""
        if boot.is_first():
            self.print_usage(sys.stderr)
        boot.end(2, message, speaks=boot.is_first())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = Parser(
        prog="mpiimport", description="What belongs to python-mpi: profiles, bundles, examination, measurement."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    profiles = commands.add_parser("profile", help="what earlier runs of programs imported")
    actions = profiles.add_subparsers(required=True, metavar="ACTION")
    action = actions.add_parser("list", help="the profiles below the cache folder")
    action.set_defaults(run=list_profiles)
    action = actions.add_parser("show", help="what is in a profile")
    action.add_argument("file", help="the profile, or the program that it is of")
    action.add_argument("-v", "--verbose", action="store_true", help="each module by name")
    action.set_defaults(run=show_profile)
    action = actions.add_parser("clear", help="remove profiles")
    action.add_argument("files", nargs="*", help="the profiles, or the programs that they are of; without any: all")
    action.set_defaults(run=clear_profiles)

    bundles = commands.add_parser(
        "bundle",
        help="one file that holds what a program imports",
        usage="mpiimport bundle -o FILE [--include NAMES] [-c code | -m module | script] [argument] ...\n"
        "       mpiimport bundle show [-v] FILE",
    )
    bundles.add_argument("-o", "--output", metavar="FILE", help="the bundle to be made")
    bundles.add_argument("--include", metavar="NAMES", default="", help="further modules, separated by commas")
    bundles.add_argument("-v", "--verbose", action="store_true", help="each module by name")
    bundles.add_argument("program", nargs=argparse.REMAINDER, help="what is to be run later, or `show` and a bundle")
    bundles.set_defaults(run=make_or_show_bundle)

    doctor = commands.add_parser("doctor", help="what python-mpi meets here, alone or under mpiexec")
    doctor.add_argument("--json", action="store_true", help="for programs: docs/reference/doctor.md")
    doctor.add_argument("--timeout", type=seconds, default=60.0, metavar="SECONDS", help="how long MPI may take")
    doctor.add_argument("-m", dest="module", action="store_true", help="the program is a module, as in python -m")
    doctor.add_argument("program", nargs="?", help="a script whose imports are looked at; it is not run")
    doctor.set_defaults(run=examine)

    bench = commands.add_parser(
        "bench",
        help="how much faster a job starts with python-mpi than with plain Python",
        usage="mpiimport bench [--rounds N] [--timeout SECONDS] [--json] mpiexec ... python-mpi script.py ...",
    )
    bench.add_argument("--rounds", type=rounds, default=5, metavar="N", help="how often each is started (5)")
    bench.add_argument("--timeout", type=seconds, default=600.0, metavar="SECONDS", help="how long one start may take")
    bench.add_argument("--json", action="store_true", help="for programs: docs/reference/bench.md")
    bench.add_argument("launch", nargs=argparse.REMAINDER, help="how the job is launched")
    bench.set_defaults(run=compare)
    return top


def rounds(text: str) -> int:
    """Return a number of rounds."""
    if not text.isdecimal() or not 0 < int(text) < 1000:
        raise argparse.ArgumentTypeError("--rounds is `%s`; it must be a whole number from 1 to 999" % text)
    return int(text)


def compare(chosen: argparse.Namespace) -> int:
    """Measure the start of a job with plain Python and with python-mpi."""
    from mpiimport import bench

    return bench.measure(chosen)


def seconds(text: str) -> float:
    """Return a time limit."""
    try:
        return boot.number(text, "--timeout", "of seconds above 0")
    except boot.UsageError as cause:
        raise argparse.ArgumentTypeError(str(cause)) from None


def examine(chosen: argparse.Namespace) -> int:
    """Look at what python-mpi meets here."""
    from mpiimport import doctor

    return doctor.examine(chosen)


def fail(message: str) -> int:
    """Say what is wrong. Return the exit status."""
    sys.stderr.write("mpiimport: %s\n" % message)
    return 1


def profile_folder() -> "Path | None":
    """Return where profiles are kept."""
    folder = profile.cache_folder()
    return None if folder is None else Path(folder, "profiles")


def profile_files() -> "list[Path]":
    """List the profiles below the cache folder, the last used first."""
    folder = profile_folder()
    found = [] if folder is None else folder.glob("*.profile")
    return sorted(found, key=lambda file: file.lstat().st_mtime, reverse=True)


def read_profile(file: Path) -> "tuple[dict[str, str], list[tuple[str, list[str]]]]":
    """Return what a profile says of itself, and its questions: (kind, fields). Raises ValueError."""
    try:
        text = _core.read_own(str(file)).decode("utf-8", "surrogateescape")
    except OSError as cause:
        raise ValueError("cannot read `%s`: %s" % (file, cause.strerror)) from None
    except ValueError as cause:
        raise ValueError("`%s` %s" % (file, cause)) from None
    header, _, body = text.partition("\n\n")
    first, *lines = header.split("\n")
    if first != profile.FORMAT.decode():
        raise ValueError("`%s` is no profile of this version of mpiimport" % file)
    *body_lines, rest = body.split("\n")
    questions = []
    for line in body_lines:
        runs, *question = line.split("\t")
        if rest or not runs.isdecimal() or len(question) < 2:
            raise ValueError("`%s` is damaged" % file)
        questions.append((question[0], question[1:]))  # what counts the runs may have any length
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}, questions


def is_profile(path: str) -> bool:
    """Whether this is a file that was once written as a profile."""
    try:
        with open(path, "rb") as file:
            return file.read(len(profile.KIND)) == profile.KIND
    except OSError:
        return False


def files_of(names: "Iterable[str]") -> "list[Path]":
    """Return the profiles that are meant by their files or their programs. Raises ValueError."""
    found = []
    of = {}
    for file in profile_files():
        with contextlib.suppress(ValueError):
            of[file] = read_profile(file)[0].get("program")
    for name in names:
        if Path(name).suffix == ".profile" or is_profile(name):
            found.append(Path(name))
            continue
        path = os.path.abspath(name)
        meant = {"module %s" % name, *("%s %s" % (kind, path) for kind in ("script", "folder", "main"))}
        of_program = [file for file, program in of.items() if program in meant]
        if not of_program:
            raise ValueError("there is no profile of `%s`; `mpiimport profile list` lists all" % name)
        found += of_program
    return found


def list_profiles(_: argparse.Namespace) -> int:
    """Print a line for each profile."""
    status = 0
    for file in profile_files():
        try:
            about, questions = read_profile(file)
        except ValueError as cause:
            status = fail(str(cause))
            continue
        used = datetime.datetime.fromtimestamp(file.lstat().st_mtime).astimezone()
        python = about.get("python", "").partition(" ")[0]
        print(
            "%s  %s  %5d questions  %6.1f kB  %s\n    %s"
            % (
                used.strftime("%Y-%m-%d %H:%M"),
                python,
                len(questions),
                file.lstat().st_size / 1e3,
                about.get("program"),
                file,
            )
        )
    return status


def show_profile(chosen: argparse.Namespace) -> int:
    """Print what is in a profile."""
    try:
        files = files_of([chosen.file])
        read = [(file, *read_profile(file)) for file in files]
    except ValueError as cause:
        return fail(str(cause))
    for file, about, questions in read:
        print(file)
        for name, value in about.items():
            print("%-8s %s" % (name, value))
        show_names([fields[0] for kind, fields in questions if kind == "module"], verbose=chosen.verbose)
        for what in ("file", "folder", "link"):
            count = sum(kind == what for kind, _ in questions)
            if count:
                print("%6d  %ss" % (count, what))
    return 0


def show_names(names: "list[str]", *, verbose: bool) -> None:
    """Print how many modules of each package there are, or each by its name."""
    if verbose:
        for name in sorted(names):
            print("  " + name)
        return
    for package, count in Counter(name.partition(".")[0] for name in names).most_common():
        print("%6d  %s" % (count, package))


def clear_profiles(chosen: argparse.Namespace) -> int:
    """Remove profiles."""
    try:
        files = files_of(chosen.files) if chosen.files else profile_files()
    except ValueError as cause:
        return fail(str(cause))
    for file in files:
        try:
            file.unlink()
        except OSError as cause:
            return fail("cannot remove `%s`: %s" % (file, cause.strerror))
    print("removed %d" % len(files))
    return 0


def make_or_show_bundle(chosen: argparse.Namespace) -> int:
    """Have `python-mpi` make a bundle, or say what is in one."""
    if chosen.output is not None:
        launcher = python_mpi()
        if launcher is None:
            return fail("there is no python-mpi beside this Python. Install mpiimport again")
        make_bundle(launcher, chosen)
    words = [word for word in chosen.program if word != "-v"]
    if len(words) != 2 or words[0] != "show":
        return fail("say which bundle to make with -o FILE, or which to show with `show FILE`")
    try:
        found = bundle.Bundle(boot.open_bundle(words[1], boot.own_folder()))
    except OSError as cause:
        return fail("cannot read the bundle `%s`: %s" % (words[1], cause.strerror))
    except ValueError as cause:
        return fail("the bundle `%s` %s." % (words[1], cause))
    show_bundle(found, verbose=chosen.verbose or "-v" in chosen.program)
    return 0


def make_bundle(launcher: Path, chosen: argparse.Namespace) -> "NoReturn":
    """Become `python-mpi`, which makes the bundle."""
    options = ["--write-bundle", chosen.output, "--include", chosen.include]
    sys.stdout.flush()
    os.execv(launcher, [str(launcher), *options, *chosen.program])


def show_bundle(found: bundle.Bundle, *, verbose: bool) -> None:
    """Print what is in a bundle."""
    created = datetime.datetime.fromtimestamp(found.table["created"]).astimezone()
    print("%-22s %s" % ("program", found.table["program"]))
    print("%-22s %s" % ("made", created.strftime("%Y-%m-%d %H:%M")))
    for what, value in found.table["identity"].items():
        print("%-22s %s" % (what, value))
    names = [
        name for one in (found.site, found.program) for offsets in one.index["records"].values() for name in offsets
    ]
    native_bytes = sum(size for _, size, _ in found.native.values())
    print("%-22s %.1f MB" % ("size", found.opened.size_bytes / 1e6))
    print("%-22s %d, %.1f MB" % ("native files", len(found.native), native_bytes / 1e6))
    show_names(names, verbose=verbose)


def python_mpi() -> "Path | None":
    """Find the launcher that was installed with this package."""
    folders = [os.path.dirname(os.path.abspath(sys.argv[0])), sysconfig.get_path("scripts")]
    found = shutil.which("python-mpi", path=os.pathsep.join(folders)) or shutil.which("python-mpi")
    return Path(found) if found else None
