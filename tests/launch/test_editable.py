"""Projects that are installed to be edited are found where they are, as they are now, on every rank."""

import os
import sys

import mpi as mpis
import pytest
from cases import complaints, place
from compared import said
from pythons import environment_of_tools, must

PACKAGE = {
    "__init__.py": "from . import part\nVALUE = __file__",
    "part.py": "VALUE = __file__\n\ndef fail():\n    1 / 0\n",
    "below/__init__.py": "",
    "below/part.py": "VALUE = __name__",
    "edited.py": "VALUE = 'before'",
}
PROJECT = '[project]\nname = "%s"\nversion = "1"\n[build-system]\nrequires = []\nbuild-backend = "%s"\n'
MESON = """
project('of_meson', version: '1')
py = import('python').find_installation()
foreach folder: ['', 'below/']
  foreach file: ['__init__', 'part']
    py.install_sources(folder + file + '.py', subdir: 'of_meson' / folder)
  endforeach
endforeach
py.install_sources('edited.py', subdir: 'of_meson')
"""


def project(name, backend, settings="", inside="", **more):
    """Return the files of a project with one package."""
    files = {"pyproject.toml": PROJECT % (name, backend) + settings, **more}
    return {"%s/%s" % (name, file): text for file, text in files.items()} | {
        "%s/%s/%s" % (name, inside, file): text for file, text in PACKAGE.items()
    }


PROJECTS = {
    **project(
        "of_finder",
        "setuptools.build_meta",
        inside="code",
        settings="""
[tool.setuptools]
packages = ["of_finder", "of_finder.below"]
package-dir = {"of_finder" = "code"}
""",
    ),
    **project("of_setuptools", "setuptools.build_meta", inside="src/of_setuptools"),
    **project("of_hatch", "hatchling.build", inside="src/of_hatch"),
    **project(
        "of_exact",
        "hatchling.build",
        inside="of_exact",
        settings="""
[tool.hatch.build]
dev-mode-exact = true
""",
    ),
    **project("of_meson", "mesonpy", inside=".", **{"meson.build": MESON}),
}
NAMES = sorted({file.partition("/")[0] for file in PROJECTS})

PROGRAM = (
    """
import importlib, importlib.metadata, importlib.resources, importlib.util, inspect, json, os, pkgutil, sys, traceback

def say(*values):
    sys.stdout.write(json.dumps([int(os.environ["PMI_RANK"]), *values], default=str) + "\\n")
    sys.stdout.flush()

import of_finder.below.part, of_setuptools.below.part, of_hatch.below.part, of_exact.below.part, of_meson.below.part

for name in %r:
    package = sys.modules[name]
    say(name, package.VALUE, package.part.VALUE, list(package.__path__), type(package.__loader__).__name__
        .replace("Delivered", "SourceFile"), package.__spec__.origin, package.part.__cached__)
    say(importlib.import_module(name + ".edited").VALUE, sys.modules[name + ".below.part"].VALUE)
    say(inspect.getsource(package.part), importlib.metadata.version(name))
    try:
        package.part.fail()
    except ZeroDivisionError:
        say(traceback.format_exc())
    try:
        importlib.import_module(name + ".added")
    except ImportError as cause:
        say(str(cause), cause.path)
    say([one.name for one in pkgutil.iter_modules(package.__path__)], importlib.util.find_spec(name + ".none"))
    say(importlib.resources.files(name).joinpath("part.py").read_text())
say([type(one).__name__ if not isinstance(one, type) else one.__name__ for one in sys.meta_path])
"""
    % NAMES
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment, and the folder of the projects that are installed there to be edited."""
    folder = tmp_path_factory.mktemp("editable")
    environment = environment_of_tools().copied(folder / "environment")
    place(folder / "projects", PROJECTS)
    path = "%s:%s" % (environment.bin, os.environ["PATH"])
    pip = [sys.executable, "-Im", "pip", "--disable-pip-version-check", "--python", environment.python, "install"]
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--root-user-action=ignore"]
    editable = [argument for name in NAMES for argument in ("--editable", folder / "projects" / name)]
    must([*pip, *options, *editable], env={"PATH": path}, timeout_s=300)
    return environment, folder


def test_editable_projects_are_found_and_edited(installed):
    environment, folder = installed
    program = folder / "program.py"
    program.write_text(PROGRAM)
    env = {"PATH": "%s:%s" % (environment.bin, os.environ["PATH"]), "HOME": str(folder)}

    def run(python, **more):
        result = mpis.MPICH.run(2, environment.bin / python, program, env={**env, **more}, cwd=folder)
        return said(result), complaints(result.stderr)

    profile = {"MPIIMPORT_PROFILE": str(folder / "profile")}
    expected = run("python")
    assert run("python-mpi") == expected
    assert [run("python-mpi", **profile) for _ in range(2)] == [expected] * 2
    for file in folder.glob("projects/**/edited.py"):
        file.write_text("VALUE = 'after'  # longer")
        file.with_name("added.py").write_text("")
    edited = run("python")
    assert edited != expected
    assert "after" in str(edited)
    assert run("python-mpi", **profile) == edited
    assert run("python-mpi") == edited
