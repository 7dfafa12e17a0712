"""A program of which every rank says what it saw, run by plain Python and by ours under the same mpiexec."""

import json

PYTHONS = ("python", "python-mpi")

SAY = """\
import json, os, sys

def say(*values):
    sys.stdout.write(json.dumps(values, default=str) + "\\n")
    sys.stdout.flush()

"""


def said(result):
    """Return the lines of all ranks, sorted: each begins with its rank."""
    assert result.returncode == 0, result
    lines = sorted(map(json.loads, result.stdout.splitlines()), key=lambda line: line[0])
    assert lines, result
    return lines


def same_as_plain(mpi, script, program, *options, ranks=2, **keywords):
    """Run a program by plain Python and by ours, see that both say the same, and return it."""
    path = script(SAY + program)
    plain = mpi.run(ranks, "python", *options, path, **keywords)
    ours = mpi.run(ranks, "python-mpi", *options, path, **keywords)
    assert said(ours) == said(plain)
    assert ours.stderr == plain.stderr
    return said(ours)
