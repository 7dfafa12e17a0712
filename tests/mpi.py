"""Starting programs under a real mpiexec, with a time limit, in an environment of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
LIMIT_S = 60

OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_pml": "ob1",  # shared memory: starts in a tenth of the time that a search for networks takes
    "OMPI_MCA_btl": "self,sm",
}


class Result:
    """What became of a program."""

    def __init__(self, returncode, stdout, stderr, seconds):
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.seconds = seconds

    @property
    def timed_out(self):
        """Whether the time limit ended it."""
        return self.returncode in (124, 137)

    def __repr__(self):
        return "exit code %d after %.1f s\n--- stdout\n%s\n--- stderr\n%s" % (
            self.returncode,
            self.seconds,
            self.stdout,
            self.stderr,
        )


def run(argv, *, env=None, cwd=None, stdin=None, timeout_s=LIMIT_S):
    """Run a program to its end, at most `timeout_s` seconds."""
    began = time.monotonic()
    done = subprocess.run(
        ["timeout", "-k", "5", str(timeout_s), *map(str, argv)],
        env={**clean_environment(), **(env or {})},
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


FIRST_RUN = {"MPIIMPORT_PROFILE": "off", "MPIIMPORT_SCAN": "always"}
"""Every test is a first run, as if Python were on a shared filesystem, if it does not ask for anything else."""


def clean_environment():
    """Return what every program gets of the environment."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TERM", "USER") if name in os.environ}
    return {**kept, **FIRST_RUN, "PATH": "%s:/usr/local/bin:/usr/bin:/bin" % BIN}


def without_codecs(missed):
    """Leave out what charset_normalizer, where it is installed, imports from C."""
    return [name for name in missed if not name.startswith(("_codecs_", "_multibytecodec"))]


class Mpi:
    """One MPI: its launcher, and the environment that a site's module system would set."""

    def __init__(self, name, prefix, env=None):
        self.name = name
        self.prefix = Path(prefix)
        self.env = {"LD_LIBRARY_PATH": str(self.prefix / "lib"), **(env or {})}

    def run(self, ranks, *argv, env=None, **keywords):
        """Run a program on this many ranks."""
        launch = [self.prefix / "bin" / "mpiexec", "-n", str(ranks)]
        return run([*launch, *argv], env={**self.env, **(env or {})}, **keywords)

    def __repr__(self):
        return self.name


MPICH = Mpi("mpich", ROOT / ".mpi" / "mpich")
OPENMPI = Mpi("openmpi", ROOT / ".mpi" / "openmpi", OPEN_MPI)
IMPI = Mpi("impi", ROOT / ".mpi" / "impi-rt")
ALL = (MPICH, OPENMPI, IMPI)
