"""A child of a rank is plain Python's child: it speaks no MPI through us, finds a clean environment, and leaves the
store of its parent alone."""

import textwrap

from cases import PRELUDE, Case, launch
from compared import said

SEEN = """
import os, re, sys

SHELLS = ("_", "PWD", "SHLVL", "OLDPWD")

def number(text):
    return re.sub("[0-9]+", "0", text)

def seen():
    "What a process is like."
    return {
        "meta_path": [getattr(one, "__name__", type(one).__name__) for one in sys.meta_path],
        "hooks": [one.__qualname__ for one in sys.path_hooks],
        "ours": [name for name in sys.modules if name.partition(".")[0] in ("mpiimport", "site_mpi")],
        "in sys": sorted(name for name in vars(sys) if "mpi" in name),
        "environ": {name: number(value) for name, value in os.environ.items() if name not in SHELLS},
        "sys": [getattr(sys, name) for name in ("path", "prefix", "exec_prefix", "executable", "warnoptions",
            "_xoptions", "dont_write_bytecode", "pycache_prefix")],
        "flags": repr(sys.flags), "argv": list(map(number, sys.orig_argv[1:])), "folder": os.getcwd(),
        "mpi": "mpi4py.MPI" in sys.modules, "hook": sys.excepthook is sys.__excepthook__,
        "told": getattr(sys, "told", 0),
    }

def descriptors():
    "What a child has open that it did not ask for."
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(number(os.readlink("/proc/self/fd/" + name)))
        except OSError:
            pass
    return sorted(found)
"""
TASK = """
import os, sys, seen

def work(x):
    import decimal, task_imports
    return [str(decimal.Decimal(x) / 4), task_imports.VALUE, __import__("color" + "sys").__name__]

def tell(method):
    return {**seen.seen(), "method": method}

def begin(x):
    sys.told = x

def fail(x):
    import task_fails
    task_fails.fail(x)

def put(queue, x):
    queue.put(work(x))

def give(connection, method):
    connection.send(tell(method))
    connection.close()

def end(x):
    sys.exit(x)
"""
PROGRAM = """
def attempt(action, *arguments):
    try:
        say(action(*arguments))
    except BaseException:
        say(re.sub("0x[0-9a-f]+", "0x", traceback.format_exc()))

def main():
    global re, traceback
    import multiprocessing, re, traceback
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
    import seen, task

    def ended(future):
        return next(as_completed([future]))

    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        say(method)
        with context.Pool(1, task.begin, (method,)) as pool:
            say(pool.map(task.work, [1, 2]))
            say(pool.apply(task.tell, (method,)))
            attempt(pool.apply, task.fail, (3,))
        queue = context.Queue()
        child = context.Process(target=task.put, args=(queue, 3))
        child.start()
        say(queue.get(timeout=30))
        child.join()
        here, there = context.Pipe()
        targets = {task.give: (there, method), task.end: (5,), task.fail: (6,)}
        children = [context.Process(target=target, args=targets[target]) for target in targets]
        for child in children:
            child.start()
            child.join()
        say(here.recv(), [child.exitcode for child in children])
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            say(executor.submit(task.work, 5).result(), list(executor.map(task.work, [6])))
            attempt(ended(executor.submit(task.fail, 7)).result)
        comm.Barrier()
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        shared["b"] = task.work(1)
        say(dict(shared))
    with ThreadPoolExecutor(4) as executor:
        say(list(executor.map(task.work, range(8))))
        attempt(ended(executor.submit(task.fail, 7)).result)

    child = "import seen, json, sys; sys.stdout.write(json.dumps([seen.seen(), seen.descriptors()], sort_keys=True))"
    def output(*command, **keywords):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords)
        return done.returncode, done.stdout, done.stderr
    say(output(sys.executable, "-c", child))
    say(output(sys.executable, "-c", child, close_fds=False))
    say(output("python", "-W", "error", "-c", child))
    say(output(sys.executable, "-c", child, env={"PYTHONPATH": os.getcwd()}))
    say(output(sys.executable, "-m", "task_main", "a"), output(sys.executable, "task_main.py", "-b"))
    say(output(sys.executable, *subprocess._args_from_interpreter_flags(), "-c", child))

    def in_fork(action):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.write(writer, json.dumps(action()).encode())
                status = 0
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
            finally:
                os._exit(status)
        os.close(writer)
        with open(reader) as file:
            text = file.read()
        return text, os.waitpid(child, 0)[1]
    say(in_fork(lambda: task.work(8)))
    say(in_fork(lambda: task.fail(8)))
    say(in_fork(lambda: [importlib.import_module("computed_" + str(n)).__file__ for n in (1, 2)]))
    say(in_fork(lambda: __import__("missing_in_child")))
    say(in_fork(lambda: in_fork(lambda: output(sys.executable, "-c", "import task; print(task.work(9))"))))
    say(in_fork(lambda: os.dup2(os.open("executed.%d" % rank, os.O_CREAT | os.O_WRONLY), 1) and
        os.execv(sys.executable, [sys.executable, "-c", child])))
    with open("executed.%d" % rank) as file:
        say(json.load(file))
    for start in (os.spawnv, os.spawnvp):
        say(start(os.P_WAIT, sys.executable, [sys.executable, "-c", "import task; task.end(3)"]))
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", "import task; task.end(4)"], os.environ)
    say(os.waitpid(pid, 0)[1])
    comm.Barrier()
    say(importlib.import_module("computed_" + "3").__file__, comm.allreduce(rank))

if __name__ == "__main__":
    main()
"""
FILES = {
    "seen.py": SEEN,
    "task.py": TASK,
    "task_imports.py": "import wave\nVALUE = wave.__name__",
    "task_fails.py": "def fail(x):\n    raise ValueError(x) from KeyError('cause')\n",
    "task_main.py": "import seen, sys, task\nprint(__name__, sys.argv, task.work(1), flush=True)\ntask.fail(2)\n",
    **{"computed_%d.py" % number: "" for number in (1, 2, 3)},
}


def as_plain(line):
    """Return a line without what a forked child has of ours from its parent."""
    return [
        {**one, "ours": [], "in sys": []} if isinstance(one, dict) and one.get("method") == "fork" else one
        for one in line
    ]


def test_children_are_plain_pythons_and_leave_the_store_alone(tmp_path):
    stores = tmp_path / "stores"
    stores.mkdir()
    env = {"MPIIMPORT_TMPDIR": str(stores), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    case = Case(PROGRAM, FILES, prelude='if __name__ == "__main__":\n' + textwrap.indent(PRELUDE, "    "))
    plain, ours = (launch(case, tmp_path / "work", python, env=env) for python in ("python", "python-mpi"))
    assert not list(stores.iterdir())
    assert [as_plain(line) for line in said(ours)] == [as_plain(line) for line in said(plain)]
