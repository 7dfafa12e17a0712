"""Settings, the launcher and the places for libmpi are read from the command line and the environment."""

import posix
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from site_mpi import boot
from site_mpi.boot import Settings, UsageError, parse


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The variables of this process, none to begin with; a dict to add to."""
    variables = Environment()
    monkeypatch.setattr(posix, "environ", variables)
    return variables


class Environment(dict):
    def set(self, **variables):
        self.clear()
        self.update({name.encode(): value.encode() for name, value in variables.items()})


@pytest.mark.parametrize(
    ("line", "chosen", "rest"),
    [
        ("script.py -v --policy local", {"verbose": 0, "policy": "opening"}, "script.py -v --policy local"),
        ("-v -T dir script.py", {"verbose": 1, "tmpdir": "dir"}, "script.py"),
        ("-vvTdir script.py", {"verbose": 2, "tmpdir": "dir"}, "script.py"),
        ("-Iopenmpi -d", {"implementation": "openmpi", "debug": 1, "policy": "local"}, ""),
        ("--policy lockstep --timeout=2.5 x", {"policy": "lockstep", "timeout_s": 2.5}, "x"),
        ("--verbose --verbose --abort-on-exit x", {"verbose": 2, "abort_on_exit": 1}, "x"),
        ("-c code -v", {"command": "code", "verbose": 0}, "-v"),
        ("-vc code -c", {"command": "code", "verbose": 1}, "-c"),
        ("-ccode -- x", {"command": "code"}, "-- x"),
        ("--command=a=b x", {"command": "a=b"}, "x"),
        ("-m package.module -m", {"module": "package.module"}, "-m"),
        ("--module name --help", {"module": "name", "help": 0}, "--help"),
        ("-uO -W ignore -X dev -Werror -OO x", {"verbose": 0}, "x"),
        ("-uv -bBEPqs -", {"verbose": 1}, "-"),
        ("-- -script.py -v", {"verbose": 0}, "-script.py -v"),
        ("-hV", {"help": 1, "version": 1}, ""),
    ],
)
def test_options_end_where_the_program_begins(line, chosen, rest):
    settings, left = parse(line.split())
    assert {name: getattr(settings, name) for name in chosen} == chosen
    assert left == rest.split()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("-z", "no option -z"),
        ("--nonsense", "no option --nonsense"),
        ("-T", "--tmpdir needs a value: DIR"),
        ("--policy", "--policy needs a value"),
        ("-W", "-W needs a value"),
        ("--debug=1", "--debug takes no value"),
        ("-I nonsense", "--implementation is `nonsense`; choose one of mpich, openmpi, mpiabi"),
        ("--policy=best", "--policy is `best`; choose one of"),
        ("--thread-level all", "--thread-level is `all`; choose one of"),
        ("--timeout soon", "--timeout is `soon`; it must be a number of seconds"),
        ("--timeout 0", "--timeout is `0`; it must be a number of seconds"),
        ("--timeout nan", "--timeout is `nan`; it must be a number of seconds"),
    ],
)
def test_what_makes_no_sense_is_named(line, cause):
    with pytest.raises(UsageError) as raised:
        parse([*line.split(), *(["x"] if " " in line or "=" in line else [])])
    assert cause in str(raised.value)


def test_the_options_of_plain_python_are_skipped_where_asked():
    settings, left = parse(["-S", "-i", "-Xdev", "-tc", "code", "x"], settings=Settings())
    assert (settings.command, left) == ("code", ["x"])


def test_each_setting_is_a_variable_that_an_option_overrides(environment):
    environment.set(
        MPIIMPORT_POLICY="locate", MPIIMPORT_VERBOSE="2", MPIIMPORT_THREAD_LEVEL="single", MPIIMPORT_TMPDIR=""
    )
    settings, _ = parse(["--policy", "lockstep"])
    assert (settings.policy, settings.verbose, settings.thread_level) == ("lockstep", 2, "single")
    assert settings.tmpdir is None


@pytest.mark.parametrize("variables", [{"MPIIMPORT_REQUIRE": "yes"}, {"MPIIMPORT_POLICY": "Opening"}])
def test_a_variable_that_makes_no_sense_is_named(environment, variables):
    environment.set(**variables)
    with pytest.raises(UsageError) as raised:
        Settings()
    assert next(iter(variables.values())) in str(raised.value)


def test_what_to_run_is_no_variable(environment):
    environment.set(MPIIMPORT_COMMAND="code", MPIIMPORT_MODULE="name", MPIIMPORT_HELP="1", MPIIMPORT_VERSION="1")
    settings = Settings()
    assert (settings.command, settings.module, settings.help, settings.version) == (None, None, 0, 0)


def test_there_are_no_other_settings():
    with pytest.raises(UsageError, match="there is no setting `color`"):
        Settings(color=True)


def test_help_names_every_option_and_choice():
    text = boot.usage()
    for name, short, *_ in boot.OPTIONS:
        assert "--" + name in text
        assert short is None or "-%s, --%s" % (short, name) in text
    for choices in boot.CHOICES.values():
        assert all(choice in text for choice in choices)


@pytest.mark.parametrize(
    ("option", "variables", "level"),
    [
        (None, {}, 3),
        (None, {"MPI4PY_RC_THREAD_LEVEL": "funneled"}, 1),
        (None, {"MPI4PY_RC_THREADS": "false", "MPI4PY_RC_THREAD_LEVEL": "multiple"}, 0),
        (None, {"MPI4PY_RC_THREADS": "1"}, 3),
        ("serialized", {"MPI4PY_RC_THREADS": "0"}, 2),
    ],
)
def test_the_thread_level_is_ours_or_what_mpi4py_would_ask_for(environment, option, variables, level):
    environment.set(**variables)
    assert boot.thread_level(Settings(thread_level=option)) == level


def test_a_thread_level_of_mpi4py_that_makes_no_sense_is_named(environment):
    environment.set(MPI4PY_RC_THREAD_LEVEL="some")
    with pytest.raises(UsageError, match="MPI4PY_RC_THREAD_LEVEL is `some`; choose one of"):
        boot.thread_level(Settings())


@pytest.mark.parametrize(
    ("variables", "found", "first"),
    [
        ({}, None, True),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, ("OMPI_COMM_WORLD_RANK", 4, "openmpi"), False),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, ("MPI_LOCALRANKID", 2, "mpich"), True),
        ({"PMI_RANK": "1", "PMI_SIZE": "1"}, ("PMI_RANK", 1, None), False),
        ({"PMIX_RANK": "0"}, ("PMIX_RANK", None, None), True),
        (
            {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.7.0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"},
            ("PMIX_RANK", 4, None),
            False,
        ),
        # prterun in an allocation: srun started its daemons, one on each host.
        (
            {"PMIX_RANK": "0", "PMIX_NAMESPACE": "prterun-h0-1@1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            ("PMIX_RANK", None, None),
            True,
        ),
        ({"FLUX_TASK_RANK": "7", "FLUX_JOB_SIZE": "8"}, ("FLUX_TASK_RANK", 8, None), False),
        ({"SLURM_PROCID": "0"}, None, True),
        ({"SLURM_PROCID": "2"}, None, True),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, ("SLURM_PROCID", 4, None), False),
    ],
)
def test_launchers_are_told_by_their_variables(environment, variables, found, first):
    environment.set(**variables)
    assert boot.launcher() == found
    assert boot.is_first() is first


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"PMI_RANK": "5", "MPI_LOCALRANKID": "0"}, True),
        ({"PMI_RANK": "0", "MPI_LOCALRANKID": "1"}, False),
        ({"PMI_RANK": "5"}, False),
        ({"SLURM_PROCID": "4", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "0"}, True),
    ],
)
def test_the_first_rank_of_a_host_is_told_by_the_environment(environment, variables, first):
    environment.set(**variables)
    assert boot.is_first_on_host() is first


@pytest.mark.parametrize(
    ("setting", "variables", "candidates"),
    [
        ({"libmpi": "/a:b"}, {"MPI4PY_LIBMPI": "/c"}, ["/a", "b"]),
        ({}, {"MPI4PY_LIBMPI": "/c:d"}, ["/c", "d"]),
        ({"implementation": "mpiabi"}, {}, ["libmpi_abi.so.1", "libmpi_abi.so.0"]),
        ({}, {"MPI4PY_MPIABI": "MPI-ABI"}, ["libmpi_abi.so.1", "libmpi_abi.so.0"]),
    ],
)
def test_a_chosen_library_is_the_only_candidate(environment, setting, variables, candidates):
    environment.set(**variables)
    assert boot.libmpi_candidates(Settings(**setting), "/site") == candidates


def test_a_chosen_folder_is_searched(environment, tmp_path):
    environment.set(MPI4PY_LIBMPI="/a:%s" % tmp_path)
    names = ("libmpi.so", "libmpi.so.12", "libmpi.so.40")
    assert boot.libmpi_candidates(Settings(), "/site") == ["/a", *("%s/%s" % (tmp_path, name) for name in names)]


OURS = """
import sys
from _frozen_importlib import _load
from _frozen_importlib_external import spec_from_file_location
boot = _load(spec_from_file_location("site_mpi.boot", sys.argv[1]))
print(*boot.libmpi_candidates(boot.Settings(), "/site"), sep="\\n")
"""
MPI4PYS = """
import os.path
from mpi4py import _mpiabi
for folder in _mpiabi._dlopen_rpath():
    for name in ("libmpi.so", "libmpi.so.12", "libmpi.so.40"):
        print(os.path.join(folder, name))
"""


@pytest.mark.parametrize("kind", ["closed environment", "open environment", "no environment", "no user site"])
def test_the_search_is_that_of_mpi4py(tmp_path, kind):
    python = Path(sys.base_exec_prefix) / "bin" / ("python%d.%d" % sys.version_info[:2])
    if kind in ("closed environment", "open environment"):
        option = ["--system-site-packages"] if kind == "open environment" else []
        subprocess.run([python, "-m", "venv", "--without-pip", *option, tmp_path / "venv"], check=True)
        python = tmp_path / "venv" / "bin" / "python"
    installed = Path(boot.__file__).parent.parent
    variables = {"HOME": str(tmp_path), "PYTHONPATH": str(installed)}
    options = ["-s"] if kind == "no user site" else []

    def lines(*arguments):
        run = [python, *options, *arguments]
        return subprocess.run(run, env=variables, check=True, capture_output=True, text=True).stdout.splitlines()

    ours, mpi4pys = lines("-S", "-c", OURS, boot.__file__), lines("-c", MPI4PYS)
    linked = ["needed-by:%s/mpi4py/MPI%s" % (folder, EXTENSION_SUFFIXES[0]) for folder in (installed, "/site")]
    assert ours[: len(linked)] == linked
    assert ours[-1] == "libmpich.so.12"
    found = ours[len(linked) : -1]
    if kind == "closed environment":
        assert found[: len(mpi4pys)] == mpi4pys
    elif kind == "open environment":  # what is on the dynamic loader's path comes first
        assert (found[:3], sorted(found)) == (mpi4pys[:3], sorted(mpi4pys))
    else:
        assert found == mpi4pys


def test_a_chosen_family_is_searched_by_its_own_names(environment):
    environment.set(MPI4PY_MPIABI="openmpi")
    assert {one.rpartition("/")[2] for one in unlinked()} == {"libmpi.so.40"}
    assert {one.rpartition("/")[2] for one in unlinked(implementation="mpich")} == {"libmpi.so.12", "libmpich.so.12"}


def unlinked(**settings):
    candidates = boot.libmpi_candidates(Settings(**settings), "/site")
    return [one for one in candidates if not one.startswith("needed-by:")]
