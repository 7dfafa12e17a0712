"""Programs with files beside them, run in the same folder by plain Python and by `python-mpi`, rank by rank."""

import io
import os
import py_compile
import re
import shutil
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path

import mpi as mpis

HOUR_S = 3600

PRELUDE = """\
import importlib, json, os, subprocess, sys, time
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank = comm.rank

def say(*values):
    sys.stdout.write(json.dumps([rank, *values], default=str) + "\\n")
    sys.stdout.flush()

def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name + ".new", "w") as file:
        file.write(text)
    os.replace(name + ".new", name)

"""


class Case:
    """A program, the files beside it, and the environment it needs."""

    def __init__(self, program, files=None, env=None, ranks=2, prelude=PRELUDE):
        self.files = {"program.py": prelude + textwrap.dedent(program), **(files or {})}
        self.env = env or {}
        self.ranks = ranks


def archive(files):
    """Return a zip file with these files."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return packed.getvalue()


def bytecode(text, mode=py_compile.PycInvalidationMode.TIMESTAMP):
    """Return what a `.pyc` of this source holds."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.py")
        source.write_text(text)
        return Path(py_compile.compile(str(source), doraise=True, invalidation_mode=mode)).read_bytes()


def place(folder, files):
    """Make the folder anew with these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
        if name.startswith("old"):
            os.utime(path, (time.time() - HOUR_S,) * 2)


def launch(case, folder, *program, mpi=mpis.MPICH, env=None):
    """Run the case's program with its files made anew."""
    place(folder, case.files)
    return mpi.run(case.ranks, *program, "program.py", cwd=folder, env={**case.env, **(env or {})})


def complaints(stderr):
    """Return the lines of all ranks, in whatever order, without numbers of processes and addresses."""
    return sorted(re.sub(r"pid=\d+|0x[0-9a-f]+", "", line) for line in stderr.splitlines())
