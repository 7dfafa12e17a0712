"""mpiimport works wherever pip, uv, conda or Spack put it, read-only or moved, and with the MPI of its extras."""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from mpi import BIN, MPICH, OPEN_MPI, ROOT, run
from packaging.tags import cpython_tags
from packaging.utils import parse_wheel_filename
from pythons import BASE, INSTALL_LIMIT_S, Environment, install, last_line, make_environment, must, wheel

RANKS = 2
BASES = "%s:/usr/bin:/bin" % BASE.parent
"""A PATH on which the base interpreter is the first."""

SEEN = """
import json.tool, os, sys, mpiimport
print([os.path.realpath(sys.executable), sys.prefix, sys.exec_prefix, sys.path, json.tool.__file__])
print(os.path.realpath(mpiimport.__file__))
"""
DELIVERED = "stats = sys.mpiimport.stats(); assert stats['size'] == %d and stats['modules']['opening'] > 2" % RANKS


def read_only(folder, environment):
    """Let nobody write to a folder, while in this environment. Skip where root cannot be kept from it."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o555)
    if not os.geteuid():
        mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        environment.enter = ["unshare", "--mount", "sh", "-c", mount, folder]
        tried = run([*environment.enter, "true"])
        if tried.returncode:
            pytest.skip("`%s` cannot be made read-only: %s" % (folder, last_line(tried)))
    assert run([*environment.enter, "touch", folder / "new"]).returncode == 1
    return environment


def put(folder, *options):
    """Install for the base interpreter, but elsewhere. Return the environment and the folder of the packages."""
    install(*options, "--break-system-packages", python=BASE, env={"PYTHONUSERBASE": str(folder)})
    found = Environment(next(folder.rglob("python-mpi")).parent, python=BASE)
    return found, next(folder.rglob("site_mpi")).parent


def for_the_user(folder):
    """`pip install --user`."""
    environment, _ = put(folder, "--user")
    return environment, {"PATH": BASES, "PYTHONUSERBASE": str(folder)}


def in_a_folder(folder):
    """`pip install --target`."""
    environment, packages = put(folder, "--target", folder)
    return environment, {"PATH": BASES, "PYTHONPATH": str(packages)}


def in_a_module(folder):
    """`pip install --prefix`, read-only, and named by PATH and PYTHONPATH, for a user's own environment."""
    environment, packages = put(folder, "--prefix", folder, "--no-compile")
    user = folder.with_name("user's")
    must([sys.executable, "-Im", "venv", "--without-pip", user])
    environment.python = user / "bin" / "python"
    return read_only(folder, environment), {"PATH": "%s:%s" % (user / "bin", BASES), "PYTHONPATH": str(packages)}


def in_a_read_only_environment(folder):
    """A virtual environment without bytecode, where none can be written."""
    return read_only(folder, make_environment(folder, "--no-compile")), {}


def in_a_moved_environment(folder):
    """A virtual environment that bore another name when it was made."""
    make_environment(folder.with_name("before")).bin.parent.rename(folder)
    return Environment(folder / "bin"), {}


def by_uv(folder, *options):
    """An environment that uv made."""
    uv = [BIN / "uv", "--quiet", "--offline", "--no-config", "--cache-dir", folder.with_name("cache")]
    must([*uv, "venv", *options, "--python", BASE, folder])
    must([*uv, "pip", "install", "--no-deps", "--no-index", "--python", folder / "bin" / "python", wheel()])
    return Environment(folder / "bin"), {}


def by_uv_and_moved(folder):
    """An environment that uv made to be moved."""
    by_uv(folder.with_name("before"), "--relocatable")[0].bin.parent.rename(folder)
    return Environment(folder / "bin"), {}


def bare_conda(folder):
    """A prefix as conda makes it: it has the interpreter itself, and no pyvenv.cfg."""
    base, library = BASE.parent.parent, folder / "lib" / BASE.name
    if not (base / "lib" / BASE.name / "site-packages").is_dir():
        pytest.skip("`%s` has no site-packages of its own: Debian's Python cannot be copied" % base)
    (folder / "bin").mkdir(parents=True)
    (library / "site-packages").mkdir(parents=True)
    shutil.copy(BASE, folder / "bin" / BASE.name)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to(BASE.name)
    originals = {*(base / "lib" / BASE.name).iterdir(), *(base / "lib").glob("libpython*")}
    for original in originals:
        if original.name not in ("site-packages", "__pycache__"):
            (folder / original.relative_to(base)).symlink_to(original)
    return Environment(folder / "bin")


def by_conda(folder):
    """An environment of conda."""
    environment = bare_conda(folder)
    install(python=environment.python)
    return environment, {}


def by_spack(folder):
    """A view of Spack: links to a package in a folder of its own, and a copy of the interpreter."""
    environment = bare_conda(folder)
    package, packages = put(folder.with_name("package"), "--prefix", folder.with_name("package"))
    for original in (*package.bin.iterdir(), *packages.iterdir()):
        place = folder / "bin" if original.parent == package.bin else environment.site_packages
        (place / original.name).symlink_to(original)
    return environment, {}


LAYOUTS = (
    for_the_user,
    in_a_folder,
    in_a_module,
    in_a_read_only_environment,
    in_a_moved_environment,
    by_uv,
    by_uv_and_moved,
    by_conda,
    by_spack,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_it_starts_as_plain_python_does_from_a_folder_with_blanks(tmp_path, layout):
    environment, variables = layout(tmp_path / "a folder")
    plain = run([*environment.enter, environment.python, "-c", SEEN], env=variables, cwd=tmp_path)
    ours = environment.run(RANKS, environment.python_mpi, "-c", SEEN + DELIVERED, env=variables, cwd=tmp_path)
    assert plain.returncode == ours.returncode == 0, (plain, ours)
    assert sorted(ours.stdout.splitlines()) == sorted(plain.stdout.splitlines() * RANKS)
    assert not ours.stderr, ours
    module = [environment.python, "-m", "mpiimport"]
    names_its_python = layout not in (in_a_moved_environment, by_spack)
    for command in (module, [environment.bin / "mpiimport"])[: 1 + names_its_python]:
        assert "profile" in must([*environment.enter, *command, "--help"], env=variables, cwd=tmp_path).stdout


def test_a_missing_python_is_named_once(tmp_path):
    environment, _ = put(tmp_path / "there", "--prefix", tmp_path / "there")
    (tmp_path / "tools").mkdir()
    for name in ("sh", "sleep", "timeout"):
        (tmp_path / "tools" / name).symlink_to(shutil.which(name))
    result = environment.run(RANKS, environment.python_mpi, "-c", "", env={"PATH": str(tmp_path / "tools")})
    assert result.returncode == 127, result
    said = "mpiimport: mpiimport was installed for `%s`, which cannot be run. Set MPIIMPORT_PYTHON" % BASE.name
    assert result.stderr.count(said) == result.stderr.count("mpiimport: ") == 1, result


def test_one_wheel_is_for_all_pythons_with_a_lock_and_all_users():
    name, _, _, tags = parse_wheel_filename(wheel().name)
    platforms = {tag.platform for tag in tags}
    assert name == "mpiimport"
    assert platforms != {"linux_" + os.uname().machine}

    def fits(*version, suffix=""):
        return not tags.isdisjoint(cpython_tags(version, ["cp%d%d%s" % (*version, suffix)], platforms))

    assert [minor for minor in range(17) if fits(3, minor)] == list(range(9, 17))
    assert not fits(3, 14, suffix="t")
    with zipfile.ZipFile(wheel()) as files:
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in files.infolist()}
        metadata = files.read(next(name for name in modes if name.endswith("/METADATA"))).decode()
    programs = {name for name, mode in modes.items() if mode == 0o755}
    assert {Path(name).name for name in programs} == {"python-mpi", "_core.abi3.so"}
    assert {modes[name] for name in modes.keys() - programs} == {0o644}
    assert {name.partition("/")[0].partition("-")[0] for name in modes} == {"mpiimport", "site_mpi"}
    assert {*re.findall("^Provides-Extra: (.*)$", metadata, re.MULTILINE)} == {"mpich", "openmpi", "impi"}


OPEN_MPI_FOR_ROOT = {name: value for name, value in OPEN_MPI.items() if name.startswith(("OMPI_ALLOW", "PRTE"))}


@pytest.mark.nightly
@pytest.mark.parametrize(("extra", "env"), [("mpich", {}), ("openmpi", OPEN_MPI_FOR_ROOT), ("impi", {})])
def test_an_extra_brings_an_mpi_that_needs_nothing_set(tmp_path, extra, env):
    environment = Environment(tmp_path / "an environment" / "bin")
    must([sys.executable, "-Im", "venv", environment.bin.parent])
    pip = [environment.python, "-Im", "pip", "install", "--quiet", "--disable-pip-version-check"]
    must([*pip, "%s[%s]" % (wheel(), extra), "mpi4py"], timeout_s=INSTALL_LIMIT_S)
    program = "import sys; from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1), sys.mpiimport.stats()['size'])"
    env = {**env, "PATH": "%s:/usr/bin:/bin" % environment.bin}
    result = run(["mpiexec", "-n", str(RANKS), "python-mpi", "-c", program], env=env)
    assert result.returncode == 0, result
    assert result.stdout.split() == [str(RANKS)] * 2 * RANKS, result


PAGE = ROOT / "docs" / "how-to" / "install.md"
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))
COMMANDS = {title: "".join(re.findall("^```sh\n(.*?)^```", text, re.M | re.S)) for title, text in SECTIONS.items()}


@pytest.mark.nightly
@pytest.mark.parametrize("title", [title for title, commands in COMMANDS.items() if commands])
def test_the_commands_of_the_page_work(tmp_path, title):
    """As a user who has Python, uv and an MPI, and whose pip finds the wheel under test beside the index."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in (BASE.with_name("python3"), BASE, BIN / "uv"):
        (tools / program.name).symlink_to(program)
    found = {"PIP_FIND_LINKS": str(wheel().parent), "UV_FIND_LINKS": str(wheel().parent), "UV_SYSTEM_CERTS": "1"}
    env = {**MPICH.env, **found, "HOME": str(tmp_path), "PATH": "%s:%s/bin:/usr/bin:/bin" % (tools, MPICH.prefix)}
    result = run(["sh", "-exc", COMMANDS[title]], env=env, cwd=tmp_path, timeout_s=INSTALL_LIMIT_S)
    assert result.returncode == 0, result
    assert len(re.findall("^2 ", result.stdout, re.MULTILINE)) == 2 * COMMANDS[title].count("mpiexec"), result
