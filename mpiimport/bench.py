"""`mpiimport bench`: how long the ranks of a job take to import what a program imports, with plain Python and with us.

The launch command is the user's own. It is run by turns with plain Python and with python-mpi, in both with a program
that has the import statements at the top of the user's, and ends. Each rank says how long it took since its process
began, to 10 ms, so that no clocks of two hosts are compared.
"""

import ast
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mpiimport import profile
from site_mpi import boot, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import Any

MARK = "mpiimport-bench"

IMPORTS = """\
import sys
{start}
for statement in {statements!r}:
    try:
        exec(statement, {{"__name__": {name!r}, "__package__": {package!r}}})
    except Exception:
        pass  # the program's own business: it fails in both
import time
with open("/proc/self/stat", "rb") as file:
    began = int(file.read().rpartition(b")")[2].split()[19])
import os
took = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
sys.stdout.write("{mark} %.2f\\n" % took)
sys.stdout.flush()
"""


class BenchError(Exception):
    """Why nothing can be measured, in one sentence."""


def measure(chosen: "argparse.Namespace") -> int:
    """Do what `mpiimport bench` asks for. Return the exit status."""
    if boot.launcher() is not None:
        boot.end(
            2,
            "bench starts the launcher itself, by turns with plain Python and python-mpi: `mpiimport bench mpiexec "
            "-n 4 python-mpi script.py`.",
            speaks=boot.is_first(),
            aborts=False,
        )
    try:
        plain, ours = commands(chosen.launch)
        rounds = [run_round(plain, ours, folder, chosen) for folder in cache(chosen.rounds)]
    except BenchError as cause:
        sys.stderr.write("mpiimport: %s\n" % cause)
        return 1
    result = summary(rounds)
    if chosen.json:
        print(json.dumps({"plain": plain, "python_mpi": ours, "rounds": rounds, **result}, indent=2))
    else:
        show(rounds, result)
    return 0


def commands(launch: "list[str]") -> "tuple[list[str], list[str]]":
    """Return the launch commands with plain Python, and with python-mpi, for the imports alone. Raises BenchError."""
    places = [at for at, word in enumerate(launch) if word.rpartition("/")[2] == "python-mpi"]
    if not places:
        raise BenchError("the launch command has no `python-mpi` in it, as in `mpiexec -n 4 python-mpi script.py`.")
    if shutil.which(launch[0]) is None:
        raise BenchError("`%s` is no command here; load the MPI module of your site." % launch[0])
    if len(places) > 1:
        raise BenchError("the launch command has %d programs; bench measures one." % len(places))
    before, arguments = launch[: places[0]], launch[places[0] + 1 :]
    try:
        settings, rest = boot.parse(arguments)
    except boot.UsageError as cause:
        raise BenchError("%s." % cause) from None
    kind, target, _ = program.describe(settings, rest)
    options = arguments[: len(arguments) - len(rest)]
    if kind in ("command", "module"):
        options = options_before(options, kind)
    code = imports(kind, target)
    plain_options = [word for word, value in python_options(options) for word in (word, *value)]
    return [*before, sys.executable, *plain_options, "-c", code], [*before, launch[places[0]], *options, "-c", code]


def options_before(options: "list[str]", kind: str) -> "list[str]":
    """Return the options that stand before `-c CODE` or `-m NAME`."""
    forms = ("-" + kind[0], "--" + kind)
    for at, word in enumerate(options):
        if word in forms or word.startswith("--%s=" % kind):
            return options[:at]
    raise BenchError("write %s as an option of its own." % forms[0])


def python_options(options: "list[str]") -> "Iterable[tuple[str, list[str]]]":
    """Yield Python's own options among those of python-mpi, each with its value, if it has one."""
    words = iter(options)
    for word in words:
        if word[:1] != "-" or word.startswith("--"):
            continue
        if word[1] in "WX":
            yield word, [next(words, "")] if len(word) == 2 else []
        elif set(word[1:]) <= set("bBEOPqsu"):
            yield word, []


def imports(kind: str, target: str) -> str:
    """Return a program that only imports what this one imports when it starts. Raises BenchError."""
    package = ""
    start = ""
    source: str | None
    try:
        if kind == "command":
            source = target
        elif kind == "module":
            spec = importlib.util.find_spec(target)
            if spec is not None and spec.submodule_search_locations is not None:
                package, spec = target, importlib.util.find_spec(target + ".__main__")
            source = getattr(spec.loader, "get_source", lambda _: None)(spec.name) if spec is not None else None
            package = package or target.rpartition(".")[0]
        elif kind == "script" and not os.path.isdir(target):
            source = Path(target).read_text(encoding="utf-8")
            start = "sys.path[0] = %r" % os.path.dirname(os.path.realpath(target))
        else:
            raise BenchError("bench needs a script, -m or -c, to see what is imported.")
        if source is None:
            raise BenchError("there is no module `%s` with source." % target)
        body = ast.parse(source).body
    except (OSError, ImportError, SyntaxError, UnicodeDecodeError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else cause
        raise BenchError("cannot read the imports of `%s`: %s." % (target, reason)) from None
    statements = [ast.unparse(one) for one in body if has_imports(one)]
    if not statements:
        raise BenchError("`%s` imports nothing when it starts: there is nothing to measure." % target)
    name = "__main__" if kind != "module" else target
    return IMPORTS.format(start=start, statements=statements, name=name, package=package, mark=MARK)


def has_imports(statement: ast.stmt) -> bool:
    """Whether this statement is there to import: an import, perhaps inside a `try`."""
    if isinstance(statement, ast.Try):
        return any(has_imports(one) for one in statement.body)
    future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
    return isinstance(statement, (ast.Import, ast.ImportFrom)) and not future


def cache(rounds: int) -> "Iterable[str]":
    """Yield, for each round, the cache folder that all share: python-mpi's first run is the first one."""
    above = profile.cache_folder()
    try:
        if above is not None:
            os.makedirs(above, mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=above) as folder:
            for _ in range(rounds):
                yield folder
    except OSError as cause:
        raise BenchError("cannot make a folder in `%s`: %s." % (above, cause.strerror)) from None


def run_round(plain: "list[str]", ours: "list[str]", folder: str, chosen: "argparse.Namespace") -> "dict[str, Any]":
    """Launch both once. Return what was measured of each: seconds of each rank, and of the whole launch."""
    return {name: run(command, folder, chosen.timeout) for name, command in (("plain", plain), ("python_mpi", ours))}


def run(command: "list[str]", folder: str, timeout_s: float) -> "dict[str, Any]":
    """Launch the imports. Return the seconds of each rank and of the whole launch. Raises BenchError."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "MPIIMPORT_CACHE_DIR": folder},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(
            "`%s` took more than %.0f s; --timeout SECONDS allows more." % (shown(command), timeout_s)
        ) from None
    took = time.monotonic() - began
    ranks = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(MARK + " ")]
    if done.returncode or not ranks:
        sys.stderr.write(done.stderr[-2000:])
        raise BenchError("`%s` ended with exit code %d." % (shown(command), done.returncode))
    return {"ranks": sorted(ranks), "launch": took}


def shown(command: "list[str]") -> str:
    """Return a command without the program."""
    return " ".join(command[:-1])


def summary(rounds: "list[dict[str, Any]]") -> "dict[str, Any]":
    """Return the medians over the rounds, without the first, if there are others: seconds."""
    later = rounds[1:] or rounds
    found: dict[str, Any] = {}
    for name in ("plain", "python_mpi"):
        found[name + "_s"] = {
            "median_rank": statistics.median(statistics.median(one[name]["ranks"]) for one in later),
            "worst_rank": statistics.median(one[name]["ranks"][-1] for one in later),
            "launch": statistics.median(one[name]["launch"] for one in later),
        }
    found["times_as_fast"] = found["plain_s"]["worst_rank"] / max(found["python_mpi_s"]["worst_rank"], 0.01)
    return found


def show(rounds: "list[dict[str, Any]]", result: "dict[str, Any]") -> None:
    """Print what was measured."""
    print("%d ranks, %d rounds by turns; seconds" % (len(rounds[0]["plain"]["ranks"]), len(rounds)))
    print("%-36s %11s %11s %11s" % ("", "median rank", "worst rank", "launch"))
    rows = []
    for name, words in (("plain", "plain Python"), ("python_mpi", "python-mpi")):
        first = rounds[0][name]
        rows.append((words + ", first run", statistics.median(first["ranks"]), first["ranks"][-1], first["launch"]))
        later = result[name + "_s"]
        if len(rounds) > 1:
            rows.append((words + ", later runs (median)", later["median_rank"], later["worst_rank"], later["launch"]))
    for row in rows:
        print("%-36s %11.2f %11.2f %11.2f" % row)
    plain, ours = result["plain_s"]["worst_rank"], result["python_mpi_s"]["worst_rank"]
    times = result["times_as_fast"]
    if times > 1.1:
        print("\nWith python-mpi the last rank is ready %.2f s earlier: %.1f times as fast." % (plain - ours, times))
    elif times > 0.9:
        print("\nNo difference that matters here.")
    else:
        print("\nWith python-mpi the last rank is ready %.2f s later: it does not pay here." % (ours - plain))
