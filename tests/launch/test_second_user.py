"""Another user of the same host makes names of ours first, plants links, moves what he may: none of it is used."""

import json
import os
import subprocess
import sys

import mpi as mpis
import pytest

OTHER = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, too")

PROGRAM = (
    """
import json, os, subprocess, sys
import _struct, wave

def attempt(command):
    return subprocess.run(["sh", "-c", command], user=%d, cwd="/", stderr=subprocess.DEVNULL).returncode

with open("/proc/self/maps") as maps:
    copy = next((line.split()[-1] for line in maps if "/mpiimport-" in line and "_struct" in line), None)
attempts = []
if copy and sys.mpiimport.stats()["rank"] == 0:
    store = copy[: copy.index("/root/")]
    attempts = [attempt(one.replace("STORE", store)) for one in sys.argv[1:]]
os.write(1, (json.dumps([copy, attempts]) + "\\n").encode())
"""
    % OTHER
)


def other(command, cwd):
    """Do something as the other user."""
    subprocess.run(["sh", "-ec", command], user=OTHER, group=OTHER, extra_groups=[], cwd=cwd, check=True, timeout=20)


@pytest.fixture
def shared(tmp_path):
    """A folder that everybody can write to, and another of this user's beside it that nobody else can enter."""
    folder, private = tmp_path / "shared", tmp_path / "private"
    folder.mkdir()
    folder.chmod(0o1777)
    private.mkdir(0o700)
    (private / "precious.profile").write_text("mine")
    for one in tmp_path.parents:  # pytest's folders are this user's alone
        if one.stat().st_uid == 0 and one.stat().st_mode & 0o077 == 0:
            one.chmod(0o711)
    tmp_path.chmod(0o755)
    return folder


def contents(folder):
    """Return what is in a folder, with owners."""
    return sorted(
        (str(path), path.lstat().st_uid, path.read_bytes() if path.is_file() else None) for path in folder.rglob("*")
    )


def run(program, *argv, options=(), env=None):
    """Run the program on two ranks; return what each said, and our messages."""
    result = mpis.MPICH.run(2, "python-mpi", *options, program, *argv, env=env)
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_a_store_is_another_than_those_that_others_made_and_nobody_else_gets_into_it(shared, script):
    private = shared.parent / "private"
    plant = """
        mkdir mpiimport-0-folder; mkdir -m 700 mpiimport-0-private; mkdir -m 777 mpiimport-0-open
        ln -s %s mpiimport-0-link; echo no folder > mpiimport-0-file; echo > mpiimport-0-open/shared
    """
    other(plant % private, shared)
    planted = contents(shared), contents(private)
    attempts = ["ls STORE", "cat STORE/*", "echo > STORE/shared", "mv STORE STORE.gone", "ln -s /etc STORE/link"]
    options = ["--store", "always", "--tmpdir", shared]
    said, messages = run(script(PROGRAM), *attempts, options=options)
    assert messages == ""
    for copy, _ in said:
        assert copy.startswith("%s/mpiimport-0-" % shared)
        assert not copy.startswith(tuple(path for path, *_ in planted[0]))
    failed = next(codes for _, codes in said if codes)
    assert len(failed) == len(attempts)
    assert 0 not in failed
    assert (contents(shared), contents(private)) == planted


def test_where_others_can_move_a_store_none_is_made_and_what_they_moved_is_not_removed(shared, script):
    private = shared / "private"
    (shared.parent / "private").rename(private)
    before = private.stat().st_ino
    shared.chmod(0o777)
    other("mv private mpiimport-0-abandoned", shared)
    said, messages = run(script(PROGRAM), options=["--store", "always", "--tmpdir", shared])
    assert said == [[None, []]] * 2
    assert "`%s`: others can rename what is made there; chmod +t would mend that" % shared in messages
    moved = shared / "mpiimport-0-abandoned"
    assert moved.stat().st_ino == before
    assert (moved / "precious.profile").read_text() == "mine"
    assert list(shared.iterdir()) == [moved]


@pytest.mark.parametrize(
    ("plant", "cache"),
    [("mkdir -m 777 profiles", "."), ("ln -s ../private profiles", "."), ("ln -s ../private to", "to")],
)
def test_no_profile_is_written_where_another_user_leads_it(shared, script, plant, cache):
    other(plant, shared)
    before = contents(shared.parent / "private"), contents(shared)
    env = {"MPIIMPORT_CACHE_DIR": str(shared / cache), "MPIIMPORT_PROFILE": "auto"}
    _, messages = run(script(PROGRAM), options=["-v"], env=env)
    assert messages.count("mpiimport: cannot write the profile `%s/" % (shared / cache)) == 1
    assert messages.count("`: its folder belongs to another user.\n") == 1
    assert (contents(shared.parent / "private"), contents(shared)) == before


def test_a_profile_that_became_another_file_meanwhile_stays_as_it_is(shared, script):
    program = script("import os, sys, wave\nopen(sys.argv[1], 'w').write('notes')\n")
    kept = shared.parent / "kept"
    result = mpis.MPICH.run(2, "python-mpi", "--profile", kept, program, kept)
    assert result.returncode == 0, result
    assert result.stderr == "mpiimport: cannot write the profile `%s`: there is another file by now.\n" % kept
    assert kept.read_text() == "notes"


def test_a_bundle_of_another_user_is_not_used_and_one_that_is_replaced_was_open_already(shared, script):
    program, bundle = script(PROGRAM), shared / "program.mpib"
    swap = "import os\nif 'NEW' in os.environ and os.environ['PMI_RANK'] == '0': os.rename(os.environ['NEW'], %r)\n"
    script(swap % str(bundle), "custom/sitecustomize.py")
    env = {"PYTHONPATH": str(shared.parent / "custom"), "MPIIMPORT_STORE": "always"}
    made = mpis.run(["python-mpi", "--write-bundle", bundle, program], env=env)
    assert made.returncode == 0, made
    new = shared / "new"
    new.write_bytes(bundle.read_bytes()[:-1000] + bytes(1000))
    said, messages = run(program, options=["--bundle", bundle], env={**env, "NEW": str(new)})
    assert messages == ""
    assert not new.exists()
    assert all(copy for copy, _ in said)
    os.chown(bundle, OTHER, OTHER)
    _, messages = run(program, options=["--bundle", bundle], env=env)
    assert messages.count("is not used: it belongs to another user") == messages.count("\n") == 1


def test_a_bundle_is_not_written_through_a_link_that_has_its_name_already(shared, script):
    precious = shared.parent / "private" / "precious.profile"
    program, bundle = script("import wave\n"), shared / "program.mpib"
    other("ln -s %s program.mpib" % precious, shared)
    unfinished = 'ln -s "$0" "$1.$$" && exec python-mpi --write-bundle "$1" "$2"'
    made = mpis.run(["sh", "-c", unfinished, precious, bundle, program])
    assert made.returncode == 1
    assert made.stderr.count("cannot write the bundle") == made.stderr.count("\n") == 1
    made = mpis.run(["python-mpi", "--write-bundle", bundle, program])
    assert made.returncode == 0, made
    assert not bundle.is_symlink()
    assert precious.read_text() == "mine"


TAKE = """
import os, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (8000, 8000))
os.setgroups([]), os.setgid(%d), os.setuid(%d)
first = int(open("/proc/loadavg").read().split()[-1])
taken = []
for number in range(first, first + 3000):
    taken.append(socket.socket(socket.AF_UNIX))
    taken[-1].bind("\\0mpiimport-0-%%d-end" %% number)
    if number %% 2:
        taken[-1].listen(0)
print("taken", flush=True)
time.sleep(60)
""" % (OTHER, OTHER)


def test_nobody_else_can_keep_a_message_from_being_written(script):
    program = script("")
    with subprocess.Popen([sys.executable, "-c", TAKE], stdout=subprocess.PIPE, text=True) as taking:
        try:
            assert taking.stdout.readline() == "taken\n"
            result = mpis.MPICH.run(2, "python-mpi", "--bundle", "/nowhere/at.all", program)
        finally:
            taking.kill()
    assert result.returncode != 0
    assert "mpiimport: cannot read the bundle `/nowhere/at.all`: No such file or directory" in result.stderr
