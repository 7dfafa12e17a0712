"""What a start leaves behind on each rank, and all that may differ from what plain Python leaves behind."""

import itertools
import json
from pathlib import Path

from mpi import ROOT

PROGRAM = ROOT / "tests" / "trees" / "snapshot" / "snapshot.py"
RANKS = 2

ROOT_MODULES = {"mpiimport.forecast", "mpiimport.scan", "opcode", "_opcode", "_opcode_metadata"}
"""What the root imports besides, for the forecast."""

OTHER_MODULES = {"io", "linecache"}
"""What `python -S -c` imports on every rank, or we do, and `python script.py` of newer versions does not."""

REPLACED = {"dlopen", "_dlopen", "get_importer", "_iter_file_finder_modules", "realpath"}
"""Functions in whose place there may be ones of ours: of `_ctypes`, `pkgutil` and `sysconfig`, wherever imported."""

SHELL_VARIABLES = ("_", "OLDPWD", "SHLVL")
"""What some shells that run `python-mpi` set, beside PWD."""


def take(environment, folder, program, *arguments, ranks=RANKS, env=None, **keywords):
    """Run the snapshot program on all ranks. Return a snapshot for each, and the result."""
    folder.mkdir(parents=True)
    variables = {"SNAPSHOT_TO": str(folder), "PWD": str(keywords.get("cwd") or Path.cwd()), **(env or {})}
    result = environment.run(ranks, program, *arguments, env=variables, **keywords)
    assert result.returncode == 0, result
    snapshots = [json.loads((folder / ("%d.json" % rank)).read_text()) for rank in range(ranks)]
    for snapshot in snapshots:
        for name in SHELL_VARIABLES:
            snapshot["environ"].pop(name, None)
    return snapshots, result


def assert_same_start(environment, folder, *arguments, env=None, options=(), **keywords):
    """Start `python-mpi` and `python` on the snapshot program, or on other arguments, and compare every rank.

    Return our snapshots, and what we said on standard error and plain Python did not.
    """
    arguments = [*options, *(arguments or (PROGRAM, "an argument", "-c", "--", "-x"))]
    plain, plain_result = take(environment, folder / "plain", environment.python, *arguments, env=env, **keywords)
    ours, our_result = take(environment, folder / "ours", environment.python_mpi, *arguments, env=env, **keywords)
    found = []
    for rank in range(len(ours)):
        found += [
            "rank %d: %s" % (rank, one) for one in differences(expected(plain[rank], ours[rank], rank), ours[rank])
        ]
    assert not found, "\n".join(found)
    printed, expected_printed = sorted(our_result.stdout.splitlines()), sorted(plain_result.stdout.splitlines())
    assert printed == expected_printed, (our_result, plain_result)
    said, expected_said = sorted(our_result.stderr.splitlines()), sorted(plain_result.stderr.splitlines())
    for line in expected_said:
        assert line in said, (line, our_result, plain_result)
        said.remove(line)
    return ours, said


def expected(plain, ours, rank):
    """Return plain Python's snapshot with what is ours in its place."""
    made = dict(plain)
    connected = "mpiimport.finder" in ours["modules"]
    if connected:
        made["names in sys"] = sorted([*plain["names in sys"], "mpiimport"])
    made["main"] = {
        name: ours["main"].get(name) if value.endswith(".SourceFileLoader") and is_delivered(ours) else value
        for name, value in plain["main"].items()
    }
    allowed = names_of_ours(ours["modules"], rank)
    made["modules"] = sorted({*plain["modules"], *(allowed & set(ours["modules"]))})
    if "order" in plain:
        allowed = names_of_ours(ours["described"], rank)
        rest = iter([name for name in plain["order"] if name not in allowed])
        made["order"] = [name if name in allowed else next(rest, None) for name in ours["order"]] + list(rest)
        for key in ("described", "contents"):
            made[key] = {**{name: ours[key][name] for name in allowed & ours[key].keys()}, **plain[key]}
        for name in made["contents"].keys() & ours["contents"].keys():
            found = ours["contents"][name]["functions"]
            replaced = {one: found[one] for one in REPLACED & found.keys() if "/mpiimport/" in found[one][0]}
            contents = made["contents"][name]
            made["contents"][name] = {**contents, "functions": {**contents["functions"], **replaced}}
    return made


def names_of_ours(names, rank):
    """Return which of these modules mpiimport may import where plain Python does not."""
    ours = {name for name in names if name.partition(".")[0] in ("mpiimport", "site_mpi")} - ROOT_MODULES
    return ours | OTHER_MODULES | (ROOT_MODULES if rank == 0 else set())


def is_delivered(snapshot):
    """Whether the program itself was delivered: its loader is ours, and is a `SourceFileLoader`."""
    return snapshot["main"]["__loader__"] == "mpiimport.loader.DeliveredLoader"


def differences(expected, found, where=""):
    """Yield a line for each thing that differs."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for name in sorted({*expected, *found}):
            absent = "(nothing)"
            yield from differences(expected.get(name, absent), found.get(name, absent), "%s[%r]" % (where, name))
    elif isinstance(expected, list) and isinstance(found, list) and expected != found:
        for place, (one, other) in enumerate(itertools.zip_longest(expected, found)):
            if one != other:
                yield "%s[%d]: expected %r, found %r" % (where, place, one, other)
                break
    elif expected != found:
        yield "%s: expected %r, found %r" % (where, expected, found)
