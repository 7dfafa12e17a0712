"""Whatever changed since a profile was written, a run with it imports what plain Python does."""

import json
import os
import py_compile
import shutil
import sysconfig
import time
import zipfile
from pathlib import Path

import mpi as mpis
import pytest

TREES = Path(__file__).resolve().parent.parent / "trees"
EXTENSION = "_ctypes_test" + sysconfig.get_config_var("EXT_SUFFIX")

IMPORTER = """
    import json, os, sys

    sys.path.append(sys.argv[1] + "/late")
    seen = {}
    for name in sys.argv[2:]:
        try:
            module = __import__(name, fromlist=["kind"])
        except (ImportError, SyntaxError, EOFError) as cause:
            seen[name] = [type(cause).__name__, str(cause)]
        else:
            spec = module.__spec__
            locations = spec.submodule_search_locations
            code = getattr(module, "code", None)
            seen[name] = [
                getattr(module, "kind", None), getattr(module, "__file__", None), spec.origin, spec.cached,
                locations if locations is None else list(locations), code and code.__code__.co_filename,
            ]
    stats = sys.mpiimport.stats() if hasattr(sys, "mpiimport") else {"rank": 0, "missed": []}
    row = {"rank": stats["rank"], "seen": seen, "missed": stats["missed"]}
    with open("rank%d.json" % stats["rank"], "w") as file:
        json.dump(row, file)
"""


class Tree:
    """Modules of every kind, each with a change that another version of the program could bring."""

    def __init__(self, root):
        self.root = root
        self.lib = root / "lib"
        self.names = [name[len("change_") :] for name in dir(self) if name.startswith("change_")]
        for name in self.names:
            getattr(self, "make_" + name, lambda name=name: self.write(name))()
        self.write("first/other")
        for number in (1, 2):
            self.write("portion%d/namespace/part%d" % (number, number))
        shutil.copy(TREES / "pth" / "__editable___sample_finder.py", self.lib)
        shutil.copytree(TREES / "pth" / "editable", self.lib / "editable")
        (self.lib / "sitecustomize.py").write_text(
            "import __editable___sample_finder\n__editable___sample_finder.install()\n"
        )
        self.unchanged = [
            "namespace.part1",
            "namespace.part2",
            "absent",
            "sample_editable.part",
            "sample_namespace.part",
        ]
        self.settle()

    def path(self):
        entries = ["first", "", "portion1", "absent", "archive.zip", "portion2", "appearing"]
        return ":".join(str(self.lib / entry) for entry in entries)

    def write(self, name, kind=None):
        file = self.lib / (name + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("kind = %r\ndef code(): pass\n" % (kind or name))
        return file

    def settle(self):
        """Make all of it an hour old, as installed files are: bytecode is trusted."""
        an_hour_ago = time.time() - 3600
        for folder, _, files in os.walk(self.lib):
            for name in files:
                if not name.endswith(".pyc"):
                    os.utime(os.path.join(folder, name), (an_hour_ago, an_hour_ago))

    def change(self):
        for name in self.names:
            getattr(self, "change_" + name)()

    def change_edited(self):
        self.write("edited", "edited, and longer")

    def change_edited_at_the_same_time(self):
        file = self.lib / "edited_at_the_same_time.py"
        before = file.stat()
        self.write("edited_at_the_same_time", "EDITED_AT_THE_SAME_TIME")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert file.stat().st_size == before.st_size

    def change_added_earlier(self):
        self.write("first/added_earlier", "earlier")

    def make_late_module(self):
        self.write("late/late_module")

    def change_late_module(self):
        self.write("appearing/late_module", "before the late one")

    def change_removed(self):
        (self.lib / "removed.py").unlink()

    def change_broken(self):
        (self.lib / "broken.py").write_text("this is no Python\n")

    def make_upgraded(self):
        self.write("upgraded/__init__", "1.0")
        self.write("upgraded/part", "1.0")

    def change_upgraded(self):
        shutil.rmtree(self.lib / "upgraded")
        self.write("upgraded/__init__", "2.0")

    def change_becomes_a_package(self):
        self.write("becomes_a_package/__init__", "package")

    def make_becomes_a_module(self):
        self.write("becomes_a_module/__init__")

    def change_becomes_a_module(self):
        shutil.rmtree(self.lib / "becomes_a_module")
        self.write("becomes_a_module")

    def make_loses_its_init(self):
        self.write("loses_its_init/__init__")

    def change_loses_its_init(self):
        (self.lib / "loses_its_init" / "__init__.py").unlink()

    def make_gains_an_init(self):
        self.write("gains_an_init/part")

    def change_gains_an_init(self):
        self.write("gains_an_init/__init__")

    def change__ctypes_test(self):
        import _ctypes_test

        shutil.copy(_ctypes_test.__file__, self.lib / EXTENSION)

    def change_only_bytecode(self):
        file = self.lib / "only_bytecode.py"
        py_compile.compile(str(file), str(file) + "c", doraise=True)
        file.unlink()

    def make_by_hash(self):
        file = self.write("by_hash")
        py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH, doraise=True)

    def change_by_hash(self):
        self.write("by_hash", "changed")

    def make_by_unchecked_hash(self):
        file = self.write("by_unchecked_hash")
        py_compile.compile(str(file), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, doraise=True)

    def change_by_unchecked_hash(self):
        self.write("by_unchecked_hash", "changed")

    def change_with_half_its_bytecode(self):
        file = Path(py_compile.compile(str(self.lib / "with_half_its_bytecode.py"), doraise=True))
        os.truncate(file, 50)

    def make_linked(self):
        (self.lib / "linked.py").symlink_to(self.write("target1"))

    def change_linked(self):
        (self.lib / "linked.py").unlink()
        (self.lib / "linked.py").symlink_to(self.write("target2"))

    def make_linked_package(self):
        for number in (1, 2):
            self.write("version%d/linked_package/__init__" % number, "one" if number == 1 else "another")
        (self.lib / "linked_package").symlink_to("version1/linked_package")

    def change_linked_package(self):
        (self.lib / "linked_package").unlink()
        (self.lib / "linked_package").symlink_to("version2/linked_package")

    def make_one_more_portion(self):
        self.write("portion1/one_more_portion/part")

    def change_one_more_portion(self):
        self.write("portion2/one_more_portion/more")

    def make_zipped(self):
        with zipfile.ZipFile(self.lib / "archive.zip", "w") as archive:
            archive.writestr("zipped/__init__.py", "kind = 'zipped'\n")
            archive.writestr("zipped/inner.py", "kind = 'inner'\n")

    def change_zipped(self):
        with zipfile.ZipFile(self.lib / "archive.zip", "w") as archive:
            archive.writestr("zipped.py", "kind = 'one file, and longer than before'\n")


@pytest.mark.parametrize(
    ("mpi", "options", "env"),
    [
        (mpis.MPICH, [], {}),
        (mpis.OPENMPI, ["--stable={lib}"], {}),
        (mpis.MPICH, ["-O"], {"PYTHONPYCACHEPREFIX": "{lib}/pycache"}),
    ],
    ids=["mpich", "openmpi-stable", "mpich-pycache prefix"],
)
def test_what_changed_since_the_profile_is_imported_as_it_is_now(script, tmp_path, mpi, options, env):
    tree = Tree(tmp_path)
    program = script(IMPORTER)
    options = [option.format(lib=tree.lib) for option in options]
    env = {name: value.format(lib=tree.lib) for name, value in env.items()}
    env["PYTHONPATH"] = tree.path()
    env.update(MPIIMPORT_PROFILE="always", MPIIMPORT_CACHE_DIR=str(tmp_path / "cache"), MPIIMPORT_SCAN="never")
    arguments = [program, tree.lib, *tree.names, *tree.unchanged]

    def ours():
        result = mpi.run(2, "python-mpi", *options, *arguments, env=env, cwd=tmp_path)
        assert result.returncode == 0, result
        return [json.loads((tmp_path / name).read_text()) for name in ("rank0.json", "rank1.json")]

    def plain():
        python = [option for option in options if option == "-O"]
        result = mpis.run(["python", "-B", *python, *arguments], env=env, cwd=tmp_path)
        assert result.returncode == 0, result
        return json.loads((tmp_path / "rank0.json").read_text())["seen"]

    expected = plain()
    assert [name for name, seen in expected.items() if len(seen) == 2] == ["absent"]
    for rank in ours():
        assert rank["seen"] == expected
    for rank in ours():
        assert (rank["seen"], rank["missed"]) == (expected, [])
    tree.change()
    now = plain()
    same = {name for name in tree.names if now[name] == expected[name]}
    assert same - {"by_unchecked_hash", "with_half_its_bytecode"} == {"edited_at_the_same_time"}
    for rank in ours():
        assert rank["seen"] == now
        assert set(rank["missed"]) <= {"loses_its_init.kind", "one_more_portion.kind"}
