"""Extension modules and their libraries are opened from the node store, whatever way they find each other."""

import json
import random
import struct
import subprocess
import sysconfig

import pytest

MODULE = """
    #include <Python.h>
    int first(void);
    static PyObject *value(PyObject *self, PyObject *none) { return PyLong_FromLong(first()); }
    static PyMethodDef methods[] = {{"value", value, METH_NOARGS, 0}, {0}};
    static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_chain", 0, -1, methods};
    PyMODINIT_FUNC PyInit__chain(void) { return PyModule_Create(&definition); }
"""

# A module with a RUNPATH needs a library with an RPATH, which needs one that inherits it, which needs one more.
LIBRARIES = (
    ("third", "int third(void) { return 3; }", ["-Wl,-soname,libthird.so"]),
    ("second", "int third(void); int second(void) { return 20 + third(); }", ["-Wl,-soname,libsecond.so", "-lthird"]),
    (
        "first",
        """
        #include <dlfcn.h>
        int second(void);
        int first(void) {
            void *sibling = dlopen("libsibling.so", RTLD_NOW);
            int (*late)(void) = sibling ? (int (*)(void))dlsym(sibling, "late") : 0;
            return 100 + second() + (late ? late() : 0);
        }
        """,
        ["-lsecond", "-Wl,--disable-new-dtags,-rpath,$ORIGIN"],
    ),
    ("sibling", "int late(void) { return 1000; }", []),
)

PROGRAM = """
    import json
    import chain._chain, chain.lazy
    import sys

    spec = chain._chain.__spec__
    result = [chain._chain.value(), chain._chain.__file__, spec.origin, chain.lazy.late()]
    with open("/proc/self/maps") as maps:
        mapped = sorted({line.split(maxsplit=5)[-1].strip() for line in maps if ".so" in line})
    print(json.dumps([*result, mapped]))
"""


def compile_(target, source, *options):
    text = "\n".join(line for line in source.splitlines())
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(target), *map(str, options)]
    subprocess.run(["timeout", "-k", "5", "60", *command], input=text, text=True, check=True)


@pytest.fixture
def chain(tmp_path, script):
    """A package with a chain of private libraries, and a program that uses it."""
    package, libs = tmp_path / "chain", tmp_path / "chain.libs"
    package.mkdir()
    libs.mkdir()
    for name, source, options in LIBRARIES:
        compile_(libs / ("lib%s.so" % name), source, "-L%s" % libs, "-Wl,--allow-shlib-undefined", *options)
    include = "-I%s" % sysconfig.get_paths()["include"]
    runpath = "-Wl,--enable-new-dtags,-rpath,$ORIGIN/../chain.libs"
    compile_(package / "_chain.so", MODULE, include, "-L%s" % libs, "-lfirst", "-Wl,-rpath-link,%s" % libs, runpath)
    (package / "__init__.py").touch()
    (package / "lazy.py").write_text("def late():\n    import chain._late\n    return chain._late.value()\n")
    source = MODULE.replace("_chain", "_late")
    compile_(package / "_late.so", source, include, "-L%s" % libs, "-lfirst", "-Wl,-rpath-link,%s" % libs, runpath)
    return script(PROGRAM)


def lines_of(result):
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_chain_of_private_libraries_loads_from_the_node_store(two_mpis, chain):
    lines = lines_of(two_mpis.run(2, "python-mpi", "--store", "always", chain))
    assert len(lines) == 2
    origin = str(chain.parent / "chain" / "_chain.so")
    for value, file, spec_origin, late, mapped in lines:
        assert (value, late) == (1123, 1123)
        assert file == spec_origin == origin
        ours = [path for path in mapped if "/chain" in path]
        stored = [path for path in ours if path.startswith("/dev/shm/mpiimport-")]
        assert sorted(path.rpartition("/")[2] for path in stored) == [
            "_chain.so",
            "_late.so",
            "libfirst.so",
            "libsecond.so",
            "libthird.so",
        ]
        # A sibling that is opened by name when the library runs is the original, through a link.
        assert [path for path in ours if path not in stored] == [str(chain.parent / "chain.libs" / "libsibling.so")]


@pytest.mark.parametrize("form", [["early.py"], ["-m", "early"]], ids=" ".join)
def test_native_code_is_there_before_the_program_runs(two_mpis, chain, script, form):
    text = "import json\nfrom mpiimport import session\nprint(json.dumps(sorted(session.current.native.present)))\n"
    script(text + "import chain._chain\n", "early.py")
    lines = lines_of(two_mpis.run(2, "python-mpi", "--store", "always", *form, cwd=chain.parent))
    assert [str(chain.parent / "chain" / "_chain.so") in present for present in lines] == [True] * 2


@pytest.mark.usefixtures("chain")
def test_ctypes_does_not_load_a_library_twice(script):
    from mpi import MPICH

    program = script(
        """
        import ctypes, json, os
        import chain._chain

        folder = os.path.join(os.path.dirname(chain._chain.__file__), "..", "chain.libs")
        first = ctypes.CDLL(os.path.join(folder, "libfirst.so"))
        with open("/proc/self/maps") as maps:
            mapped = {line.split(maxsplit=5)[-1].strip() for line in maps if "libfirst.so" in line}
        print(json.dumps([first.first(), len(mapped)]))
        """,
        "twice.py",
    )
    assert lines_of(MPICH.run(2, "python-mpi", "--store", "always", program)) == [[1123, 1]] * 2


def test_plain_python_finds_the_same(chain):
    from mpi import run

    ((value, _, _, late, _),) = lines_of(run(["python", chain]))
    assert (value, late) == (1123, 1123)


@pytest.mark.parametrize("options", [["--store", "never"], ["--store", "always", "--store-limit", "0"], []])
def test_originals_are_opened_where_nothing_is_to_be_copied(chain, options):
    from mpi import MPICH

    for *_, mapped in lines_of(MPICH.run(2, "python-mpi", *options, chain)):
        assert not [path for path in mapped if "/mpiimport-" in path]


def test_what_is_found_by_way_of_dots_is_opened_where_it_lies(chain):
    from mpi import MPICH

    folder = chain.parent
    (folder / "other").mkdir()
    around = "%s/other%s%s" % (folder, 20 * "/..", folder)  # below a store, it leads out of it
    chain.write_text("import sys\nsys.path[0] = %r\n%s" % (around, chain.read_text()))
    before = [(path, path.stat().st_ino, path.stat().st_mode) for path in sorted(folder.glob("chain*/*.so"))]
    for value, file, *_, mapped in lines_of(MPICH.run(2, "python-mpi", "--store", "always", chain)):
        assert (value, file) == (1123, around + "/chain/_chain.so")
        assert [path for path in mapped if path.endswith("/_chain.so")] == [str(folder / "chain" / "_chain.so")]
    assert [(path, path.stat().st_ino, path.stat().st_mode) for path in sorted(folder.glob("chain*/*.so"))] == before


def test_variants_for_some_processors_are_chosen_as_under_plain_python(chain):
    from mpi import MPICH, run

    libs = chain.parent / "chain.libs"
    name, source, options = LIBRARIES[1]
    compile_(libs / ("lib%s.so" % name), source, "-L%s" % libs, *options, "-Wl,-rpath,$ORIGIN")
    for level, value in (("x86-64-v2", 4), ("x86-64-v9", 9)):
        folder = libs / "glibc-hwcaps" / level
        folder.mkdir(parents=True)
        compile_(folder / "libthird.so", "int third(void) { return %d; }" % value, "-Wl,-soname,libthird.so")
    ((value, *_, mapped_plain),) = lines_of(run(["python", chain]))
    for value_here, *_, mapped in lines_of(MPICH.run(2, "python-mpi", "--store", "always", chain)):
        assert value_here == value
        ours, ours_plain = ([path for path in paths if "/chain" in path] for paths in (mapped, mapped_plain))
        assert {path.rpartition("/chain")[2] for path in ours} == {path.rpartition("/chain")[2] for path in ours_plain}
        assert [path for path in ours if path.endswith("/root%s/libfirst.so" % libs)]


@pytest.mark.parametrize(("file", "length"), [("chain/_chain.so", 5000), ("chain.libs/libsecond.so", 5000)])
def test_a_truncated_file_is_an_import_error(chain, file, length):
    from mpi import MPICH

    damaged = chain.parent / file
    damaged.write_bytes(damaged.read_bytes()[:length])  # plain Python ends with SIGBUS
    result = MPICH.run(2, "python-mpi", "--store", "always", chain)
    assert result.returncode == 1
    assert "ImportError: %s: file too short" % damaged in result.stderr


def test_a_library_for_another_machine_is_passed_over(chain):
    from mpi import MPICH

    libs, foreign = chain.parent / "chain.libs", chain.parent / "foreign"
    foreign.mkdir()
    of_32_bits = bytearray((libs / "libfirst.so").read_bytes())
    of_32_bits[4] = 1
    (foreign / "libfirst.so").write_bytes(of_32_bits)
    env = {"LD_LIBRARY_PATH": "%s:%s" % (foreign, MPICH.env["LD_LIBRARY_PATH"])}
    for value, *_, mapped in lines_of(MPICH.run(2, "python-mpi", "--store", "always", chain, env=env)):
        assert value == 1123
        assert [path for path in mapped if path.endswith("/root%s/libfirst.so" % libs)]


@pytest.mark.parametrize("file", ["chain/_chain.so", "chain.libs/libthird.so"])
def test_what_is_no_library_fails_as_under_plain_python(chain, file):
    from mpi import MPICH, run

    (chain.parent / file).write_bytes(b"not a library")
    plain = run(["python", chain])
    result = MPICH.run(2, "python-mpi", "--store", "always", chain)
    assert (plain.returncode, result.returncode) == (1, 1)
    assert plain.stderr.splitlines()[-1] in result.stderr


# Each import in a process of its own: a damaged file may end it.
EACH_IMPORT = """
import json, os, signal, sys

outcomes = []

def in_child():
    reading, writing = os.pipe()
    if not os.fork():
        signal.alarm(10)
        globals()["writing"] = writing
        return True
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    _, status = os.wait()
    outcomes.append(said if status == 0 else "crash")
    return False

def end(said):
    os.write(writing, said.encode(errors="replace"))
    os._exit(0)
"""

ONE_IMPORT = """
if in_child():
    try:
        import damaged_%d._chain as module
        end("value %%d" %% module.value())
    except ImportError as error:
        end("ImportError: %%s" %% error)
"""

PT_DYNAMIC = 2
NEEDED, SONAME, RPATH, RUNPATH = 1, 14, 15, 29


def decisive_bytes(elf):
    """Return where a library says what it is, what of it is to be mapped, and which others it needs and where."""
    (headers,), (count,) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<H", elf, 56)
    found = [*range(64)]
    for start in range(headers, headers + 56 * count, 56):
        kind, _, offset, _, _, size_bytes = struct.unpack_from("<IIQQQQ", elf, start)
        found += [*range(start, start + 16), *range(start + 32, start + 40)]
        for entry in range(offset, offset + size_bytes, 16) if kind == PT_DYNAMIC else ():
            if struct.unpack_from("<Q", elf, entry)[0] in (NEEDED, SONAME, RPATH, RUNPATH):
                found += range(entry, entry + 9)  # other names, but none outside of the file
    return found


def damages(elf):
    """Return damaged versions of a library: empty, cut off, for other machines, and with random bytes."""
    yield b""
    yield b"not a library"
    yield from (elf[:length] for length in (16, 64, 500, len(elf) // 2))
    chosen = random.Random(1)
    positions = decisive_bytes(elf)
    header = [(4, 1), (5, 2), (18, 43), (54, 1)]  # 32 bits, big-endian, SPARC, program headers of another size
    for position, value in [*header, *((chosen.choice(positions), chosen.randrange(256)) for _ in range(60))]:
        damaged = bytearray(elf)
        damaged[position] = value
        yield bytes(damaged)


def test_a_damaged_file_does_no_more_harm_than_under_plain_python(tmp_path, script):
    from mpi import MPICH, run

    compile_(tmp_path / "libfirst.so", "int first(void) { return 1; }", "-Wl,-soname,libfirst.so")
    include = "-I%s" % sysconfig.get_paths()["include"]
    compile_(tmp_path / "_chain.so", MODULE, include, "-L%s" % tmp_path, "-lfirst", "-Wl,-rpath,$ORIGIN")
    whole = {name: (tmp_path / name).read_bytes() for name in ("_chain.so", "libfirst.so")}
    versions = [{}, *({name: damaged} for name in whole for damaged in damages(whole[name]))]
    for number, version in enumerate(versions):
        folder = tmp_path / ("damaged_%d" % number)
        folder.mkdir()
        for name, elf in {**whole, **version}.items():
            (folder / name).write_bytes(elf)
    imports = "".join(ONE_IMPORT % number for number in range(len(versions)))
    program = script(EACH_IMPORT + imports + "\nsys.stdout.write(json.dumps(outcomes) + '\\n')\n")
    plain = [json.loads(run(["python", program]).stdout) for _ in range(3)]  # what is damaged may depend on addresses
    result = MPICH.run(2, "python-mpi", "--store", "always", program)
    assert result.returncode == 0, result
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 2
    assert [line[0] for line in plain + lines] == ["value 1"] * 5
    for ours in lines:
        for number, (said, *expected) in enumerate(zip(ours, *plain)):
            too_short = said.startswith("ImportError: ") and said.endswith(": file too short")
            assert said in expected or too_short or "crash" in expected, (number, said, expected)
    assert {said.partition(" ")[0] for said in plain[0]} == {"value", "ImportError:", "crash"}


# A file changes after it was found and before it is read; under plain Python, before the program starts.
SITECUSTOMIZE = """
    import os, sys

    def change(path=%r):
        %s

    core = sys.modules.get("mpiimport._core")
    if core is None:
        change()
    else:
        closures = core.closures

        def closures_then_change(files, *where):
            found = closures(files, *where)
            if any("/chain/" in file for file in files):
                core.closures = closures
                change()
            return found

        core.closures = closures_then_change
"""

EAGER, LAZY = "import chain._chain; value = chain._chain.value()", "import chain.lazy; value = chain.lazy.late()"

TRY = """
try:
    %s
except ImportError as error:
    value = "%%s: %%s" %% (type(error).__name__, error)
print(value)
"""

VANISHES = "os.unlink(path)"
IS_REPLACED = "os.rename(path + '.new', path)"
IS_CUT_OFF = "os.truncate(path, 5000)"
IS_OVERWRITTEN = "open(path, 'r+b').write(b'not a library')"


@pytest.mark.parametrize(
    ("program", "file", "change", "expected"),
    [
        (EAGER, "chain.libs/libsecond.so", VANISHES, "libsecond.so: cannot open shared object file"),
        (EAGER, "chain.libs/libsecond.so", IS_REPLACED, "1150"),
        (EAGER, "chain.libs/libsecond.so", IS_OVERWRITTEN, "libsecond.so: invalid ELF header"),
        (EAGER, "chain.libs/libsecond.so", IS_CUT_OFF, None),
        (EAGER, "chain/_chain.so", VANISHES, "No module named 'chain._chain'"),
        (LAZY, "chain.libs/libsecond.so", VANISHES, "libsecond.so: cannot open shared object file"),
        (LAZY, "chain.libs/libsecond.so", IS_REPLACED, "1150"),
        (LAZY, "chain.libs/libsecond.so", IS_CUT_OFF, None),
        (LAZY, "chain/_late.so", VANISHES, None),
    ],
)
def test_a_file_that_changes_after_it_was_found(chain, script, program, file, change, expected):
    from mpi import MPICH, run

    path = chain.parent / file
    before = path.read_bytes()
    larger = "int second(void) { return 50; } char more[100000] = {1};"
    compile_(path.with_name(path.name + ".new"), larger, "-Wl,-soname,libsecond.so")
    script(SITECUSTOMIZE % (str(path), change), "custom/sitecustomize.py")
    program, env = script(TRY % program), {"PYTHONPATH": str(chain.parent / "custom")}
    ours = MPICH.run(2, "python-mpi", "--store", "always", program, env=env)
    assert ours.returncode == 0, ours
    said = set(ours.stdout.splitlines())
    if expected is not None:
        path.write_bytes(before)
        compile_(path.with_name(path.name + ".new"), larger, "-Wl,-soname,libsecond.so")
        plain = run(["python", program], env=env)
        assert said == set(plain.stdout.splitlines())
        assert expected in plain.stdout
    elif change is IS_CUT_OFF:  # plain Python ends with SIGBUS
        assert said == {"ImportError: %s: file too short" % path}
    else:  # one rank had found it, the other may come later
        late = "ModuleNotFoundError: No module named 'chain._late'"
        assert said - {late} == {"ImportError: %s: cannot open shared object file: No such file or directory" % path}
