"""A program of hundreds of extension modules and libraries, as Livermore's benchmark Pynamic generates them.

`--modules` extension modules in one package and `--libraries` libraries beside it (`pynamic.libs`, found by RUNPATH, as
in wheels); each file has `--functions` functions and `--kilobytes` of data. A module calls one function of each of
`--needs` libraries. The program imports and calls all modules. Shown: file operations of a rank on one host, and the
start on a slow filesystem shared by simulated hosts, one rank each (see `slow_filesystem.py`).

    python benchmarks/pynamic.py [--modules 200] [--libraries 50] [--functions 50] [--kilobytes 100] [--hosts 4]
"""

import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import count
import mpi as mpis
import operations
import results
import slow_filesystem
import variants
from hosts.cluster import unavailable
from slow_filesystem import SERVICE_US
from variants import Prepared

MODULE = """
#define Py_LIMITED_API 0x03090000
#include <Python.h>
%(declared)s
%(functions)s
static PyObject *run(PyObject *self, PyObject *unused) { return PyLong_FromLong(%(called)s + function_0(0)); }
static PyMethodDef methods[] = {{"run", run, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "%(name)s", "", -1, methods};
PyMODINIT_FUNC PyInit_%(name)s(void) { return PyModule_Create(&module); }
"""


def functions(number, kilobytes, prefix):
    """Return the source of functions that call each other, the first of which returns 1, and of some data."""
    lines = ["static const char data[%d] = {1};" % (max(kilobytes, 1) * 1024)]
    lines.append("__attribute__((noinline)) int %s_%d(int x) { return data[x]; }" % (prefix, number - 1))
    for one in reversed(range(number - 1)):
        lines.append("__attribute__((noinline)) int %s_%d(int x) { return %s_%d(x); }" % (prefix, one, prefix, one + 1))
    return "\n".join(lines)


def generate(folder, chosen):
    """Write and compile the tree and the program."""
    package, libraries, sources = folder / "pynamic", folder / "pynamic.libs", folder / "sources"
    for one in (package, libraries, sources):
        one.mkdir()
    (package / "__init__.py").touch()
    compiled = []
    for number in range(chosen.libraries):
        source = sources / ("utility%d.c" % number)
        source.write_text(functions(chosen.functions, chosen.kilobytes, "utility%d" % number))
        compiled.append((libraries / ("libutility%d.so" % number), source, []))
    built_later = []
    for number in range(chosen.modules):
        name = "module%d" % number
        needed = [(number * chosen.needs + one) % chosen.libraries for one in range(chosen.needs)]
        text = MODULE % {
            "name": name,
            "declared": "\n".join("int utility%d_0(int);" % one for one in needed),
            "functions": functions(chosen.functions, chosen.kilobytes, "function"),
            "called": " + ".join("utility%d_0(0)" % one for one in needed),
        }
        source = sources / (name + ".c")
        source.write_text(text)
        options = ["-I" + sysconfig.get_path("include"), "-L%s" % libraries, "-Wl,-rpath,$ORIGIN/../pynamic.libs"]
        options += ["-lutility%d" % one for one in needed]
        built_later.append((package / (name + sysconfig.get_config_var("EXT_SUFFIX")), source, options))
    with ThreadPoolExecutor(2) as compilers:
        for built in (compiled, built_later):
            list(compilers.map(compile_shared, built))
    program = ["from mpi4py import MPI", *("import pynamic.module%d" % number for number in range(chosen.modules))]
    calls = " + ".join("pynamic.module%d.run()" % number for number in range(chosen.modules))
    program.append("assert %s == %d" % (calls, chosen.modules * (chosen.needs + 1)))
    (folder / "program.py").write_text("\n".join(program) + "\n")


def compile_shared(built):
    """Compile one shared object: (what, from what, further options)."""
    target, source, options = built
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", target, source, *options], check=True)


def stable(folder):
    """Return the setting by which the tree counts as a part of the environment, which does not change during a run."""
    return {"MPIIMPORT_STABLE": str(folder)}


def count_operations(folder, known):
    """Count the file operations of a rank on the environment and the tree: {variant: [root, other rank]}."""
    folders = [*operations.ENVIRONMENT, folder]
    found = {}
    for number, variant in enumerate(known):
        place = folder / ("operations-%d" % number)
        (place / "traces").mkdir(parents=True)
        way = Prepared(
            variant, folder / "program.py", place, options=("--store", "always", "--scan", "always"), env=stable(folder)
        )
        ranks = count.trace(mpis.MPICH, 2, place / "traces", *way.argv, env=way.env(), timeout_s=200)
        found[variant.name] = [
            len([event for event in count.below(events, folders) if type(event) is not count.Said]) for events in ranks
        ]
    return found


def main():
    """Generate, measure, print and write."""
    parser = results.arguments(__doc__)
    sizes = {"modules": 200, "libraries": 50, "functions": 50, "kilobytes": 100, "needs": 3, "hosts": 4}
    for name, default in sizes.items():
        parser.add_argument("--" + name, type=int, default=default)
    chosen = parser.parse_args()
    report = results.Report(chosen.o, "pynamic")
    known = variants.available(report)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        generate(folder, chosen)
        report.line(
            "%d modules, %d libraries, %d functions and %d kB each, %d libraries to a module"
            % (chosen.modules, chosen.libraries, chosen.functions, chosen.kilobytes, chosen.needs)
        )
        counted = count_operations(folder, known)
        report.line()
        rows = [[name, *ranks] for name, ranks in counted.items()]
        report.table(["file operations, on environment and tree", "rank 0", "another rank"], rows)
        started = {}
        reason = unavailable() if chosen.hosts else "not asked for"
        if reason:
            report.line("no simulated hosts: %s" % reason)
        for cache in () if reason else ("cache",):
            where = slow_filesystem.Benchmark(chosen.hosts, cache, folder, env=stable(folder))
            started[cache] = {variant.name: where.measure(variant) for variant in known}
            report.line()
            report.table(
                ["%s, %d hosts, %d us" % (cache, chosen.hosts, SERVICE_US), "wall time, s", "metadata server busy, s"],
                [[name, "%.1f" % s["wall_s"], "%.2f" % s["metadata_busy_s"]] for name, s in started[cache].items()],
            )
    report.write({"sizes": {name: getattr(chosen, name) for name in sizes}, "operations": counted, "hosts": started})


if __name__ == "__main__":
    main()
