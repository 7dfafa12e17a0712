"""What a program asks of distributions, package data and lists of modules is delivered from the second run on."""

import json
import shutil
import sys

import mpi as mpis
import pytest
from pythons import VERSIONS, Environment, environment_of

sys.path.append(str(mpis.ROOT / "benchmarks"))

import count

RANKS = 2
HERE = Environment(mpis.BIN)

FILES = {
    "sample-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\nRequires-Dist: other\n\nText",
    "sample-1.0.dist-info/entry_points.txt": "[sample_group]\nname = sample.module:value\n",
    "Other_One-2.dist-info/METADATA": "Metadata-Version: 2.1\nName: Other.One\nVersion: 2\n",
    "Other_One-2.dist-info/direct_url.json": "{}",
    "single-3.egg-info": "Metadata-Version: 1.1\nName: single\nVersion: 3\n",
    "old-4.egg-info/PKG-INFO": "Metadata-Version: 1.1\nName: old\nVersion: 4\n",
    "old-4.egg-info/requires.txt": "one\n\n[extra]\ntwo\n",
    "broken-5.dist-info/RECORD": "",
    "sample/__init__.py": "",
    "sample/module.py": "value = 1\n",
    "sample/inner/__init__.py": "",
    "sample/inner/deep.py": "",
    "sample/inner/data.bin": "\0data\r\n",
    "sample/portion/module.py": "",
    "sample/LICENSE": "a file whose name is like a folder's",
    "sample/data.txt": "data\n",
}
PROGRAM = """
    import sys

    FOLDER, RANK = sys.argv[1:]
    looked = []

    def hook(event, arguments):
        if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(FOLDER):
            looked.append("%s %s" % (event, arguments[0]))

    sys.addaudithook(hook)

    import importlib, json, pkgutil
    import importlib.metadata as standard

    def outcome(function, *arguments):
        try:
            found = function(*arguments)
        except Exception as cause:
            return [type(cause).__name__, str(cause), list(map(str, cause.args))]
        return found.decode("latin-1") if isinstance(found, bytes) else found

    def about(distribution, metadata):
        assert type(distribution) is metadata.PathDistribution
        names = ("entry_points.txt", "direct_url.json", "top_level.txt", "no/such")
        return [
            str(distribution.locate_file("")),
            outcome(lambda: distribution.metadata["Name"]),
            outcome(lambda: distribution.version),
            outcome(lambda: distribution.requires),
            [[one.group, one.name, one.value, one.load()] for one in distribution.entry_points],
            [distribution.read_text(name) for name in names],
        ]

    def distributions(metadata):
        names = ("sample", "SAMPLE", "other-one", "single", "old", "broken", "missing", "")
        mine = [one for one in metadata.distributions() if str(one._path).startswith(FOLDER)]
        groups = metadata.entry_points()
        group = groups.select(group="sample_group") if hasattr(groups, "select") else groups.get("sample_group", ())
        return [
            [about(one, metadata) for one in mine],
            [outcome(metadata.version, name) for name in names],
            [one.value for one in group],
            len(list(metadata.distributions())),
        ]

    def modules():
        found = list(pkgutil.walk_packages([FOLDER], "", lambda name: None))
        found += pkgutil.iter_modules([FOLDER + "/sample/portion", FOLDER + "/missing"])
        top = [one for one in pkgutil.iter_modules() if getattr(one.module_finder, "path", None) == FOLDER]
        return [[type(one.module_finder).__name__, one.module_finder.path, *one[1:]] for one in found + top]

    def data():
        names = ("data.txt", "LICENSE", "inner/data.bin", "missing", "inner", "LICENSE/data")
        resources = importlib.import_module("importlib.resources")
        file = resources.files("sample.inner").joinpath("data.bin")
        return [outcome(pkgutil.get_data, "sample", name) for name in names] + [str(file), type(file).__name__]

    def everything():
        return [distributions(standard), modules(), data()]

    answers = everything()
    asked = list(looked)
"""
BACKPORT = """
    import importlib_metadata
    answers.append([distributions(importlib_metadata), hasattr(importlib.machinery.PathFinder, "find_distributions")])
    asked = list(looked)
"""
REPORT = """
    asked = [one for one in asked if not one.endswith((".py", ".pyc", "/libmpi.so"))]
    with open("%s.%s.json" % (FOLDER, RANK), "w") as file:
        json.dump([answers, asked], file)
"""


@pytest.fixture
def packages(tmp_path):
    """A folder with distributions and a package; no run changes it."""
    folder = tmp_path / "packages"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def settings(packages):
    """Return the variables that make these packages part of the environment, and keep questions beside them."""
    profile = str(packages.with_name("profile"))
    return {"PYTHONPATH": str(packages), "MPIIMPORT_STABLE": str(packages), "MPIIMPORT_PROFILE": profile}


def launch(environment, packages, *program, says="", env=None):
    """Run a program with these packages on all ranks. Return what each of them wrote."""
    rank = 'exec "$0" "$@" "$PMI_RANK"'
    env = {**settings(packages), **(env or {})}
    result = environment.run(RANKS, "sh", "-c", rank, *program, packages, env=env)
    assert result.returncode == 0, result
    assert says in result.stderr, result
    reports = [packages.with_name("packages.%d.json" % rank) for rank in range(RANKS)]
    return [json.loads(report.read_text()) for report in reports]


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_answers_are_plain_pythons_and_a_second_run_does_not_look(packages, script, version):
    environment = HERE if version is None else environment_of(version)
    program = script(PROGRAM + (BACKPORT if version is None else "") + REPORT)
    (plain, plain_asked), _ = launch(environment, packages, environment.python, program)
    first = launch(environment, packages, environment.python_mpi, program)
    second = launch(environment, packages, environment.python_mpi, program)
    assert len(plain_asked) > 20
    assert [answers for answers, _ in first] == [plain] * RANKS
    assert [answers for answers, _ in second] == [plain] * RANKS
    assert all(asked for _, asked in first)
    assert [asked for _, asked in second] == [[]] * RANKS


def upgrade(packages):
    """Do what an installer does, and more."""
    old = packages / "sample-1.0.dist-info"
    metadata = (old / "METADATA").read_text().replace("1.0", "1.1")
    shutil.rmtree(old)
    new = packages / "sample-1.1.dist-info"
    new.mkdir()
    (new / "METADATA").write_text(metadata)
    (new / "entry_points.txt").write_text("[sample_group]\nnew = sample.inner:__name__\n")
    (packages / "Other_One-2.dist-info" / "direct_url.json").unlink()
    (packages / "Other_One-2.dist-info" / "top_level.txt").write_text("sample\n")
    (packages / "sample" / "data.txt").unlink()
    (packages / "sample" / "missing").write_text("it is there now")
    (packages / "sample" / "LICENSE").unlink()
    (packages / "sample" / "LICENSE").mkdir()
    (packages / "sample" / "LICENSE" / "data").write_text("below")
    (packages / "sample" / "portion" / "__init__.py").write_text("")
    (packages / "sample" / "portion" / "more.py").write_text("")


def test_what_changed_between_two_runs_is_seen(packages, script):
    program = script(PROGRAM + REPORT)
    before = launch(HERE, packages, HERE.python_mpi, program)
    upgrade(packages)
    (plain, _), _ = launch(HERE, packages, HERE.python, program)
    after = launch(HERE, packages, HERE.python_mpi, program)
    assert [answers for answers, _ in after] == [plain] * RANKS
    assert all(now != then for now, then in zip(plain, before[0][0]))


def test_a_bundle_has_the_answers_of_its_profile(packages, script):
    program, bundle = script(PROGRAM + REPORT), packages.with_name("bundle")
    unwritten = {"PYTHONDONTWRITEBYTECODE": "1"}  # a folder for bytecode, when it appears, is a change
    bundled = {**unwritten, "MPIIMPORT_BUNDLE": str(bundle), "MPIIMPORT_PROFILE": "off"}
    expected = launch(HERE, packages, HERE.python_mpi, program, env=unwritten)
    made = mpis.run([HERE.python_mpi, "--write-bundle", bundle, program], env={**settings(packages), **unwritten})
    assert made.returncode == 0, made
    (packages.with_name("profile")).unlink()
    found = launch(HERE, packages, HERE.python_mpi, program, env=bundled)
    assert found == [[answers, []] for answers, _ in expected]
    (packages / "sample" / "data.txt").write_text("changed")
    (plain, _), _ = launch(HERE, packages, HERE.python, program, env=unwritten)
    out_of_date = "sample/data.txt` has changed since it was made"
    found = launch(HERE, packages, HERE.python_mpi, program, env=bundled, says=out_of_date)
    assert [answers for answers, _ in found] == [plain] * RANKS


CHANGES = """
    import os

    other = FOLDER + "/other-" + RANK  # each rank changes a folder of its own
    def both():
        found = [one.version for one in standard.distributions(path=[other])]
        return found, [one.name for one in pkgutil.iter_modules([other])], outcome(changing.__loader__.get_data, own)

    sys.path.append(other)
    changing = importlib.import_module("changing_" + RANK)
    own = other + "/data.txt"
    answers = [both()]
    os.rename(other + "/changing-1.dist-info", other + "/changing-2.dist-info")
    with open(other + "/changing-2.dist-info/METADATA", "w") as file:
        file.write("Name: changing\\nVersion: 2\\n")
    with open(other + "/added.py", "w"), open(own, "w") as file:
        file.write("changed")
    if hasattr(sys, "mpiimport"):
        with sys.mpiimport.disjoint:
            answers.append(both())
    else:
        answers.append(both())
    importlib.invalidate_caches()
    answers.append(both())
    asked = []
"""


def restore(packages):
    """Make what each rank changes as it was."""
    for rank in range(RANKS):
        folder = packages / ("other-%d" % rank)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "changing-1.dist-info").mkdir(parents=True)
        (folder / "changing-1.dist-info" / "METADATA").write_text("Name: changing\nVersion: 1\n")
        (folder / "data.txt").write_text("as it was")
        (folder / ("changing_%d.py" % rank)).write_text("")


def test_what_changes_while_a_program_runs_is_seen_where_it_asks_for_it(packages, script):
    program = script(PROGRAM + CHANGES + REPORT)
    outcomes = []
    for executable in (HERE.python, HERE.python_mpi, HERE.python_mpi):
        restore(packages)
        outcomes.append([answers for answers, _ in launch(HERE, packages, executable, program)])
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert outcomes[0][0][0] != outcomes[0][0][1] == outcomes[0][0][2]


PACKAGES = """
    import sys
    import matplotlib.pyplot, pandas, pytest
    from importlib.metadata import entry_points, version

    assert version("numpy") and list(entry_points())
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1]]))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which CI has")
def test_distributions_are_not_looked_for_by_another_rank_than_the_root(tmp_path, script):
    test = script("def test_nothing():\n    pass\n", "test_nothing.py")
    program = ("python-mpi", "--profile", tmp_path / "profile", script(PACKAGES), test)
    folders = {entry for entry in sys.path if entry.endswith(("site-packages", ".zip"))}
    found = []
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        leaf = count.trace(mpis.MPICH, RANKS, tmp_path / run, *program)[1]
        did = [event for event in leaf if type(event) is count.Operation]
        listed = [one for one in did if one.kind in ("list", "open") and one.path in folders]
        found.append(listed + [one for one in did if ".dist-info" in one.path])
    assert len(found[0]) > 20
    assert found[1] == []
