"""What `site` does for plain Python is done on every rank: paths, `.pth` files, builtins, customisation, children."""

import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from mpi import MPICH, ROOT, clean_environment, run
from pythons import BASE, Environment, install, make_environment
from snapshots import PROGRAM, RANKS, assert_same_start, differences, expected, take

TREES = ROOT / "tests" / "trees"
CUSTOMIZE = TREES / "customize"
WHICH = "import sys; print(sys.executable, sys.prefix, sys.mpiimport.stats()['size'])"

CUSTOMISATION = """
    import atexit, sys

    class Finder:
        def find_spec(self, fullname, path=None, target=None):
            if fullname == "sample_of_customisation":
                print("asked for", fullname)

    sys.argv[1:] = ["changed"]
    sys.path.insert(0, "/missing")
    sys.path.append("relative")
    sys.meta_path.insert(0, Finder())
    sys.meta_path.append(Finder())
    sys.dont_write_bytecode = True
    atexit.register(print, "at exit")
    raise ValueError("after all that")
"""


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A virtual environment, to be copied."""
    return make_environment(tmp_path_factory.mktemp("pristine") / "environment")


@pytest.fixture
def environment(pristine, tmp_path):
    """A virtual environment for one test: a relocated one, since it is a copy."""
    return pristine.copied(tmp_path / "environment")


@pytest.fixture
def system_environment(environment):
    """A virtual environment that sees the packages of its base, and the user's."""
    config = environment.bin.parent / "pyvenv.cfg"
    config.write_text(re.sub("(include-system-site-packages) = false", r"\1 = true", config.read_text()))
    assert "= true" in config.read_text()
    return environment


@pytest.fixture(scope="session")
def user_base(tmp_path_factory):
    """The folder of a user who installed with `pip install --user`, for the base interpreter."""
    base = tmp_path_factory.mktemp("user") / ".local"
    install("--user", "--break-system-packages", python=BASE, env={"PYTHONUSERBASE": str(base)})
    return base


def user_folder(base):
    """Return the folder below a user's base in which packages are."""
    return base / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages"


def customised(snapshots):
    """Return the names of the customisations that ran, in order, which have to be the same on every rank."""
    names = [[one["name"] for one in snapshot["customised"] or []] for snapshot in snapshots]
    assert all(one == names[0] for one in names)
    return names[0]


def variables_of(lines, folder):
    """Return variables from lines like `NAME=value`, in which `{here}` is the folder of the test."""
    return dict(line.format(here=folder).split("=", 1) for line in lines)


@pytest.mark.parametrize(
    "arguments",
    [
        ("relative/../snapshot.py", "a"),
        ("link.py",),
        ("-c", PROGRAM.read_text(), "-a", "b"),
        ("-m", "snapshot", "-c", "a"),
        ("folder", "a"),
        ("-u", "-B", "-OO", "-W", "error", "-X", "utf8", "-Wignore", "-bb", "-q", "snapshot.py", "-u"),
    ],
    ids=lambda arguments: " ".join(arguments).partition("\n")[0][:20],
)
def test_each_way_to_name_a_program_starts_the_same(environment, tmp_path, arguments):
    here = tmp_path / "here"
    (here / "relative").mkdir(parents=True)
    (here / "folder").mkdir()
    shutil.copy(PROGRAM, here)
    shutil.copy(PROGRAM, here / "folder" / "__main__.py")
    (here / "link.py").symlink_to(PROGRAM)
    ours, said = assert_same_start(environment, tmp_path, *arguments, cwd=here, env={"PYTHONPATH": str(CUSTOMIZE)})
    assert customised(ours) == ["sitecustomize"]
    assert not said


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        ((), ()),
        (("-s", "-E"), ("PYTHONPATH={here}", "PYTHONNOUSERSITE=1")),
        ((), ("PYTHONPATH=relative:../environment:{here}/missing:{here}",)),
        ((), ("PYTHONPATH=::relative:{here}/./relative:relative/:{here}/relative:",)),
        ((), ("PYTHONPATH={here}/archive.zip:{here}/link:{here}/snapshot.py",)),
        (("-P",), ("PYTHONPATH=relative:",)),
        ((), ("PYTHONPATH=relative", "MPIIMPORT_POLICY=locate")),
        ((), ("PYTHONPATH=relative", "MPIIMPORT_POLICY=lockstep")),
        ((), ("PYTHONSAFEPATH=1", "PYTHONNOUSERSITE=1", "PYTHONDONTWRITEBYTECODE=1", "PYTHONPYCACHEPREFIX={here}")),
        ((), ("PYTHONWARNINGS=error", "PYTHONOPTIMIZE=1", "PYTHONHASHSEED=1", "PYTHONUTF8=1", "PYTHONUNBUFFERED=x")),
        ((), ("python=a", "bin=b", "options=c", "count=d", "self=e", "boot=f", "option=g", "folder=h", "value1=i")),
    ],
    ids=lambda value: " ".join(value)[:40] or "none",
)
def test_settings_mean_what_they_mean_to_plain_python(environment, tmp_path, options, variables):
    here = tmp_path / "here"
    (here / "relative").mkdir(parents=True)
    (here / "relative" / "sample_relative.py").write_text("VALUE = 1\n")
    (here / "link").symlink_to("relative")
    with zipfile.ZipFile(here / "archive.zip", "w") as archive:
        archive.writestr("sample_zipped/__init__.py", "from . import part\n")
        archive.writestr("sample_zipped/part.py", "VALUE = 2\n")
    shutil.copy(PROGRAM, here)
    env = {"SNAPSHOT_IMPORTS": "sample_relative sample_zipped json.tool", **variables_of(variables, here)}
    assert_same_start(environment, tmp_path, "snapshot.py", options=options, cwd=here, env=env)


@pytest.mark.parametrize(
    ("options", "variables", "names"),
    [
        ((), ("HOME={here}/home",), ["sitecustomize", "usercustomize"]),
        ((), ("HOME={here}/nobody", "PYTHONUSERBASE={here}/home/.local"), ["sitecustomize", "usercustomize"]),
        (("-s",), ("HOME={here}/home",), ["sitecustomize"]),
        (("-E",), ("HOME={here}/home", "PYTHONUSERBASE={here}/elsewhere", "PYTHONNOUSERSITE=1"), []),
        ((), ("HOME={here}/home", "PYTHONNOUSERSITE=1"), ["sitecustomize"]),
    ],
    ids=["home", "user base", "-s", "-E", "no user site"],
)
def test_the_user_site_is_seen_where_the_environment_sees_its_base(
    system_environment, tmp_path, options, variables, names
):
    packages = user_folder(tmp_path / "home" / ".local")
    packages.mkdir(parents=True)
    (packages / "sample_of_user.py").touch()
    (packages / "user.pth").write_text("import sys; sys.pth_lines = [sys._getframe(1).f_locals['sitedir']]\nextra\n")
    (packages / "extra").mkdir()
    env = {"SNAPSHOT_IMPORTS": "sample_of_user", "PYTHONPATH": str(CUSTOMIZE), **variables_of(variables, tmp_path)}
    ours, _ = assert_same_start(system_environment, tmp_path, options=options, env=env)
    assert customised(ours) == names


def test_one_rank_starts_as_plain_python(environment, tmp_path):
    ours, said = assert_same_start(environment, tmp_path, env={"PYTHONPATH": str(CUSTOMIZE)}, ranks=1)
    assert customised(ours) == ["sitecustomize"]
    assert not said


def test_importing_site_mpi_makes_up_for_a_start_without_site(environment, tmp_path, script):
    program = script("import site_mpi\n" + PROGRAM.read_text())
    env = {"PYTHONPATH": "%s:%s" % (CUSTOMIZE, environment.site_packages)}
    plain, _ = take(environment, tmp_path / "plain", environment.python, program, "-S", env=env)
    ours, _ = take(environment, tmp_path / "ours", environment.python, "-S", program, "-S", env=env)
    for rank in range(RANKS):
        assert ours[rank].pop("excepthook") != plain[rank].pop("excepthook")  # an uncaught error ends the job
        for snapshot in (plain[rank], ours[rank]):
            snapshot["sys"].pop("orig_argv")
            snapshot["customised"] = [dict(one, orig_argv=None, main=None) for one in snapshot["customised"]]
        assert not list(differences(expected(plain[rank], ours[rank], rank), ours[rank]))


def test_a_customisation_may_change_what_it_likes_and_fail(environment, tmp_path, script):
    script(CUSTOMISATION, "customisation/sitecustomize.py")
    env = {"PYTHONPATH": str(tmp_path / "customisation"), "SNAPSHOT_IMPORTS": "sample_of_customisation json.tool"}
    ours, said = assert_same_start(environment, tmp_path, env=env)
    assert [snapshot["sys"]["argv"][1:] for snapshot in ours] == [["changed"]] * RANKS
    assert not said


def test_a_customisation_that_exits_ends_the_job_as_it_ends_plain_python(environment, tmp_path, script):
    script("raise SystemExit(3)", "customisation/sitecustomize.py")
    env = {"PYTHONPATH": str(tmp_path / "customisation")}
    for program in (environment.python, environment.python_mpi):
        result = environment.run(RANKS, program, "-c", "print(1)", env=env)
        assert result.returncode == 1, result
        assert "SystemExit: 3\n" in result.stderr, result
        assert not result.stdout


@pytest.mark.parametrize("variables", [(), ("PYTHONUSERBASE={base}",)], ids=["home", "user base"])
def test_an_installation_for_the_user_starts_the_same(user_base, tmp_path, variables):
    environment = Environment(user_base / "bin", python=BASE.name)
    env = {"HOME": str(user_base.parent), "PATH": "%s:%s" % (BASE.parent, clean_environment()["PATH"])}
    env.update(variable.format(base=user_base).split("=") for variable in variables)
    ours, _ = assert_same_start(environment, tmp_path, env={**env, "PYTHONPATH": str(CUSTOMIZE)})
    assert customised(ours) == ["sitecustomize", "usercustomize"]


def test_pth_files_of_all_kinds_have_their_effect_on_every_rank(environment, tmp_path):
    shutil.copytree(TREES / "pth", environment.site_packages, dirs_exist_ok=True)
    (environment.site_packages / "../../outside").mkdir()
    (environment.site_packages / "11_gone.pth").symlink_to("nowhere")
    imports = (
        "sample_relative sample_with_spaces sample_after sample_in_the_middle sample_editable.part sample_front "
        "sample_namespace.part sample_nspkg.part sample_spread.here sample_missing sample_front.missing"
    )
    ours, said = assert_same_start(environment, tmp_path, env={"SNAPSHOT_IMPORTS": imports, "LC_ALL": "C.UTF-8"})
    for snapshot in ours:
        failed = [name for name, spec in snapshot["imported"].items() if isinstance(spec, str)]
        assert failed == ["sample_missing", "sample_front.missing"]
        assert snapshot["sys"]["pth_lines"][:3] == ["site", "python", "before the error"]
    assert len(said) == 1, said
    assert "11_gone.pth" in said[0]


def test_a_pth_file_in_another_encoding_ends_every_rank_as_it_ends_plain_python(environment):
    (environment.site_packages / "latin1.pth").write_bytes(b"caf\xe9\n")
    plain = environment.run(RANKS, environment.python, PROGRAM, env={"LC_ALL": "C.UTF-8"})
    ours = environment.run(RANKS, environment.python_mpi, PROGRAM, env={"LC_ALL": "C.UTF-8"})
    assert plain.returncode == ours.returncode == 1
    said = re.search("^UnicodeDecodeError: .*", plain.stderr, re.MULTILINE).group()
    assert ours.stderr.count(said) == 1


@pytest.mark.parametrize("options", [(), ("-E", "-s", "-B", "-W", "ignore::ResourceWarning")], ids=["plain", "options"])
def test_children_have_the_site_that_children_of_plain_python_have(environment, tmp_path, options):
    env = {"SNAPSHOT_CHILDREN": "1", "PYTHONPATH": str(CUSTOMIZE)}
    ours, _ = assert_same_start(environment, tmp_path, PROGRAM, options=options, env=env)
    for snapshot in ours:
        for child in ("subprocess", "spawn", "forkserver"):
            assert "no_site=0" in snapshot["children"][child]["flags"]
            assert options or snapshot["children"][child]["customised"] == ["sitecustomize"]


CALL = re.compile(r'(\w+)\((?:AT_FDCWD(?:<[^>]*>)?, )?(?:\d+<([^>]*)>)?(?:, )?(?:"([^"]*)")?.*= (-?)')


def traced(environment, folder, *command):
    """Run a program on all ranks under strace. Return for each what it asked about files: (call, path, success)."""
    folder.mkdir()
    strace = 'exec strace -ff -qq -y -s 4096 -e trace=%file,getdents64 -e signal=none -o "$0/$PMI_RANK" "$@"'
    result = environment.run(RANKS, "sh", "-c", strace, folder, *command)
    assert result.returncode == 0, result
    traces = []
    for rank in range(RANKS):
        lines = [line for file in folder.glob("%d.*" % rank) for line in file.read_text().splitlines()]
        calls = [match.groups() for match in map(CALL.match, lines) if match and match[1] != "execve"]
        traces.append([(call, path or opened or "", not failed) for call, opened, path, failed in calls])
    return traces


def test_a_leaf_looks_for_no_site_and_reads_two_files_of_ours(environment, tmp_path, script):
    if shutil.which("strace") is None or run(["strace", "-qq", "-o", os.devnull, "true"]).returncode:
        pytest.skip("strace is not there, or not allowed")
    packages = environment.site_packages
    (packages / "extra").mkdir()
    (packages / "paths.pth").write_text("extra\nmissing\nimport sample_of_pth\n")
    (packages / "extra" / "sample_of_pth.py").write_text("import sys; sys.pth_lines = 1\n")
    (packages / "sitecustomize.py").write_text("import sample_of_customisation\n")
    (packages / "sample_of_customisation.py").touch()
    program = script("import sys, sample_of_pth; assert sys.pth_lines == 1; import sample_of_customisation, json.tool")
    _, bare = traced(environment, tmp_path / "bare", environment.python, "-S", "-c", "")
    root, leaf = traced(environment, tmp_path / "ours", environment.python_mpi, program)

    def asked(trace, *parts, call="", success=None):
        return Counter(
            (name, path)
            for name, path, succeeded in trace
            if call in name and any(part in path for part in parts) and success in (None, succeeded)
        )

    places = (str(environment.bin.parent), sys.base_prefix)
    assert asked(root, "paths.pth")
    assert asked(root, str(packages), call="getdents")
    assert asked(root, program.name)
    assert not asked(leaf, ".pth", program.name)
    assert asked(leaf, "pyvenv.cfg") == asked(bare, "pyvenv.cfg")
    assert asked(leaf, *places, call="getdents") == asked(bare, *places, call="getdents")
    opened = asked(leaf, str(packages), call="open", success=True)
    assert {Path(path).name.partition(".")[0] for _, path in opened} == {"boot", "_core"}
    assert set(opened.values()) == {1}


@pytest.fixture(scope="session")
def elsewhere(pristine, tmp_path_factory):
    """A virtual environment in a folder with blanks and quotes in its name, and ways to it."""
    folder = tmp_path_factory.mktemp("else where") / 'it\'s an "environment" $HOME *'
    environment = pristine.copied(folder)
    (folder.parent / "link").symlink_to(folder.name)
    (folder.parent / "python-mpi").symlink_to("link/bin/python-mpi")
    (folder.parent / "chain").symlink_to(folder.parent / "python-mpi")
    (folder.parent / "bin").mkdir()
    return environment


@pytest.mark.parametrize(
    ("where", "called", "python"),
    [
        (".", "{bin}/python-mpi", "{bin}/python"),
        (".", "./chain", "{bin}/python"),
        (".", "./python-mpi", "{bin}/python"),
        (".", "link/bin/python-mpi", "link/bin/python"),
        (".", "{here}/link/bin/python-mpi", "{here}/link/bin/python"),
        (".", "./link/../{name}/bin/python-mpi", "./{name}/bin/python"),
        ("link/bin", "./python-mpi", "./python"),
        ("link/lib", "../bin/python-mpi", "../bin/python"),
        ("link", "bin/python-mpi", "bin/python"),
        ("link/bin", "sh python-mpi", "./python"),
        ("link/bin", "../../chain", "./python"),
    ],
)
def test_the_launcher_finds_its_own_python(elsewhere, where, called, python):
    here = elsewhere.bin.parent.parent
    names = {"bin": elsewhere.bin, "here": here, "name": elsewhere.bin.parent.name}
    code = "import sys; print(sys.prefix, sys.path, sep='\\n')"
    env = {"CDPATH": "%s:%s" % (here, here / "link")}
    called = called.format(**names)
    command = called.split() if called.startswith("sh ") else [called]
    plain = elsewhere.run(1, python.format(**names), "-c", code, env=env, cwd=here / where)
    ours = elsewhere.run(2, *command, "-c", "%s; assert sys.mpiimport" % code, env=env, cwd=here / where)
    assert plain.returncode == ours.returncode == 0, (plain, ours)
    assert sorted(ours.stdout.splitlines()) == sorted(plain.stdout.splitlines() * 2)


@pytest.mark.parametrize("python", [BASE, Path("/usr/bin/python3")], ids=["base", "system"])
@pytest.mark.parametrize("scheme", ["--target", "--prefix", "--user"])
def test_the_launcher_finds_the_python_that_it_was_installed_for(tmp_path, scheme, python):
    asked = run([python, "-c", "import sys; print(sys.version_info[:2] >= (3, 9) and '%d.%d' % sys.version_info[:2])"])
    version = asked.stdout.strip()
    if asked.returncode or version == "False":
        pytest.skip("%s is not there, or too old" % python)
    path = tmp_path / "path"
    path.mkdir()
    (path / ("python" + version)).symlink_to(python)
    (path / "python3").symlink_to(python)
    where = ["--user"] if scheme == "--user" else [scheme, tmp_path / "there"]
    install(*where, "--break-system-packages", python=python, env={"PYTHONUSERBASE": str(tmp_path)})
    launcher = next(tmp_path.rglob("python-mpi"))
    env = {"PATH": "%s:/usr/bin:/bin" % path}
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.mpiimport.stats()['size'])"
    result = MPICH.run(2, launcher, "-c", code, env=env)
    assert result.stdout.splitlines() == [version + " 2"] * 2, result


def test_the_launcher_takes_the_python_that_it_is_told_to_take(environment, pristine, tmp_path):
    told = {"MPIIMPORT_PYTHON": str(pristine.bin / "python")}
    code = "import sys; print(sys.prefix)"
    result = environment.run(2, environment.python_mpi, "-c", code, env=told)
    assert result.stdout.split() == [str(pristine.bin.parent)] * 2, result
    missing = environment.run(2, environment.python_mpi, "-c", code, env={"MPIIMPORT_PYTHON": str(tmp_path / "python")})
    assert missing.returncode == 127, missing
