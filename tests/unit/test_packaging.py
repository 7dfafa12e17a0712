"""What others build mpiimport from asks for what pyproject.toml and Cargo.toml ask for."""

import re
import sys
import types

from mpi import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text()
CARGO = (ROOT / "Cargo.toml").read_text()


def value(pattern, text):
    """Return what a pattern's group matches, which it does once."""
    (found,) = re.findall(pattern, text, re.MULTILINE)
    return found


VERSION = value('^version = "(.*)"', CARGO)
RUST = value('^rust-version = "(.*)"', CARGO)
MATURIN = value('"maturin(>.*?)"', PROJECT)
PYTHON = value('^requires-python = ">=(.*)"', PROJECT)


def test_the_spack_package_is_read_as_spack_reads_it(monkeypatch):
    """Executed with the names that Spack gives it, which note what it says."""
    said = []

    def directive(name):
        return lambda *arguments, **_: said.append((name, *arguments))

    directives = {name: directive(name) for name in ("depends_on", "license", "version")}
    modules = {"spack.package": directives, "spack_repo.builtin.build_systems.python": {"PythonPackage": object}}
    for name, names in modules.items():
        for parent in range(name.count(".") + 1):
            module = types.ModuleType(name.rsplit(".", parent)[0])
            monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(sys.modules[name]).update(names)
    package = {}
    exec((ROOT / "packaging" / "spack" / "package.py").read_text(), package)
    lowest, end = re.fullmatch(r">=(.*),<(\d+)", MATURIN).groups()
    assert ("version", VERSION) in said
    assert ("depends_on", "rust@%s:" % RUST) in said
    assert ("depends_on", "python@%s:" % PYTHON) in said
    assert ("depends_on", "py-maturin@%s:%d" % (lowest, int(end) - 1)) in said
    assert package["PyMpiimport"].pypi == "mpiimport/mpiimport-%s.tar.gz" % VERSION

    env = {}
    mpi = types.SimpleNamespace(prefix=types.SimpleNamespace(lib="/mpi/lib"))
    made = package["PyMpiimport"]()
    made.spec = {"mpi": mpi}
    made.setup_run_environment(types.SimpleNamespace(set=env.__setitem__))
    assert env == {"MPIIMPORT_LIBMPI": "/mpi/lib"}


def test_the_conda_recipe_asks_for_the_same():
    recipe = (ROOT / "packaging" / "conda" / "recipe.yaml").read_text()
    assert value('^  version: "(.*)"', recipe) == VERSION
    assert set(re.findall("- maturin (.*)", recipe)) == {MATURIN}
    assert set(re.findall("- python(?:-abi3)? ([^ \n]*)$", recipe, re.MULTILINE)) == {PYTHON + ".*", ">=" + PYTHON}
    command = value("- (mpiimport = .*)", recipe)
    assert re.sub(" = (.*)", r' = "\1"', command) in PROJECT


def test_the_page_says_what_building_needs():
    page = (ROOT / "docs" / "how-to" / "install.md").read_text()
    assert set(re.findall(r"Rust (\d\.\d+)", page)) == {RUST}
