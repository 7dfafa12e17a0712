"""One rank on a shared filesystem imports by the profile of an earlier run, or out of a bundle, without MPI of ours."""

import json
import os

import mpi as mpis
import pytest
from hosts.filesystem import NO_CACHE

PROGRAM = """
    import json, os, sys
    import importlib.metadata, numpy.fft
    modules = {
        name: [repr(getattr(module, what, None)) for what in ("__file__", "__cached__", "__package__")]
        for name, module in list(sys.modules.items())
        if not name.startswith(("mpiimport", "site_mpi")) and name != "__main__"
    }
    stats = sys.mpiimport.stats() if hasattr(sys, "mpiimport") else None
    version = importlib.metadata.version("numpy")
    print(json.dumps([stats, modules, version, "mpi4py" in sys.modules]))
"""


@pytest.fixture
def run(cluster, tmp_path):
    """Run something on one rank. Return what it printed, and how many metadata operations that was."""

    def run_one(*argv, env=None):
        cluster.filesystem.reset()
        env = {
            "MPIIMPORT_PROFILE": "auto",
            "MPIIMPORT_SCAN": "auto",
            "MPIIMPORT_CACHE_DIR": str(tmp_path / "cache"),
            **(env or {}),
        }
        result = cluster.run([*cluster.mpi(mpis.MPICH, 1, hosts=cluster.hosts[:1], env=env), *argv])
        assert (result.returncode, result.stderr) == (0, ""), result
        stats = cluster.filesystem.stats()
        return json.loads(result.stdout), stats.count() - stats.count(operation="read") - stats.count(operation="write")

    return run_one


def test_a_second_run_and_a_bundle_ask_little_and_find_the_same(run, script, tmp_path):
    program, bundle = script(PROGRAM), tmp_path / "program.mpib"
    (none, plain, version, _), plain_operations = run("python", program)
    assert none is None
    found = {"first": run("python-mpi", program), "second": run("python-mpi", program)}
    made = mpis.run(["python-mpi", "--write-bundle", bundle, program], env={"MPIIMPORT_SCAN": "always"})
    assert made.returncode == 0, made
    found["bundle"] = run("python-mpi", "--bundle", bundle, "--validate", "none", program)
    for way, ((stats, modules, found_version, has_mpi), _) in found.items():
        assert {name: modules.get(name) for name in plain} == plain, way
        assert found_version == version
        assert not has_mpi
        assert (stats["size"], stats["library"], stats["policy"], stats["broadcast_bytes"]) == (1, None, "opening", 0)
    operations = {way: count for way, (_, count) in found.items()}
    assert operations["first"] < plain_operations + 250
    assert found["first"][0][0]["foreseen"] < 20 < len(found["first"][0][0]["missed"])
    assert found["second"][0][0]["missed"] == []
    assert found["second"][0][0]["foreseen"] > 200
    assert operations["bundle"] < plain_operations / 2


ENDINGS = {
    "normal": ("import wave", ["wave"]),
    "exception": ("import wave\n1 / 0", ["wave"]),
    "exit": ("import wave, sys\nsys.exit(3)", ["wave"]),
    "fork": ("import os, wave\nif os.fork() == 0:\n    import cmd\n    raise SystemExit\nos.wait()", ["wave"]),
    "os._exit": ("import os, wave\nos._exit(0)", None),
}


@pytest.mark.parametrize(("text", "known"), ENDINGS.values(), ids=ENDINGS)
def test_a_profile_is_kept_when_the_process_ends_by_itself(cluster, script, tmp_path, text, known):
    program, profile = script(text), tmp_path / "profile"
    launch = cluster.mpi(mpis.MPICH, 1, hosts=cluster.hosts[:1])
    results = [cluster.run([*launch, *way, program]) for way in (["python"], ["python-mpi", "--profile", profile])]
    assert results[0].returncode == results[1].returncode, results
    assert "mpiimport" not in results[1].stderr
    lines = profile.read_text().splitlines() if profile.exists() else []
    asked = [line.split("\t")[2] for line in lines if "\tmodule\t" in line]
    assert [name for name in asked if name in ("wave", "cmd")] == (known or [])
    assert profile.exists() == (known is not None)


def test_a_module_that_changed_is_the_new_one(new_cluster, script, tmp_path):
    program, profile = script("import changes, stays\nprint(changes.x, stays.x)"), tmp_path / "profile"
    script("x = 'old'", "changes.py")
    script("x = 'same'", "stays.py")
    with new_cluster(hosts=1, **NO_CACHE) as cluster:  # a client that caches sees it some seconds later
        launch = [*cluster.mpi(mpis.MPICH, 1), "python-mpi", "--profile", profile, program]
        said = [cluster.run(launch).stdout for _ in range(2)]
        script("x = 'new'", "changes.py")
        os.utime(tmp_path / "changes.py", (1e9, 1e9))
        said.append(cluster.run(launch).stdout)
    assert said == ["old same\n", "old same\n", "new same\n"]


def test_a_bundle_that_cannot_be_read_is_named_as_by_several_ranks(cluster, script):
    launch = cluster.mpi(mpis.MPICH, 1, hosts=cluster.hosts[:1])
    result = cluster.run([*launch, "python-mpi", "--bundle", "/nowhere/at.all", script("print('ran')")])
    assert (result.returncode, result.stdout) == (1, ""), result
    assert result.stderr.count("mpiimport: cannot read the bundle `/nowhere/at.all`: No such file") == 1, result


PLAIN = {
    "no launcher": (None, ["--profile", "{profile}"]),
    "local policy": (1, ["--policy", "local", "--profile", "{profile}"]),
    "local": (1, ["--local", "--profile", "{profile}"]),
    "no profile": (1, ["--profile", "off"]),
}


@pytest.mark.parametrize(("ranks", "options"), PLAIN.values(), ids=PLAIN)
def test_otherwise_it_is_plain_python(cluster, script, tmp_path, ranks, options):
    program = script("import sys, wave\nprint(hasattr(sys, 'mpiimport'), type(wave.__loader__).__name__)")
    launch = cluster.mpi(mpis.MPICH, 1, hosts=cluster.hosts[:1]) if ranks else []
    options = [option.format(profile=tmp_path / "profile") for option in options]
    result = cluster.run([*launch, "python-mpi", *options, program])
    assert (result.returncode, result.stdout, result.stderr) == (0, "False SourceFileLoader\n", ""), result
    assert not (tmp_path / "profile").exists()
