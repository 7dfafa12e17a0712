"""`mpiimport doctor` says what python-mpi meets here, and what to do about what is wrong."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import mpi as mpis
import pytest

sys.path.append(str(mpis.ROOT / "benchmarks"))

import operations

LOOK = """
    import json, os, sys
    if "mpiimport" in sys.argv:
        place = sys.mpiimport.stats()
    else:
        place = None
    path = sys.path[1:]
    print(json.dumps([sys.version.split()[0], sys.prefix, path, os.statvfs("/dev/shm").f_blocks, place]))
"""
LEVELS = ["ok", "warning", "problem"]


def alone(*arguments, mpi=mpis.MPICH, env=None, argv=("mpiimport", "doctor")):
    """Examine without a launcher, with an MPI on PATH."""
    path = "%s:%s" % (mpi.prefix / "bin", mpis.clean_environment()["PATH"])
    return mpis.run([*argv, *arguments], env={**mpi.env, "PATH": path, **(env or {})})


def report_of(result, status=None):
    """Return the report that was printed, once; its status is that of its findings, and of the process."""
    line, *others = result.stdout.splitlines()  # a launcher may add that a rank failed
    assert not any(other.startswith("{") for other in others), result
    report = json.loads(line)
    assert report["format"] == 1
    worst = max((one["level"] for one in report["findings"]), key=LEVELS.index)
    assert report["status"] == worst, result
    assert (result.returncode != 0) == (worst == "problem"), result
    assert all(one["remedy"].endswith((".", "?")) for one in report["findings"] if one["level"] != "ok"), result
    assert status in (None, worst), result
    assert "Traceback" not in result.stderr, result
    return report


def finding(report, level, subject):
    """Return the text and the remedy of the only such finding."""
    (found,) = (one for one in report["findings"] if (one["level"], one["subject"]) == (level, subject))
    return "%s -> %s" % (found["text"], found["remedy"])


def in_mounts(mounts, argv):
    """Return a command line that sees temporary filesystems on these folders, each with its options."""
    lines = [
        "mount -t tmpfs -o %s tmpfs %s" % (options, shlex.quote(str(folder))) for folder, options in mounts.items()
    ]
    enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    if mpis.run([*enter, "\n".join(["set -e", *lines])]).returncode:
        pytest.skip("mounting needs rights that are missing here")
    return [*enter, "\n".join(["set -e", *lines, 'exec "$@"']), "sh", *argv]


def test_it_agrees_with_reality_and_its_text_with_its_json(script, tmp_path):
    program = script(LOOK)
    env = {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path), "MPIIMPORT_VERBOSE": "0"}
    report = report_of(alone("--json", env=env), "ok")
    described = (mpis.ROOT / "docs" / "reference" / "doctor.md").read_text()
    assert [name for name in (*report, *report["mpi"], *report["store"][0]) if "`%s`" % name not in described] == []
    version, prefix, path, *_ = json.loads(mpis.run(["python", program], env=env).stdout)
    python = report["python"]
    assert [python["version"], python["prefix"], [one["path"] for one in report["path"]]] == [version, prefix, path]
    assert python["python_mpi"] == str(mpis.BIN / "python-mpi")
    assert report["variables"] == {**mpis.FIRST_RUN, "MPIIMPORT_VERBOSE": "0"}
    assert [one["folder"] for one in report["store"]] == ["/dev/shm", str(tmp_path), "/tmp"]
    for one in report["store"]:
        free_bytes = os.statvfs(one["folder"]).f_bavail * os.statvfs(one["folder"]).f_frsize
        assert abs(one["free_bytes"] - free_bytes) < 1 << 30
        assert [one["executable"], one["problem"], one["shared"]] == [True, None, False]
    assert not list(tmp_path.glob("mpiimport-*"))
    assert [report["mpi"][name] for name in ("launcher", "family", "abi")] == [None, "mpich", "mpich"]
    assert Path(report["mpi"]["library"]).parent == mpis.MPICH.prefix / "lib"
    assert report["mpi"]["version"].startswith("MPICH Version:")
    assert all(os.path.basename(one["candidate"]).startswith("libmpi") for one in report["mpi"]["refused"])
    assert report["mpi4py"]["same_library"]

    result = alone(env=env)
    text = " ".join(result.stdout.split())
    assert result.returncode == 0
    assert text.endswith("0 problems, 0 warnings.")
    for one in report["findings"]:
        shown = "%(level)s %(subject)s %(text)s" % one
        assert re.sub(r"[\d,]+ MB", "MB", " ".join(shown.split())) in re.sub(r"[\d,]+ MB", "MB", text)


def test_under_mpiexec_it_is_printed_once_for_all_ranks(two_mpis, script):
    report = report_of(two_mpis.run(2, "mpiimport", "doctor", "--json"), "ok")
    result = two_mpis.run(2, "python-mpi", script(LOOK), "mpiimport")
    place = json.loads(result.stdout.splitlines()[0])[-1]
    assert report["mpi"]["library"] == place["library"]
    assert report["mpi"]["abi"] == two_mpis.name
    assert report["mpi"]["ranks"] == 2
    assert report["mpi"]["thread_level"] == report["mpi"]["thread_level_wanted"] == "multiple"
    assert report["hosts"] == [{"host": place["host"], "ranks": 2}]
    assert report["mpi4py"]["same_library"]
    assert "2 ranks on 1 host" in finding(report, "ok", "mpi")


@pytest.mark.parametrize("argv", [["python", "-m", "mpiimport"], ["python-mpi", "-m", "mpiimport"]], ids=" ".join)
def test_it_may_be_started_as_a_module_too(argv, tmp_path):
    env = {"MPI4PY_RC_THREAD_LEVEL": "single"}
    result = mpis.MPICH.run(2, *argv, "doctor", "--json", env=env, cwd=tmp_path)
    report = report_of(result, "ok")
    assert sum(one["ranks"] for one in report["hosts"]) == 2
    assert report["mpi"]["thread_level_wanted"] == "single"


def test_a_missing_library_is_a_problem(two_mpis):
    env = {"MPIIMPORT_LIBMPI": "/no/such/libmpi.so"}
    for result in (alone("--json", mpi=two_mpis, env=env), two_mpis.run(2, "mpiimport", "doctor", "--json", env=env)):
        report = report_of(result, "problem")
        assert report["mpi"]["library"] is None
        said = finding(report, "problem", "libmpi")
        assert "/no/such/libmpi.so: cannot open shared object file" in said
        assert "-> Load the module of your MPI, or set MPIIMPORT_LIBMPI" in said


def test_the_library_of_another_launcher_is_a_problem():
    env = {"MPIIMPORT_LIBMPI": str(mpis.OPENMPI.prefix / "lib" / "libmpi.so.40")}
    report = report_of(alone("--json", env={**env, "LD_LIBRARY_PATH": ""}), "problem")
    said = finding(report, "problem", "libmpi")
    assert "libmpi.so.40: this is an openmpi library, but the launcher belongs to mpich" in said
    report = report_of(alone("--json", env={"LD_PRELOAD": env["MPIIMPORT_LIBMPI"]}), "problem")
    assert "is loaded already; it is an openmpi library" in finding(report, "problem", "libmpi")


def test_a_mpi4py_on_another_library_is_a_problem(script):
    library = mpis.OPENMPI.prefix / "lib" / "libmpi.so.40"
    init = script("__version__ = '0'\nclass rc: initialize = True\n", "mpi4py/__init__.py")
    script("import ctypes\nlinked = ctypes.CDLL(%r)\n" % str(library), "mpi4py/MPI.py")
    report = report_of(alone("--json", env={"PYTHONPATH": str(init.parent.parent)}), "problem")
    assert report["mpi4py"]["same_library"] is False
    said = finding(report, "problem", "mpi4py")
    assert "is linked to `%s`, but python-mpi would use" % library in said


def test_without_mpi4py_nothing_is_missing(script):
    init = script("raise ModuleNotFoundError(\"No module named 'mpi4py'\")\n", "mpi4py/__init__.py")
    report = report_of(alone("--json", env={"PYTHONPATH": str(init.parent.parent)}), "ok")
    assert "not installed" in finding(report, "ok", "mpi4py")


def test_variables_that_mean_nothing_are_named_with_the_nearest(script):
    env = {"MPIIMPORT_TMPDR": "/dev/shm", "MPIIMPORT_STORE": "sometimes", "MPIIMPORT_TIMEOUT": "-1"}
    result = alone("--json", env={**env, "PYTHONHOME": sys.base_prefix})
    report = report_of(result, "problem")
    assert result.stderr == ""
    said = [(one["level"], one["text"], one["remedy"]) for one in report["findings"] if one["subject"] == "variables"]
    assert said[0] == (
        "warning",
        "there is no variable `MPIIMPORT_TMPDR`; it is ignored",
        "Did you mean MPIIMPORT_TMPDIR?",
    )
    problems = [(text, remedy) for level, text, remedy in said if level == "problem"]
    assert sorted(problems) == [
        ("MPIIMPORT_STORE is `sometimes`", "Choose one of auto, always, never."),
        ("MPIIMPORT_TIMEOUT is `-1`", "It must be a number of seconds above 0."),
    ]
    assert said[-1][1].startswith("PYTHONHOME is `%s`" % sys.base_prefix)
    result = mpis.MPICH.run(2, "python-mpi", script("print('ran')"), env={"MPIIMPORT_TMPDR": "/dev/shm"})
    assert (result.returncode, result.stdout) == (0, "ran\nran\n")
    assert result.stderr.count("there is no variable `MPIIMPORT_TMPDR`") == 1


def test_a_launcher_of_another_environment_is_a_problem(tmp_path):
    other = tmp_path / "python-mpi"
    said = json.dumps(["/other", "3.9.1", "/other/lib/site_mpi"])
    other.write_text("#!/bin/sh\necho %s\n" % shlex.quote(said))
    other.chmod(0o755)
    path = {"PATH": "%s:%s" % (tmp_path, mpis.clean_environment()["PATH"])}
    report = report_of(alone("--json", env=path), "problem")
    assert "starts Python 3.9.1 in /other" in finding(report, "problem", "python-mpi")
    other.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    report = report_of(alone("--json", env=path), "problem")
    assert "does not work: broken" in finding(report, "problem", "python-mpi")
    elsewhere = mpis.run([mpis.BIN / "mpiimport", "doctor", "--json"], env={**mpis.MPICH.env, "PATH": "/usr/bin:/bin"})
    report = report_of(elsewhere)
    assert "not on PATH" in finding(report, "warning", "python-mpi")


def test_folders_that_can_hold_no_store_say_why(tmp_path):
    folders = {name: tmp_path / name for name in ("noexec", "small", "home")}
    for folder in folders.values():
        folder.mkdir()
    mounts = {"/dev/shm": "noexec", folders["noexec"]: "noexec", folders["small"]: "size=1m", folders["home"]: "ro"}
    argv = in_mounts(mounts, ["mpiimport", "doctor"])
    # Two of the three are right where the first is not.
    env = {"TMPDIR": str(tmp_path), "HOME": str(folders["home"]), "MPIIMPORT_PROFILE": "auto"}
    report = report_of(alone("--json", argv=argv, env=env), "warning")
    assert [(one["executable"], one["problem"]) for one in report["store"]][:2] == [
        (False, "it is mounted noexec"),
        (True, None),
    ]
    assert "`/dev/shm`: it is mounted noexec" in finding(report, "warning", "store")
    assert "`%s` cannot be written to" % folders["home"] in finding(report, "warning", "cache")
    for name, why in {"noexec": "it is mounted noexec", "small": "it has 1 MB free", "none": "No such file"}.items():
        env = {"MPIIMPORT_TMPDIR": str(tmp_path / name)}
        report = report_of(alone("--json", argv=argv, env=env), "problem")
        assert why in finding(report, "problem", "store")
        assert "Set MPIIMPORT_TMPDIR" in finding(report, "problem", "store")


def test_a_cache_that_others_can_write_to_is_named(tmp_path):
    env = {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
    report = report_of(alone("--json", env=env), "ok")
    assert report["cache"] == {"folder": env["MPIIMPORT_CACHE_DIR"], "exists": False, "writable": True, "problem": None}
    assert "which is made when it is needed" in finding(report, "ok", "cache")
    profiles = tmp_path / "cache" / "profiles"
    profiles.mkdir(parents=True)
    profiles.chmod(0o770)
    report = report_of(alone("--json", env=env), "warning")
    assert finding(report, "warning", "cache").endswith("-> Make it yours alone: `chmod go-w %s`." % profiles)
    profiles.chmod(0o700)
    (profiles / "old.profile").write_text("mpiimport profile 0\n\n")
    report = report_of(alone("--json", env=env), "warning")
    assert "old.profile` is no profile of this version" in finding(report, "warning", "cache")


def test_a_program_is_looked_at_and_not_run(script, tmp_path):
    env = {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_SCAN": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
    script("value = 1\n", "package/__init__.py")
    script("import wave\n", "package/inner.py")
    program = script("import sys\nimport package.inner, _ctypes_test, nothing_of_this_name\n")
    report = report_of(alone("--json", program, env=env), "ok")
    about = report["program"]
    assert (about["source"], about["profile"], about["foresees"]) == ("scan", None, False)
    assert "each rank import by itself" in finding(report, "ok", "program")
    report = report_of(alone("--json", program, env={**env, "MPIIMPORT_PROFILE": "always"}), "ok")
    assert "no profile yet" in finding(report, "ok", "program")
    assert not list(tmp_path.rglob("__pycache__"))
    scanned = about["operations"]["plain"]
    program.write_text("import sys\nimport package.inner, _ctypes_test\n")
    assert mpis.MPICH.run(2, "python-mpi", program, env={**env, "MPIIMPORT_PROFILE": "always"}).returncode == 0
    report = report_of(alone("--json", program, env=env), "ok")
    about = report["program"]
    (file,) = (tmp_path / "cache").rglob("*.profile")
    questions = [line for line in file.read_text().splitlines() if "\tmodule\t" in line]
    assert about["profile"]["file"] == str(file)
    assert about["profile"]["questions"] == len(questions)
    assert 0 <= about["profile"]["age_s"] < 600
    assert about["modules"] >= 4
    recorded = about["operations"]
    assert recorded["plain"]["all"] == sum(recorded["plain"][name] for name in ("folders", "modules", "libraries"))
    assert recorded["plain"]["shared"] == recorded["python_mpi"]["shared"] == 0
    assert recorded["python_mpi"]["all"] == 14 + recorded["python_mpi"]["libraries"]
    assert scanned["all"] > 20
    described = (mpis.ROOT / "docs" / "reference" / "doctor.md").read_text()
    assert [name for name in (*about, *about["profile"], *recorded["plain"]) if "`%s`" % name not in described] == []
    text = alone(program, env=env).stdout
    assert "plain Python: {:,}, of them 0 on shared filesystems".format(recorded["plain"]["all"]) in text
    module = alone("--json", "-m", "package.inner", env={**env, "PYTHONPATH": str(tmp_path)})
    assert report_of(module, "ok")["program"]["modules"] >= 3


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which CI has")
def test_the_estimate_is_near_what_a_rank_does(script, tmp_path):
    code = "from mpi4py import MPI\n%s" % operations.PROGRAMS["numpy+scipy"]
    env = {"MPIIMPORT_PROFILE": "auto", "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache")}
    program = script(code)
    floors = operations.floors_of(mpis.MPICH, tmp_path)
    plain = operations.measure(
        mpis.MPICH, operations.PROGRAMS["numpy+scipy"], floors, tmp_path / "plain", ranks=("plain",)
    )
    counted = plain["plain"].counts
    estimates = [report_of(alone("--json", program, env=env))["program"]["operations"]["plain"]]
    assert mpis.MPICH.run(2, "python-mpi", program, env=env).returncode == 0
    estimates.append(report_of(alone("--json", program, env=env))["program"]["operations"]["plain"])
    for estimate in estimates:
        for name, purpose in {"modules": "code", "folders": "folders"}.items():
            assert 0.8 < estimate[name] / counted[purpose] < 1.25, (estimate, counted)


def test_what_makes_no_sense_is_said_once(script):
    wrong = [["--jsn"], ["--timeout", "soon"], ["one.py", "two.py"]]
    results = [alone(*arguments) for arguments in wrong]
    for result in (*results, mpis.MPICH.run(2, "mpiimport", "doctor", *wrong[0])):
        assert (result.returncode, result.stdout) == (2, ""), result
        assert result.stderr.count("mpiimport: ") == 1, result
    broken = script("import (\n", "broken.py")
    for arguments, why in (
        (["/no/such.py"], "there is no `/no/such.py`: No such file or directory"),
        (["-m", "no.such"], "there is no module `no.such`"),
        ([broken], "`%s` cannot be run" % broken),
    ):
        report = report_of(alone("--json", *arguments), "problem")
        assert why in finding(report, "problem", "program")


@pytest.mark.parametrize(
    "other",
    [["sleep", "50"], ["python", "-c", "from mpi4py import MPI; import time; time.sleep(50)"]],
    ids=["before MPI", "in MPI"],
)
def test_ranks_that_never_come_are_not_waited_for(two_mpis, other):
    result = two_mpis.run(1, "mpiimport", "doctor", "--json", "--timeout", "2", ":", "-n", "1", *other)
    assert not result.timed_out, result
    assert result.seconds < 40, result
    report = report_of(result, "problem")
    said = finding(report, "problem", "mpi")
    assert "MPI did not start within 2 s" in said
    assert "start ours with MPIIMPORT_LOCAL=1" in said


def test_ranks_with_another_python_are_named(tmp_path):
    other = [":", "-n", "1", "python", "-O", "-m", "mpiimport", "doctor", "--json"]
    report = report_of(mpis.MPICH.run(1, "mpiimport", "doctor", "--json", *other, cwd=tmp_path), "problem")
    said = finding(report, "problem", "mpi")
    assert ", but rank 1 on " in said
    assert said.endswith("-> Start all ranks with the same Python and the same options.")
