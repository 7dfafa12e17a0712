"""A program that says which modules each rank finds and what it missed, and a tree of modules to be found."""

import json
import os
import time

SHOW = """
import json, os, sys, types

def show(*names):
    found = {}
    for name in names:
        try:
            __import__(name)
            module = sys.modules[name]
        except Exception as cause:
            found[name] = [type(cause).__name__, str(cause)]
        else:
            found[name] = [getattr(module, "value", None), getattr(module, "__file__", None) or sorted(module.__path__)]
    ours = getattr(sys, "mpiimport", None)
    rank = int(os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK"))
    counts = ours.stats() if ours else {}
    line = json.dumps([rank, found, counts.get("missed"), counts.get("foreseen")])
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()
"""
PROGRAM = SHOW + "show(*sys.argv[1].split(','))\n"

NAMES = "plain,package,package.inner,package.gone,package.absent,portion,portion.of,portion.more,_ctypes_test,nothing"
"""Modules of the fixture `tree`, and some that are not there."""


def write(file, text, *, age_s=100):
    """Write a file, some time ago, so that its bytecode is trusted."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    then = time.time() - age_s
    os.utime(file, (then, then))


def launch(mpi, program, *arguments, launcher="python-mpi", ranks=2, tree=None, env=None, options=()):
    """Run a program; return what each rank found, what it missed, and standard error."""
    env = dict(env or {})
    if tree is not None:
        env["PYTHONPATH"] = "%s:%s" % (tree / "first", tree / "second")
        env["MPIIMPORT_STABLE"] = str(tree)
    result = mpi.run(ranks, launcher, *options, program, *arguments, env=env, timeout_s=60)
    assert result.returncode == 0, result
    said = sorted(json.loads(line) for line in result.stdout.splitlines())
    assert len(said) == ranks, result
    return [found for _, found, _, _ in said], [missed for _, _, missed, _ in said], result.stderr
