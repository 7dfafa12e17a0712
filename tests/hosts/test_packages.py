"""Packages with much native code, on several hosts: what they compute, where they are from, and who reads it."""

import collections
import json
import shutil
import subprocess
import sysconfig
import textwrap

import mpi as mpis
import pytest
import snapshots

RANKS, RANKS_PER_HOST = 8, 2

PACKAGES = """
    import json, os, sys

    own = sys.modules.get("mpiimport.session")
    foreseen = sorted(own.current.native.present) if own else []

    import numpy.fft, scipy.interpolate
    import pandas
    import matplotlib.pyplot, PIL.Image
    import sklearn.cluster, sklearn.linear_model
    import h5py
    import pyarrow.compute, pyarrow.parquet
    import numba
    import chain_runpath, chain_rpath, chain_library_path, chain_loaded
    import hashlib, io

    x = numpy.linspace(0, 1, 50)
    drawing, table, parquet = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure, axes = matplotlib.pyplot.subplots(figsize=(2, 2))
    axes.plot(x, x**2)
    figure.savefig(drawing, format="png")
    frame = pandas.DataFrame({"key": list("abab"), "value": [1.5, 2, 3, 4]})
    frame.to_parquet(parquet)
    with h5py.File(table, "w") as file:
        file["x"] = x
    with h5py.File(table) as file:
        stored = float(file["x"][1:].sum())
    squares = numba.njit(lambda values: sum([value**2 for value in values]))
    results = {
        "numpy": numpy.fft.fft(x).view(float).tolist(),
        "scipy": scipy.interpolate.CubicSpline(x, x**3)(0.3).item(),
        "pandas": frame.groupby("key").value.mean().to_dict(),
        "matplotlib, Pillow": hashlib.md5(PIL.Image.open(drawing).convert("L").tobytes()).hexdigest(),
        "scikit-learn": [
            sklearn.cluster.KMeans(2, random_state=0).fit(x[:, None]).cluster_centers_.tolist(),
            sklearn.linear_model.Ridge().fit(x[:, None], x**2).coef_.tolist(),
        ],
        "h5py": stored,
        "pyarrow": pyarrow.compute.sum(pyarrow.parquet.read_table(parquet)["value"]).as_py(),
        "numba": squares(x),
        "chains": [chain.value() for chain in (chain_runpath, chain_rpath, chain_library_path, chain_loaded)],
    }
    modules = {
        name: [getattr(module, "__file__", None), getattr(spec, "origin", None), [*getattr(module, "__path__", ())]]
        for name, module in list(sys.modules.items())
        for spec in [getattr(module, "__spec__", None)]
    }
    rank = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK"))
    with open("%s/%s.json" % (sys.argv[1], rank), "w") as file:
        json.dump([modules, foreseen], file)
    sys.stdout.write(json.dumps(results) + "\\n")
"""

# Each library says which file it is in by an exception, which crosses all of them.
CHAIN = {
    "third": """
        #include <cstring>
        #include <dlfcn.h>
        #include <stdexcept>
        static int here;
        void third() {
            Dl_info info;
            dladdr(&here, &info);
            throw std::runtime_error(strrchr(info.dli_fname, '/') + 1);
        }
    """,
    "second": "void third(); void second() { third(); }",
    "first": """
        #include <stdexcept>
        #include <string>
        void second();
        std::string first() {
            try { second(); } catch (const std::exception &thrown) { return thrown.what(); }
            return "";
        }
    """,
    "_chain": """
        #include <Python.h>
        #include <string>
        std::string first();
        static PyObject *value(PyObject *, PyObject *) { return PyUnicode_FromString(first().c_str()); }
        static PyMethodDef methods[] = {{"value", value, METH_NOARGS, nullptr}, {}};
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_chain", nullptr, -1, methods};
        PyMODINIT_FUNC PyInit__chain() { return PyModule_Create(&definition); }
    """,
}

# How the module, and how its libraries find what they need: linker options.
WAYS = {
    "runpath": ("-Wl,--enable-new-dtags,-rpath,$ORIGIN/../libs_runpath", "-Wl,--enable-new-dtags,-rpath,$ORIGIN"),
    "rpath": ("-Wl,--disable-new-dtags,-rpath,$ORIGIN/../libs_rpath", ""),
    "library_path": ("", ""),
    "loaded": ("", ""),
}

# Libraries that are foreseen, one of each package that brings some; and what each rank opens where it lies: our core
# and what Python itself or a package opens by its path.
FORESEEN = [
    *("libscipy_openblas64_", "/libgfortran", "/libgomp", "/libarrow.so", "/libhdf5", "/_imaging.", "/_dispatcher."),
    *("lib%s_%s.so" % (name, way) for name in ("first", "second", "third") for way in WAYS if way != "loaded"),
]
EACH_RANK = ("/libpython", "/mpiimport/_core", "/libllvmlite.so", "_loaded.so")

LOADS_LIBRARIES = """
import ctypes
for name in ("third", "second", "first"):
    ctypes.CDLL("%s/lib%%s_loaded.so" %% name)
"""


def compiled(target, *arguments, source=None):
    command = ["timeout", "-k", "5", "60", "c++", "-fPIC", "-o", target, *filter(None, arguments)]
    subprocess.run(list(map(str, command)), input=source, text=True, check=True)
    return target


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """A folder with a package for each way, and its libraries beside it."""
    if not shutil.which("c++"):
        pytest.skip("extension modules in C++ need a compiler, `c++`")
    folder = tmp_path_factory.mktemp("chains")
    include = "-I%s" % sysconfig.get_paths()["include"]
    objects = {
        name: compiled(folder / (name + ".o"), include, "-c", "-x", "c++", "-", source=source)
        for name, source in CHAIN.items()
    }
    for way, (of_module, of_library) in WAYS.items():
        package, libs = folder / ("chain_" + way), folder / ("libs_" + way)
        package.mkdir()
        libs.mkdir()
        needed = []
        for name in ("third", "second", "first"):
            library = "lib%s_%s.so" % (name, way)
            options = ["-shared", "-Wl,-soname,%s" % library, of_library, "-Wl,-rpath-link,%s" % libs]
            needed = [compiled(libs / library, objects[name], *options, *needed)]
        options = ["-shared", of_module, "-Wl,-rpath-link,%s" % libs]
        compiled(package / "_chain.so", objects["_chain"], *options, *needed)
        loads = LOADS_LIBRARIES % libs if way == "loaded" else ""
        (package / "__init__.py").write_text(loads + "from chain_%s._chain import value\n" % way)
    return folder


@pytest.fixture(scope="module")
def packages(chains):
    """The environment of a program that uses the packages, and what it does under plain Python."""
    program = chains / "program.py"
    program.write_text(textwrap.dedent(PACKAGES))
    # Matplotlib searches for fonts once; threads that outnumber the cores are slow.
    env = {"MPLCONFIGDIR": str(chains), "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": str(chains / "libs_library_path")}
    assert mpis.run(["python", "-c", "import matplotlib.font_manager"], env=env).returncode == 0
    result = mpis.run(["python", program, chains], env=env)
    assert result.returncode == 0, result
    modules, _ = json.loads((chains / "None.json").read_text())
    return program, env, result.stdout, modules


def test_packages_are_and_compute_what_they_do_under_plain_python(cluster, tmp_path, packages, one_mpi):
    program, env, stdout, plain = packages
    env = {**env, "LD_LIBRARY_PATH": "%s:%s" % (one_mpi.prefix / "lib", env["LD_LIBRARY_PATH"])}
    with cluster.filesystem.trace() as operations:
        launch = cluster.mpi(one_mpi, RANKS_PER_HOST, env=env)
        result = cluster.run([*launch, "python-mpi", program, tmp_path], timeout_s=300)
    assert result.returncode == 0, result
    assert result.stdout.splitlines() == stdout.splitlines() * RANKS

    opened = collections.defaultdict(set)
    for one in operations:
        if one.operation == "open" and ".so" in one.path and not one.path.startswith(str(one_mpi.prefix)):
            opened[one.rank].add(one.path)
    leaves_of_host = collections.Counter()
    for rank in range(RANKS):
        modules, foreseen = json.loads((tmp_path / ("%d.json" % rank)).read_text())
        assert {name: modules.get(name) for name in plain} == plain
        assert modules.keys() - plain.keys() <= snapshots.names_of_ours(modules, rank)
        for library in FORESEEN:
            assert any(library in path for path in foreseen), library
        assert opened[0].issuperset(foreseen)
        if rank > 0:
            assert sorted(opened[rank].intersection(foreseen)) == []
            for path in opened[rank]:
                if not any(part in path for part in EACH_RANK):
                    leaves_of_host[rank // RANKS_PER_HOST, path] += 1
    assert [pair for pair, leaves in leaves_of_host.items() if leaves > 1] == []
