"""The file of a profile: what comes into it, who may have written it, and what becomes of a run where it is bad."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time

import mpi as mpis
import pytest

STATS = """
import json, os, sys
stats = sys.mpiimport.stats()
os.write(1, (json.dumps({key: stats[key] for key in ("rank", "missed", "modules")}) + "\\n").encode())
"""


@pytest.fixture
def cache(tmp_path):
    """The folder for profiles."""
    return tmp_path / "cache"


@pytest.fixture
def start(cache):
    """Run a program by its profile alone, without a scan."""

    def start(ranks, *argv, mpi=mpis.MPICH, expected=0, env=None, **keywords):
        env = {
            "MPIIMPORT_PROFILE": "always",
            "MPIIMPORT_CACHE_DIR": str(cache),
            "MPIIMPORT_SCAN": "never",
            **(env or {}),
        }
        result = mpi.run(ranks, "python-mpi", *argv, env=env, **keywords)
        assert result.returncode == expected, result
        return result

    return start


def lines(result):
    """What each rank printed, as JSON, in the order of ranks."""
    return sorted((json.loads(line) for line in result.stdout.splitlines()), key=lambda one: one["rank"])


def profiles(cache):
    return sorted((cache / "profiles").iterdir())


def questions(profile):
    """The questions in a profile, by name, with the number of runs since each was asked."""
    *lines, rest = profile.read_bytes().partition(b"\n\n")[2].decode(errors="replace").split("\n")
    assert rest == ""
    return {name: int(runs) for runs, _, name, *_ in (line.split("\t") for line in lines)}


RANKS_DIFFER = """
import sys
__import__(["wave", "colorsys", "xml.dom.minidom", "json"][sys.mpiimport.stats()["rank"]])
"""


def test_ranks_that_import_different_things_are_all_in_it(start, two_mpis, script):
    program = script(RANKS_DIFFER + STATS)
    first = lines(start(4, program, mpi=two_mpis))
    assert [rank["missed"][0] for rank in first] == ["wave", "colorsys", "xml", "json"]
    assert [rank["missed"] for rank in lines(start(4, program, mpi=two_mpis))] == [[]] * 4


def test_what_is_not_asked_any_more_is_forgotten_in_time_and_what_is_new_is_added(start, cache, script):
    program = script("import sys\nfor name in sys.argv[1:]: __import__(name)\n" + STATS)
    start(2, program, "wave", "colorsys")
    (profile,) = profiles(cache)
    before = questions(profile)
    start(2, program, "wave")
    assert questions(profile) == {**before, "colorsys": 1}
    for rank in lines(start(2, program, "wave", "colorsys", "xml")):
        assert "xml" in rank["missed"]
        assert "colorsys" not in rank["missed"]
    more = questions(profile)
    assert more == {**before, **dict.fromkeys(more, 0)}
    text = profile.read_text()
    for runs, expected in ((6, {**more, "colorsys": 7}), (7, {name: 0 for name in more if name != "colorsys"})):
        profile.write_text(text.replace("0\tmodule\tcolorsys\t", "%d\tmodule\tcolorsys\t" % runs))
        start(2, program, "wave", "xml")
        assert questions(profile) == expected
    assert "colorsys" in lines(start(2, program, "wave", "colorsys"))[1]["missed"]


def damage_unreadable(profile):
    profile.unlink()
    profile.symlink_to("loop")
    profile.with_name("loop").symlink_to("loop")
    return "cannot read"


def damage_foreign(profile):
    profile.write_bytes(profile.read_bytes().replace(b"\npython ", b"\npython other-"))
    return "is of another program"


def damage_outdated(profile):
    profile.write_bytes(profile.read_bytes().replace(b"profile 1\n", b"profile 0\n"))
    return "version of mpiimport"


def damage_group_writable(profile):
    profile.chmod(0o620)
    return "others can write to it"


def damage_world_writable(profile):
    profile.chmod(0o602)
    return "others can write to it"


def damage_of_another(profile):
    os.chown(profile, 4711, 4711)
    return "belongs to another user"


def damage_link_to_anothers(profile):
    other = profile.rename(profile.with_name("other"))
    os.chown(other, 4711, 4711)
    profile.symlink_to(other)
    return "belongs to another user"


def damage_garbled(profile):
    text = profile.read_bytes()
    head, end, body = text.partition(b"\n\n")
    profile.write_bytes(head + end + body.replace(b"\n0\t", b"\nnought\t"))
    return "is damaged"


def damage_counted_up(profile):
    profile.write_bytes(profile.read_bytes().replace(b"\n0\tmodule", b"\n99999999999999999999\tmodule"))
    return None


def damage_truncated(profile):
    profile.write_bytes(profile.read_bytes()[:-5])
    return "is damaged"


def damage_truncated_in_the_head(profile):
    profile.write_bytes(profile.read_bytes()[:30])
    return "is of another program"


def damage_empty(profile):
    profile.write_bytes(b"")
    return "is"


def damage_folder(profile):
    profile.unlink()
    profile.mkdir()
    return "it is no file"


def damage_pipe(profile):
    profile.unlink()
    os.mkfifo(profile)
    return "it is no file"


def damage_strange_questions(profile):
    strange = [
        b"module\t",
        b"module\tx",
        b"module\tx\0y\t/\0",
        b"other\tkind",
        b"\t\t",
        b"module\t\xff\t\xff",
    ]
    strange += [b"module\t../wave\t/", b"module\twave\t\t.\t//\t/proc/self/mem", b"file\t/dev/zero\x00", b"folder\tx"]
    with profile.open("ab") as file:
        file.writelines(b"0\t%s\n" % question for question in strange)
    return None


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]
LEFT_ALONE = (damage_unreadable, damage_group_writable, damage_of_another, damage_folder)
CASES = [*((one, False) for one in DAMAGES), *((one, True) for one in (*LEFT_ALONE, damage_garbled, damage_foreign))]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A folder with a program and the two profiles of its run."""
    folder = tmp_path_factory.mktemp("once")
    (folder / "program.py").write_text("import wave\nprint('done')\n")
    env = {"MPIIMPORT_PROFILE": "always", "MPIIMPORT_CACHE_DIR": str(folder), "MPIIMPORT_SCAN": "never"}
    for options in ([], ["--profile", "chosen"]):
        result = mpis.MPICH.run(2, "python-mpi", *options, "program.py", env=env, cwd=folder)
        assert result.returncode == 0, result
    return folder


def state(file):
    """What changes when a file is written or replaced."""
    status = os.lstat(file)
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


@pytest.mark.parametrize(
    ("damage", "chosen"), CASES, ids=["%s%s" % (one.__name__[7:], "-chosen" * chosen) for one, chosen in CASES]
)
def test_a_profile_that_cannot_be_used_is_told_of_and_left_out(start, once, tmp_path, damage, chosen):
    if os.geteuid() != 0 and "another" in damage.__name__:
        pytest.skip("only root can give files away")
    folder = tmp_path / "once"
    shutil.copytree(once, folder)
    (original,) = (once / "profiles").iterdir()
    profile = folder / "chosen" if chosen else folder / "profiles" / original.name
    # The program stays where it is: the profile is of that path.
    env = {"MPIIMPORT_CACHE_DIR": str(folder)}
    reason = damage(profile)
    before = state(profile)
    options = ["--profile", profile] if chosen else ["-v"]
    result = start(2, *options, once / "program.py", env=env)
    assert result.stdout == "done\n" * 2
    told = [line for line in result.stderr.splitlines() if "profile" in line]
    if reason is None:
        assert told == []
    else:
        assert reason in told[0]
        assert "`%s`" % profile in told[0]
    if damage is damage_folder or (chosen and damage in LEFT_ALONE):
        assert state(profile) == before
    else:
        assert len(told) == (reason is not None)
        assert "wave" in questions(profile)
    assert list(profile.parent.glob(".profile-*")) == []


def test_a_file_that_is_no_profile_is_not_overwritten(start, script):
    program = script("import wave\nprint('done')\n")
    before = program.read_text()
    result = start(2, "--profile", program, program)
    assert result.stdout == "done\n" * 2
    assert "mpiimport: the profile `%s` is not used: it is no profile.\n" % program in result.stderr
    assert program.read_text() == before


@pytest.mark.parametrize("fault", ["read-only", "full", "in the way"])
def test_a_profile_that_cannot_be_written_ends_no_run_otherwise(cache, script, fault):
    program = script("import wave\nprint('done')\nraise SystemExit(int(__import__('sys').argv[1]))\n")
    prefix = []
    if fault == "in the way":
        cache.write_text("")
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        options = "ro" if fault == "read-only" else "size=4k"
        cache.mkdir()
        mount = 'mount -t tmpfs -o %s none "$0" && { [ ro = %s ] || head -c 4096 /dev/zero > "$0/full"; }; exec "$@"'
        prefix = ["unshare", "--mount", "sh", "-c", mount % (options, options), cache]
    env = {"MPIIMPORT_PROFILE": "always", "MPIIMPORT_CACHE_DIR": str(cache), **mpis.MPICH.env}
    mpiexec = mpis.MPICH.prefix / "bin" / "mpiexec"
    for options, told in (([], 0), (["-v"], 1)):
        result = mpis.run([*prefix, mpiexec, "-n", "2", "python-mpi", *options, program, "0"], env=env)
        assert (result.returncode, result.stdout) == (0, "done\n" * 2), result
        assert result.stderr.count("mpiimport: cannot write the profile `%s/profiles" % cache) == told, result


def launch(cache, *argv, **keywords):
    """Start a program on two ranks that use profiles; return the process."""
    env = {
        **mpis.clean_environment(),
        **mpis.MPICH.env,
        "MPIIMPORT_PROFILE": "always",
        "MPIIMPORT_CACHE_DIR": str(cache),
    }
    command = ["timeout", "-k", "5", "60", mpis.MPICH.prefix / "bin" / "mpiexec", "-n", "2", "python-mpi", *argv]
    return subprocess.Popen(
        [str(one) for one in command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **keywords
    )


def test_killed_near_its_end_a_run_leaves_the_old_profile_or_the_new_one(start, cache, script, tmp_path):
    program = script(
        """
        import os, sys, wave
        if sys.argv[1:]:
            import colorsys
            if sys.mpiimport.stats()["rank"] == 0:
                with open("root.new", "w") as file:
                    file.write(str(os.getpid()))
                os.rename("root.new", sys.argv[1])
        """
    )
    start(2, program)
    (profile,) = profiles(cache)
    with profile.open("a") as file:  # so much that it is not written in an instant
        file.writelines("0\tother\t%06d%s\n" % (number, "x" * 100) for number in range(50000))
    old = profile.read_bytes()
    start(2, program, "root", cwd=tmp_path)
    new = profile.read_bytes()
    assert b"\tcolorsys\t" in new
    span_s = profile.stat().st_mtime - (tmp_path / "root").stat().st_mtime
    for attempt in range(10):
        profile.write_bytes(old)
        root = tmp_path / ("root%d" % attempt)
        with launch(cache, program, root.name, cwd=tmp_path) as job:
            while not root.exists() and job.poll() is None:
                time.sleep(0.002)
            time.sleep(random.uniform(0.3, 2.5) * span_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(root.read_text()), signal.SIGKILL)
        after = profile.read_bytes()
        assert after in (old, new)


def test_it_is_kept_whoever_ends_mpi_and_however_late_ranks_are(start, cache, script, two_mpis):
    program = script(
        """
        import time
        from mpi4py import MPI
        rank = MPI.COMM_WORLD.rank
        if rank == 1:
            time.sleep(1.5)
            import colorsys
        if rank == 2:
            import wave
        MPI.Finalize()
        import xml.dom
        """
    )
    start(3, program, mpi=two_mpis)
    (profile,) = profiles(cache)
    asked = questions(profile)
    assert {"colorsys", "wave", "mpi4py.MPI"} < set(asked)
    assert "xml.dom" not in asked


@pytest.mark.parametrize("argv", [["-m", "wave_user"], ["-c", "import wave" + STATS]], ids=["-m", "-c"])
def test_a_program_finds_its_profile_from_any_folder(start, cache, script, tmp_path, argv):
    script("import wave\n" + STATS, "lib/wave_user.py")
    env = {"PYTHONPATH": str(tmp_path / "lib")}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    assert "wave" in lines(start(2, *argv, cwd=tmp_path / "here", env=env))[1]["missed"]
    for rank in lines(start(2, *argv, cwd=tmp_path / "there", env=env)):
        assert rank["missed"] == []
    assert len(profiles(cache)) == 1


def test_a_script_is_the_same_by_any_of_its_paths_and_wherever_it_goes(start, script, tmp_path):
    program = script("import os, wave\nos.chdir('/')\nimport own\n" + STATS, "part/program.py")
    script("", "part/own.py")
    options = ["--profile", "kept"]
    assert "own" in lines(start(2, *options, "part/program.py", cwd=tmp_path))[1]["missed"]
    for path in ("./part/../part/program.py", program):
        for rank in lines(start(2, *options, path, cwd=tmp_path)):
            assert rank["missed"] == []
    assert "own" in questions(tmp_path / "kept")
