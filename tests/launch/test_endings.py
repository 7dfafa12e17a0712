"""How a job ends: its exit code, what is said, and that neither processes nor folders stay behind."""

import re
import shutil
import signal
import time
import uuid
from pathlib import Path

import mpi as mpis
import pytest


class SystemMpi(mpis.Mpi):
    """An MPI of the operating system: its launcher is on PATH, its library where the dynamic loader looks."""

    def __init__(self, name, launcher, env=None):
        self.name = name
        self.launcher = launcher
        self.env = env or {}

    def run(self, ranks, *argv, env=None, **keywords):
        if shutil.which(self.launcher) is None:
            pytest.skip("there is no %s on this machine" % self.launcher)
        return mpis.run([self.launcher, "-n", str(ranks), *argv], env={**self.env, **(env or {})}, **keywords)


OPENMPI_4 = {**mpis.OPEN_MPI, "OMPI_MCA_btl": "self,vader", "OMPI_MCA_rmaps_base_oversubscribe": "1"}
SYSTEM_OPENMPI = SystemMpi("system-openmpi", "mpirun.openmpi", OPENMPI_4)
SYSTEM_MPICH = SystemMpi("system-mpich", "mpirun.mpich")

SECONDS = 30
"""Far less than what any rank here sleeps or waits for, far more than a busy machine needs."""

HEAD = """\
import os, signal, sys, threading, time
from mpi4py import MPI

comm = MPI.COMM_WORLD
last = comm.rank == comm.size - 1
"""
NO_INIT = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
ENDINGS = {
    "without-mpi4py": ("import colorsys; print('done')", 0),
    "with-mpi4py": ("from mpi4py import MPI; MPI.COMM_WORLD.barrier(); print('done')", 0),
    "init": (NO_INIT + "MPI.Init(); MPI.COMM_WORLD.barrier(); print('done')", 0),
    "finalize": ("from mpi4py import MPI; MPI.Finalize(); import colorsys; print('done')", 0),
    "init-thread-finalize": (NO_INIT + "MPI.Init_thread(); MPI.Finalize(); print('done')", 0),
    "exit": ("import sys; from mpi4py import MPI; print('done'); sys.exit(3)", 3),
    "exception": (HEAD + "print('done')\nif last: raise ValueError('boom')\ncomm.recv()", 1),
}
ALL_ENDINGS = pytest.mark.parametrize(("text", "status"), ENDINGS.values(), ids=ENDINGS)
LAUNCHES = {
    "python-mpi": (["python-mpi"], ""),
    "site_mpi": (["python", "-S"], "import site_mpi\n"),
    "install": (["python"], "import mpiimport; mpiimport.install()\n"),
}


@pytest.fixture
def job(script, tmp_path):
    """Run a program under mpiexec, and check that nothing of it stays behind.

    A job whose ranks were `killed` may leave its node store; the next job on the host removes it.
    """
    store = tmp_path / "store"
    store.mkdir()

    def run(mpi, text, *options, ranks=2, killed=False, program=("python-mpi",), env=None):
        mark = uuid.uuid4().hex
        env = {"MPIIMPORT_TMPDIR": str(store), "TEST_MARK": mark, **(env or {})}
        arguments = [ranks, *program, *options, script(text)]
        result = mpi.run(*arguments, env=env)
        if mpi is mpis.IMPI and result.returncode == -signal.SIGPIPE:
            result = mpi.run(*arguments, env=env)  # its mpiexec dies so in 1 of 60 calls of MPI_Abort, by whomever
        assert result.seconds < SECONDS, result
        wait_for_end_of(mark)
        if killed and any(store.iterdir()):
            mpi.run(2, "python-mpi", "-c", "", env=env)
        assert list(store.iterdir()) == []
        return result

    return run


def wait_for_end_of(mark):
    """Wait until no process has this mark in its environment: launchers reap what they killed a moment later."""
    deadline = time.monotonic() + 10
    while remaining := processes_with(mark):
        assert time.monotonic() < deadline, remaining
        time.sleep(0.05)


def processes_with(mark):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            continue  # it has ended, or belongs to somebody else
    return found


def told(result, cause):
    """What is said about which rank ended the job."""
    return re.findall(r"^mpiimport: (rank \d+ on \S+ ended with %s);" % cause, result.stderr, re.MULTILINE)


def tracebacks(result):
    return re.findall(r"^Traceback .*\n(?: .*\n)+\S.*$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize("system_mpi", [*mpis.ALL, SYSTEM_OPENMPI], ids=str)
@ALL_ENDINGS
def test_every_ending_gives_its_exit_code(job, system_mpi, text, status):
    result = job(system_mpi, text, killed=status == 1)
    assert result.returncode == status, result
    if status != 1:
        assert result.stdout.count("done") == 2, result
    if status == 0:
        assert result.stderr == ""


@pytest.mark.parametrize("name", ["without-mpi4py", "exit", "exception"])
def test_mpich_named_libmpich_serves_programs_without_mpi4py(job, name):
    text = {
        "without-mpi4py": "import sys; print(sys.mpiimport.stats()['library'])",
        "exit": "import sys; sys.exit(3)",
        "exception": "import sys, time\nif sys.mpiimport.stats()['rank']: raise ValueError('boom')\ntime.sleep(60)",
    }[name]
    result = job(SYSTEM_MPICH, text, killed=name == "exception")
    assert result.returncode == ENDINGS[name][1], result
    if name == "without-mpi4py":
        assert result.stdout.count("libmpich.so.12") == 2


@pytest.mark.parametrize(
    ("launch", "raising", "status"),
    [
        ("python-mpi", "raise ValueError('boom')", 1),
        ("python-mpi", "import broken", 1),
        ("python-mpi", "raise KeyboardInterrupt", 130),
        ("site_mpi", "raise ValueError('boom')", 1),
        ("install", "raise KeyboardInterrupt", 130),
    ],
)
def test_an_uncaught_exception_ends_the_job_with_plain_pythons_traceback(
    job, script, tmp_path, mpi, launch, raising, status
):
    script("x = 1\nraise RuntimeError('half way')", "broken.py")
    program, start = LAUNCHES[launch]
    text = "%s%sif last: %s\ncomm.recv()" % (start, HEAD, raising)
    installed = mpis.run(["python", "-c", "import site_mpi; print(site_mpi.PYTHONPATH)"], cwd=tmp_path).stdout.strip()
    env = {"PYTHONPATH": installed} if launch == "site_mpi" else {}
    result = job(mpi, text, program=program, env=env, killed=True)
    assert result.returncode == status, result
    plain = mpi.run(1, "python", script(text))
    assert tracebacks(result) == tracebacks(plain) != [], result
    cause = tracebacks(plain)[0].splitlines()[-1].partition(":")[0]
    host = mpis.run(["uname", "-n"]).stdout.strip()
    assert told(result, cause) == ["rank 1 on %s ended with %s" % (host, cause)], result


@pytest.mark.parametrize("level", ["multiple", "single"])
def test_an_uncaught_exception_ends_the_job_though_threads_and_ranks_wait(job, one_mpi, level):
    text = """
if last:
    threading.Thread(target=time.sleep, args=[60]).start()
    raise ValueError("boom")
if comm.rank == 0:
    comm.recv()
comm.barrier()
"""
    result = job(one_mpi, HEAD + text, ranks=3, killed=True, env={"MPIIMPORT_THREAD_LEVEL": level})
    # At level single no thread but the main one may call MPI_Abort: the rank just ends, and the launcher sees to it.
    assert result.returncode == 1 if level == "multiple" else result.returncode != 0, result
    assert result.stderr.count("ValueError: boom") == 1, result
    assert len(told(result, "ValueError")) == 1, result


def test_an_uncaught_exception_removes_the_store_that_others_are_using(job, two_mpis, tmp_path):
    text = """
import importlib
sys.path.insert(0, %r)
if last:
    time.sleep(0.05)
    raise ValueError("boom")
for number in range(100000):
    try:
        importlib.import_module("no_such_module_%%d" %% number)
    except ImportError:
        pass
"""
    unforeseen = tmp_path / "unforeseen"
    unforeseen.mkdir()
    for _ in range(4):
        result = job(two_mpis, HEAD + text % str(unforeseen), killed=True)
        assert result.returncode == 1, result
        assert "cannot remove" not in result.stderr, result


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGSEGV"])
def test_a_signal_to_one_rank_ends_the_job_as_without_us(job, mpi, name):
    text = HEAD + "comm.barrier()\nif last: os.kill(os.getpid(), signal.%s)\ncomm.recv()" % name
    result = job(mpi, text, killed=True)
    assert result.returncode != 0, result
    assert "mpiimport" not in result.stderr, result
    if mpi is not mpis.IMPI:  # whose code depends on which rank it reaps first
        assert result.returncode == job(mpi, text, killed=True, program=["python"]).returncode


def test_sigint_to_one_rank_ends_the_job(job, mpi):
    text = HEAD + "if last:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\ncomm.recv()"
    result = job(mpi, text, killed=True)
    assert result.returncode == 130, result
    assert result.stderr.count("Traceback") == 1, result
    assert len(told(result, "KeyboardInterrupt")) == 1, result


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_launcher_ends_the_job(job, mpi, name):
    text = """
        import os, signal, sys, time

        def parent(pid):
            return int(open("/proc/%%d/stat" %% pid).read().rpartition(")")[2].split()[1])

        pid = os.getpid()
        while b"timeout" not in open("/proc/%%d/cmdline" %% parent(pid), "rb").read().partition(b"\\0")[0]:
            pid = parent(pid)
        if sys.mpiimport.stats()["rank"] == 0:
            os.kill(pid, signal.%s)
        time.sleep(60)
    """
    result = job(mpi, text % name, killed=True)
    assert result.returncode != 0, result


def test_an_exit_code_of_one_rank_is_the_jobs_and_the_others_go_on(job, mpi):
    result = job(mpi, HEAD + "if last: raise SystemExit(3)\ntime.sleep(1)\nprint('finished')", ranks=3)
    assert result.returncode == 3, result
    assert result.stdout.count("finished") == 2, result
    assert "mpiimport" not in result.stderr


@pytest.mark.parametrize("env", [{}, {"MPIIMPORT_ABORT_ON_EXIT": "1"}], ids=["option", "variable"])
def test_abort_on_exit_ends_the_job_with_the_code_while_others_wait(job, mpi, env):
    options = [] if env else ["--abort-on-exit"]
    result = job(mpi, HEAD + "if last: sys.exit(3)\ncomm.recv()", *options, env=env, killed=True)
    assert result.returncode == 3, result
    assert "Traceback" not in result.stderr


def test_abort_on_exit_lets_ranks_that_succeed_go(job, two_mpis):
    text = HEAD + "if last: sys.exit(0)\ntime.sleep(1)\nprint('finished')"
    result = job(two_mpis, text, "--abort-on-exit")
    assert (result.returncode, result.stdout) == (0, "finished\n"), result


def test_a_text_given_to_exit_is_said_and_the_code_is_1(job, mpi):
    result = job(mpi, HEAD + "if last: sys.exit('no input')\n")
    assert result.returncode == 1, result
    assert result.stderr.splitlines().count("no input") == 1, result


def test_os_exit_of_one_rank_ends_the_job_as_without_us(job, two_mpis):
    text = HEAD + "comm.barrier()\nif last: os._exit(5)\ncomm.recv()"
    result = job(two_mpis, text, killed=True)
    assert result.returncode == 5, result
    assert job(two_mpis, text, killed=True, program=["python"]).returncode == 5


def test_an_exception_in_a_thread_ends_only_the_thread(job, two_mpis):
    text = "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\ncomm.barrier()\nprint('on')"
    result = job(two_mpis, HEAD + text)
    assert (result.returncode, result.stdout) == (0, "on\non\n"), result
    assert result.stderr.count("ZeroDivisionError: ") == 2, result


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "if last: raise ValueError('boom')\ncomm.recv()"])
def test_exit_functions_run_and_may_use_mpi(job, two_mpis, ending):
    register = "import atexit\natexit.register(lambda: print('at exit', comm.rank, MPI.Is_finalized(), flush=True))\n"
    result = job(two_mpis, HEAD + register + ending, killed="raise" in ending)
    expected = ["at exit 1 False"] if "raise" in ending else ["at exit 0 False", "at exit 1 False"]
    assert sorted(result.stdout.splitlines()) == expected, result


CHILDREN = """
def exit_with_4():
    sys.exit(4)

def fail():
    raise ValueError("in the child")

def forked(function):
    pid = os.fork()
    if pid == 0:
        function()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def process(function):
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    return child.exitcode
"""


@pytest.mark.parametrize("options", [[], ["--abort-on-exit"]], ids=str)
def test_a_forked_child_ends_nothing(job, mpi, options):
    text = """
statuses = [start(function) for start in (forked, process) for function in (exit_with_4, fail)]
comm.barrier()
print(*statuses)
"""
    result = job(mpi, "import multiprocessing\n" + HEAD + CHILDREN + text, *options)
    assert (result.returncode, result.stdout) == (0, "4 1 4 1\n" * 2), result
    assert result.stderr.count("ValueError: in the child") == 4, result
    assert "mpiimport" not in result.stderr


def test_a_forked_child_that_lives_on_keeps_no_store(job, two_mpis):
    text = """
if os.fork() == 0:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    time.sleep(2)
    os._exit(0)
comm.barrier()
"""
    assert job(two_mpis, HEAD + text).returncode == 0


@pytest.mark.parametrize("ranks", [0, 1, 2], ids=["no-launcher", "one-rank", "debug"])
@ALL_ENDINGS
def test_local_runs_end_as_plain_python(script, tmp_path, ranks, text, status):
    program = script(text.replace("comm.recv()", "sys.exit('none waits')"))
    options = ["-d"] if ranks == 2 else []
    env = {"MPIIMPORT_TMPDIR": str(tmp_path)}

    def start(*argv):
        return mpis.MPICH.run(ranks, *argv, env=env) if ranks else mpis.run(argv, env={**mpis.MPICH.env, **env})

    result, plain = start("python-mpi", *options, program), start("python", program)
    assert result.returncode == plain.returncode, (result, plain)
    assert (status == 0) == (result.returncode == 0), result
    assert result.stdout == plain.stdout
    assert sorted(result.stderr) == sorted(plain.stderr)
    assert not list(tmp_path.glob("mpiimport-*"))


def test_the_node_store_is_in_memory_while_the_program_runs_and_gone_after_it(two_mpis):
    text = """
import glob, os
from mpi4py import MPI
stores = {os.readlink(fd) for fd in glob.glob("/proc/self/fd/*") if os.path.isdir(fd)}
stores = [store for store in stores if "/mpiimport-" in store]
MPI.COMM_WORLD.barrier()
print(*stores, *map(os.path.isdir, stores))
"""
    result = two_mpis.run(2, "python-mpi", "-c", text)
    lines = set(result.stdout.splitlines())
    assert (result.returncode, len(lines)) == (0, 1), result
    store, there = lines.pop().split()
    assert there == "True"
    assert store.startswith("/dev/shm/mpiimport-")
    assert not Path(store).exists()


@pytest.mark.parametrize(("text", "status"), [("raise ValueError('boom')", 1), ("sys.exit(3)", 3)])
def test_mpi4py_run_ends_the_job_as_without_us(job, mpi, text, status):
    text = HEAD + "if last: %s\ncomm.recv()" % text
    result = job(mpi, text, "-m", "mpi4py", killed=True)
    assert result.returncode == status, result
    assert result.stderr.count("ValueError: boom") == (status == 1), result


def test_a_rank_that_is_interrupted_during_the_start_ends_the_job(job, two_mpis, tmp_path):
    pipe = tmp_path / "never-written"
    mpis.run(["mkfifo", pipe])
    waiting = "timeout --preserve-status -s INT 2 python-mpi %s" % pipe
    result = job(two_mpis, "", program=["sh", "-c", waiting], killed=True)
    assert result.returncode not in (0, 124), result
    assert "Traceback" not in result.stderr, result
    assert "interrupted" in result.stderr
