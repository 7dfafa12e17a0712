"""The core finds and reads modules as `importlib` does, or leaves them to it."""

import _imp
import importlib.util
import marshal
import os
import py_compile
import shutil
import sys
import threading
import time
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, PathFinder, SourceFileLoader
from pathlib import Path

import pytest

from mpiimport import _core

MODE = py_compile.PycInvalidationMode
MAGIC = importlib.util.MAGIC_NUMBER
TAG = importlib.util.cache_from_source("/m.py").rpartition("/m")[2]


def found(names, folders, pycache_prefix=None):
    """What the core says to each name, with the code itself."""
    modules = _core.Modules(_imp.extension_suffixes(), MAGIC, TAG, pycache_prefix)
    said, code = modules.find([(folders, names, False)]).wait()
    return [one and (*one[:3], one[3] and _core.decompress(code[slice(*one[3])]), one[4]) for one in said]


def expected(name, folders):
    """What importlib says, in the core's words; None for what the core is to leave to importlib."""
    spec = PathFinder._get_spec(name, folders)
    if spec is None or (spec.loader is None and not spec.submodule_search_locations):
        return ("missing", None, None, None, None)
    locations = spec.submodule_search_locations
    locations = locations if locations is None else list(locations)
    if spec.loader is None:
        return ("namespace", None, locations, None, None)
    if type(spec.loader) is ExtensionFileLoader:
        return ("extension", spec.origin, locations, None, None)
    if type(spec.loader) is not SourceFileLoader:
        return None
    status = os.stat(spec.origin)
    try:
        bytecode = Path(spec.cached).read_bytes()
    except OSError:
        return None
    head = [MAGIC, bytes(4), *((int(one) % 2**32).to_bytes(4, "little") for one in (status.st_mtime, status.st_size))]
    if bytecode[:16] != b"".join(head):
        return None
    return ("source", spec.origin, locations, bytecode[16:], (status.st_mtime_ns, status.st_size))


def test_in_a_real_environment_it_finds_and_reads_what_importlib_does():
    folders = [entry for entry in sys.path if Path(entry).is_dir()] + ["/absent"]
    assert "/" not in folders
    asked = kinds = 0
    pending = [folders, *([entry] for entry in folders)]
    seen = set()
    while pending and asked < 5000:
        path = pending.pop(0)
        names = {entry.partition(".")[0] for folder in path if os.path.isdir(folder) for entry in os.listdir(folder)}
        names = sorted(names | {"absent", "__init__", "no-name", ""} - seen)
        answers = found(names, path)
        truth = [expected(name, path) for name in names]
        for name, answer, true in zip(names, answers, truth):
            assert answer == true, (name, path)
        asked += len(names)
        kinds += sum(true is not None and true[0] in ("source", "extension") for true in truth)
        for true in truth:
            if true is not None and true[2] is not None and tuple(true[2]) not in seen:
                seen.add(tuple(true[2]))
                pending.append(true[2])
    assert asked > 4000
    assert kinds > 1000


def compiled(file, text="x = 1\n", mode=MODE.TIMESTAMP):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Path(py_compile.compile(str(file), invalidation_mode=mode, doraise=True))


def patched(file, at, data):
    with open(file, "r+b") as bytecode:
        bytecode.seek(at)
        bytecode.write(data)


@pytest.fixture
def odd(tmp_path):
    """A folder with whatever may be found in one."""
    folder = tmp_path / "odd"
    compiled(folder / "plain.py")
    compiled(folder / "empty.py", "")
    compiled(folder / "Case.py")
    compiled(folder / "dotted.name.py")
    compiled(folder / "ümläut.py")
    compiled(folder / "large.py", "".join("x%d = '%s'\n" % (n, "y" * 200) for n in range(2000)))
    compiled(folder / "exact.py", "")
    for name in ("package", "both", "package/inner", "package/py.typed"):
        compiled(folder / name / "__init__.py", "")
    compiled(folder / "both.py")
    compiled(folder / "folder_and_file.py")
    (folder / "folder_and_file").mkdir()
    (folder / "namespace").mkdir()
    (folder / "module.py").mkdir()
    (folder / "init_is_a_folder" / "__init__.py").mkdir(parents=True)
    (folder / "extension_is_a_folder").with_suffix(EXTENSION_SUFFIXES[0]).mkdir()
    (folder / "only_pycache" / "__pycache__").mkdir(parents=True)
    for number, suffix in enumerate(EXTENSION_SUFFIXES):
        (folder / ("extension%d%s" % (number, suffix))).write_bytes(b"")
        (folder / ("extension%d.py" % number)).write_text("")
        (folder / ("all" + suffix)).write_bytes(b"")
    (folder / "extension_package").mkdir()
    (folder / "extension_package" / ("__init__" + EXTENSION_SUFFIXES[0])).write_bytes(b"")
    (folder / "nothing.txt").write_text("")
    (folder / "uncompiled.py").write_text("")
    (folder / "linked.py").symlink_to("plain.py")
    (folder / "linked_package").symlink_to("package")
    (folder / "dangling.py").symlink_to("absent")
    (folder / "loop.py").symlink_to("loop.py")
    (folder / "linked_to_folder.py").symlink_to("package")
    os.mkfifo(folder / "pipe.py")
    compiled(folder / "by_hash.py", mode=MODE.CHECKED_HASH)
    compiled(folder / "by_unchecked_hash.py", mode=MODE.UNCHECKED_HASH)
    bytecode = compiled(folder / "sourceless.py")
    shutil.copy(bytecode, folder / "sourceless.pyc")
    (folder / "sourceless.py").unlink()
    compiled(folder / "gone.py")
    (folder / "gone.py").unlink()
    compiled(folder / "stale.py")
    os.utime(folder / "stale.py", (1, 1))
    compiled(folder / "longer.py")
    status = (folder / "longer.py").stat()
    (folder / "longer.py").write_text("x = 100000\n")
    os.utime(folder / "longer.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    patched(compiled(folder / "other_magic.py"), 0, b"\0\0\r\n")
    patched(compiled(folder / "other_flags.py"), 4, b"\4")
    os.truncate(compiled(folder / "no_bytecode.py"), 0)
    os.truncate(compiled(folder / "half_a_head.py"), 9)
    os.truncate(compiled(folder / "half.py"), 30)
    os.truncate(compiled(folder / "only_a_head.py"), 16)
    bytecode = compiled(folder / "bytecode_is_a_folder.py")
    bytecode.unlink()
    bytecode.mkdir()
    bytecode = compiled(folder / "linked_bytecode.py")
    bytecode.rename(folder / "elsewhere")
    bytecode.symlink_to(folder / "elsewhere")
    for year in (1901, 2150):
        file = folder / ("of_%d.py" % year)
        file.write_text("")
        os.utime(file, ((year - 1970) * 365.25 * 86400,) * 2)
        py_compile.compile(str(file), doraise=True)
    return folder


def names_in(folder):
    stems = {name.partition(".")[0] for name in os.listdir(folder)}
    return sorted(stems | {"absent", "case", "PLAIN", "", "__init__", "a/b", "package/inner", "\udcff", "null\0"})


# What is odd about the folders themselves; importlib is asked as they stand.
PLACES = {
    "alone": lambda odd: [str(odd)],
    "after another": lambda odd: [str(odd / "package"), str(odd)],
    "twice": lambda odd: [str(odd), str(odd)],
    "after an absent one": lambda odd: [str(odd / "absent"), str(odd)],
    "in one with a link": lambda odd: [str(odd / "linked_package"), str(odd)],
    "with two slashes": lambda odd: [str(odd.parent) + "//odd"],
    "by a detour": lambda odd: [str(odd) + "/package/.."],
    "before a namespace's portion": lambda odd: [str(odd), str(odd / "only_pycache"), str(odd)],
}


@pytest.mark.parametrize("place", PLACES)
def test_in_an_odd_folder_it_finds_and_reads_what_importlib_does(odd, place):
    folders = PLACES[place](odd)
    names = names_in(odd)
    answers = found(names, folders)
    for name, answer in zip(names, answers):
        assert answer == expected(name, folders), name
    kinds = {answer and answer[0] for answer in answers}
    assert kinds == {None, "missing", "namespace", "source", "extension"}


# What the core does not look into, whatever is in it.
OTHERS = {
    "with a slash at its end": lambda odd: str(odd) + "/",
    "relative": lambda odd: odd.name,
    "current": lambda odd: str(odd)[:0],
    "a file": lambda odd: str(odd / "plain.py"),
    "a pipe": lambda odd: str(odd / "pipe.py"),
    "a loop": lambda odd: str(odd / "loop.py"),
    "below a file": lambda odd: str(odd / "plain.py" / "x"),
    "too long": lambda odd: str(odd / ("x" * 5000)),
    "with a null": lambda odd: str(odd) + "/x\0y",
}


@pytest.mark.parametrize("place", OTHERS)
def test_what_is_no_ordinary_folder_is_left_to_importlib(odd, place, monkeypatch):
    monkeypatch.chdir(odd.parent)
    assert found(["plain", "absent"], [OTHERS[place](odd)]) == [None, None]
    assert found(["plain"], [str(odd), OTHERS[place](odd)])[0][0] == "source"


def test_what_cannot_be_read_is_left_to_importlib(odd):
    (odd / "package").chmod(0)
    os.chmod(importlib.util.cache_from_source(odd / "plain.py"), 0)
    if os.access(odd / "package", os.R_OK):
        pytest.skip("this user may read everything")
    assert [answer and answer[0] for answer in found(["package", "plain", "both"], [str(odd)])] == [
        None,
        None,
        "source",
    ]
    odd.chmod(0o300)
    assert found(["both"], [str(odd)]) == [None]
    odd.chmod(0o700)


def test_bytecode_is_read_below_the_prefix_for_it(odd, tmp_path, monkeypatch):
    prefix = str(tmp_path / "prefix")
    monkeypatch.setattr(sys, "pycache_prefix", prefix)
    compiled(odd / "plain.py", "moved = 1\n")
    names = names_in(odd)
    answers = found(names, [str(odd)], prefix)
    for name, answer in zip(names, answers):
        assert answer == expected(name, [str(odd)]), name
    (code,) = [answer[3] for answer in answers if answer is not None and answer[0] == "source"]
    assert marshal.loads(code).co_names == ("moved",)


def test_folders_are_listed_once_and_told_of(odd):
    modules = _core.Modules(_imp.extension_suffixes(), MAGIC, TAG, None)
    modules.find([([str(odd), str(odd / "absent")], ["plain", "package", "nothing"], False)]).wait()
    modules.list([str(odd / "namespace"), str(odd / "plain.py")])
    known = modules.folders()
    assert known[str(odd / "absent")] == (None, frozenset())
    assert known[str(odd / "namespace")] == ((odd / "namespace").stat().st_mtime_ns, frozenset())
    assert set(known) == {str(odd), *(str(odd / name) for name in ("absent", "package", "namespace"))}
    assert known[str(odd)][1] == {name.partition(".")[0] for name in os.listdir(odd)}
    compiled(odd / "new.py")
    assert modules.find([([str(odd)], ["new"], False)]).wait()[0] == [("missing", None, None, None, None)]


def test_answers_come_beside_what_the_caller_does(tmp_path):
    modules = _core.Modules(_imp.extension_suffixes(), MAGIC, TAG, None)
    finding = modules.find([([str(tmp_path)], ["absent%d" % n for n in range(100)], False)], beside=True)
    deadline = time.monotonic() + 60
    while not finding.is_done():
        assert time.monotonic() < deadline, "nobody waits for it, and it does not come"
    assert len(finding.wait()[0]) == 100
    while len(os.listdir("/proc/self/task")) > threading.active_count():
        assert time.monotonic() < deadline, "its threads do not end"
    assert finding.is_done()
    with pytest.raises(RuntimeError, match="taken before"):
        finding.wait()
