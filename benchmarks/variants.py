"""The ways to start a program that the benchmarks compare. What is measured of them is for others to say."""

import functools
import itertools
import subprocess
from pathlib import Path
from typing import NamedTuple

import mpi as mpis

HERE = Path(__file__).resolve().parent
PYTHON = mpis.BIN / "python"
PYTHON_MPI = mpis.BIN / "python-mpi"
MPIIMPORT = mpis.BIN / "mpiimport"
SEED = HERE / "seed.py"


class Variant(NamedTuple):
    """One way to start a program."""

    name: str
    command: tuple
    """What stands before the program; `{bundle}` is the file made for it."""
    needs: tuple = ()
    """The options of `python-mpi` without which there is no such way."""
    profile: str = "none"
    """What mpiimport knows of earlier runs: `none`, or `filled` by one that goes before."""


PLAIN = Variant("plain", (PYTHON,))
SEED_2014 = Variant("seed", (PYTHON, "-S", SEED))
FIRST = Variant("first run", (PYTHON_MPI,))
SECOND = Variant("second run", (PYTHON_MPI, "--profile", "auto"), ("--profile",), "filled")
BUNDLE = Variant(
    "bundle", (PYTHON_MPI, "--bundle", "{bundle}", "--validate", "none"), ("--bundle", "--validate"), "filled"
)

ALL = (PLAIN, SEED_2014, FIRST, SECOND, BUNDLE)
OURS = (FIRST, SECOND, BUNDLE)

DEFAULTS = {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_SCAN": "auto"}
"""What users have who set nothing; the tests' own environment is another."""

# The seed's algorithm needs all ranks to import in the same order, which follows the hash seed.
ENVIRONMENT = {SEED_2014: {"PYTHONHASHSEED": "0"}}


@functools.cache
def options():
    """Return the text in which `python-mpi` lists its options."""
    return subprocess.run([PYTHON_MPI, "--help"], capture_output=True, text=True, check=True).stdout


def missing(variant):
    """Return which of its options `python-mpi` does not have yet, as a sentence, or an empty string."""
    lacking = [option for option in variant.needs if option not in options().split()]
    return "%s: skipped, python-mpi has no %s" % (variant.name, ", ".join(lacking)) if lacking else ""


def available(report, variants=ALL):
    """Return those variants that can be run, and say in the report which cannot."""
    for note in filter(None, map(missing, variants)):
        report.line(note)
    return [variant for variant in variants if not missing(variant)]


class Prepared:
    """A variant that is ready to start a program: what must be there before has been made.

    What goes before is done on two ranks of this host. `options` are further ones of `python-mpi`, for the variants
    that have it; `env` is for all. What is made lies in `folder`.
    """

    caches = itertools.count()

    def __init__(self, variant, program, folder, *, options=(), env=None, mpi=mpis.MPICH):
        self.variant = variant
        self.program = program
        self.folder = Path(folder)
        self._env = {**DEFAULTS, **ENVIRONMENT.get(variant, {}), **(env or {})}
        bundle = self.folder / "program.mpib"
        words = [*variant.command, *(options if variant in OURS else ()), program]
        self.argv = [str(word).format(bundle=bundle) for word in words]
        self._filled = self._new_cache() if variant.profile == "filled" else None
        if self._filled is not None:
            first = [str(word) for word in (*FIRST.command, *options, program)]
            # Here all is on a local disk, which has no profile unasked.
            self._check(mpi.run(2, *first, env={**self.env(), "MPIIMPORT_PROFILE": "always"}, timeout_s=120))
        if "--bundle" in variant.needs:  # from the profile, as `second run` has it
            self._check(mpis.run([MPIIMPORT, "bundle", "-o", bundle, program], env=self.env(), timeout_s=300))

    def env(self):
        """Return the environment for the next run: the first run of a program finds an empty cache, each time."""
        cache = self._filled or self._new_cache()
        return {**self._env, "MPIIMPORT_CACHE_DIR": str(cache)}

    def _new_cache(self):
        cache = self.folder / ("cache-%d" % next(self.caches))
        cache.mkdir(mode=0o700)
        return cache

    def _check(self, result):
        if result.returncode:
            raise RuntimeError("%s: %r" % (self.variant.name, result))
