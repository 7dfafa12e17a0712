"""Interpreters of several versions, and environments of them in which mpiimport is installed."""

import functools
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from mpi import MPICH, ROOT, clean_environment, run

BASE = Path(sys.base_exec_prefix) / "bin" / ("python%d.%d" % sys.version_info[:2])
"""The interpreter that the environment of these tests was made with."""

MAKES_ENVIRONMENTS = "import ensurepip, venv"
VERSIONS = ("3.9", *(pytest.param("3.%d" % minor, marks=pytest.mark.nightly) for minor in (10, 12, 13, 14)), "3.15")
"""All but the one that the other tests are run with; the oldest and the newest with every change."""
IN_DEBIAN = ("3.14", "3.15")
BELOW = ROOT / ".pythons"
INSTALL_LIMIT_S = 300


class Environment:
    """A folder with `python-mpi` and its `python`. `enter` begins a command line that runs where these are valid."""

    def __init__(self, bin, *, python=None, enter=()):  # noqa: A002
        self.bin = Path(bin)
        self.python = python or self.bin / "python"
        self.python_mpi = self.bin / "python-mpi"
        self.enter = list(enter)

    @property
    def site_packages(self):
        """Where packages are installed."""
        return next(self.bin.parent.glob("lib/python3.*/site-packages"))

    def copied(self, folder):
        """Copy it, without its large packages. The copy is a relocated environment: its settings name the original."""
        large = shutil.ignore_patterns("numpy*", "mpi4py*", "pip*")
        packages = str(self.site_packages)
        ignore = lambda where, names: large(where, names) if where == packages else ()  # noqa: E731
        shutil.copytree(self.bin.parent, folder, symlinks=True, ignore=ignore)
        return Environment(folder / "bin", enter=self.enter)

    def run(self, ranks, program, *arguments, env=None, **keywords):
        """Run a program, such as `python_mpi`, on this many ranks."""
        launch = [*self.enter, MPICH.prefix / "bin" / "mpiexec", "-n", str(ranks)]
        return run([*launch, program, *arguments], env={**MPICH.env, **(env or {})}, **keywords)


def wheel():
    """Return the path of the wheel under test."""
    return next((ROOT / "target" / "wheels").glob("*.whl"))


def must(argv, **keywords):
    """Run a program that has to succeed, and return its result."""
    result = run(argv, **keywords)
    assert result.returncode == 0, result
    return result


def install(*arguments, python, **keywords):
    """Install the wheel for an interpreter, with the pip of these tests."""
    pip = [sys.executable, "-Im", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-warn-script-location", "--root-user-action=ignore"]
    must([*pip, *options, *arguments, wheel()], **keywords)


def make_environment(folder, *options):
    """Make a virtual environment of the main interpreter, without pip. `options` are for the installation."""
    must([sys.executable, "-Im", "venv", "--without-pip", folder])
    install(*options, python=folder / "bin" / "python")
    return Environment(folder / "bin")


@functools.cache
def environment_of(version, packages=("mpi4py", "numpy"), suffix=""):
    """Return an environment of another version, with the packages that have a wheel for it. Skip where there is none.

    It stays below `.pythons`; only what is under test is installed anew. Where numpy has no wheel, the file
    `no-numpy` in the environment says so.
    """
    python, enter = find(version)
    folder = BELOW / (version + suffix)
    made = folder / "made"
    pip = [*enter, folder / "bin" / "python", "-Im", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-warn-script-location", "--root-user-action=ignore", "--only-binary=:all:"]
    if not made.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        must([*enter, python, "-Im", "venv", folder], cwd=ROOT, timeout_s=INSTALL_LIMIT_S)
        if run([*pip, *packages], cwd=ROOT, timeout_s=INSTALL_LIMIT_S * len(packages)).returncode:
            for package in packages:
                installed = run([*pip, package], cwd=ROOT, timeout_s=INSTALL_LIMIT_S)
                if installed.returncode:
                    (folder / ("no-" + package)).write_text(last_line(installed))
        made.touch()
    digest = hashlib.sha256(wheel().read_bytes()).hexdigest()
    if made.read_text() != digest:
        must([*pip, "--no-deps", "--force-reinstall", wheel()], cwd=ROOT, timeout_s=INSTALL_LIMIT_S)
        made.write_text(digest)
    return Environment(folder / "bin", enter=enter)


def environment_of_tools():
    """Return an environment of the main version with tools that run programs, and such that install projects."""
    packages = ("mpi4py", "coverage", "ipython", "setuptools>=80", "hatchling", "editables", "meson-python", "ninja")
    return environment_of("%d.%d" % sys.version_info[:2], packages, "-tools")


def find(version):
    """Return an interpreter of this version and what a command line for it begins with. Skip where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = sorted(pyenv.glob("versions/%s.*/bin/python%s" % (version, version)))
    python = found[-1] if found else shutil.which("python" + version)
    if python is None and version in IN_DEBIAN:
        return "/usr/bin/python" + version, enter_debian()
    if python is None:
        pytest.skip("there is no Python %s: neither pyenv nor PATH has one" % version)
    tried = run([python, "-c", MAKES_ENVIRONMENTS])
    if tried.returncode:
        pytest.skip("%s cannot make virtual environments: %s" % (python, last_line(tried)))
    return python, []


def enter_debian():
    """Return what a command line begins with to run in a Debian folder, which is made if need be. Skip without one.

    The checkout and the folder for temporary files have the same paths inside. What is mounted is seen by that
    command alone, and ends with it.
    """
    inside = BELOW / "debian"
    path = clean_environment()["PATH"] + ":/usr/sbin:/sbin"
    made = run(
        ["bash", ROOT / "tests" / "debian_pythons.sh", inside], env={"PATH": path}, timeout_s=2 * INSTALL_LIMIT_S
    )
    if made.returncode == 77:
        pytest.skip(last_line(made))
    assert made.returncode == 0, made
    script = "set -e\n"
    for folder in ("/proc", "/dev", "/sys", tempfile.gettempdir(), ROOT):
        target = shlex.quote("%s%s" % (inside, folder))
        script += "mkdir -p %s; mount --rbind %s %s\n" % (target, shlex.quote(str(folder)), target)
    script += 'exec unshare --root=%s --wd="$PWD" "$@"' % shlex.quote(str(inside))
    enter = ["unshare", "--mount", "sh", "-c", script, "enter"]
    tried = run([*enter, "true"])
    if tried.returncode:
        pytest.skip("`%s` cannot be entered: %s" % (inside, last_line(tried)))
    return enter


def last_line(result):
    """Return the last thing that a program said."""
    return (result.stderr or result.stdout).strip().rpartition("\n")[2] or repr(result)
