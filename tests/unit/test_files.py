"""Files and folders that an opening has are answered from it, and as the filesystem would answer."""

import errno
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
import zipfile
from importlib.machinery import PathFinder

import pytest

from mpiimport.files import LIMIT_BYTES, foresee
from mpiimport.loader import DeliveredLoader
from mpiimport.opening import Opening, Received
from mpiimport.session import Session
from site_mpi.boot import Settings

ENTRY_POINTS = "[group]\r\nname = module:value\r\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with a distribution, a package with data and a few other things."""
    folder = tmp_path / "environment"
    files = {
        "sample-1.0.dist-info/METADATA": "Name: sample\nVersion: 1.0\n",
        "sample-1.0.dist-info/entry_points.txt": ENTRY_POINTS,
        "bare-2.egg-info": "Name: bare\nVersion: 2\n",
        "package/__init__.py": "",
        "package/data.txt": "data\r\n",
        "package/LICENSE": "",
        "package/empty/data": "",
        "package/inner/__init__.py": "",
        "package/inner.libs/__init__.py": "",
        "package/module.py": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture
def session(folder, monkeypatch):
    """A session that answers below the folder, and keeps what is asked in `asked`."""
    monkeypatch.setattr(DeliveredLoader, "files", None)
    session = Session(Settings(stable=str(folder)), None)
    session.set_stable(())
    session.policy = "opening"
    session.asked = []
    session.note = lambda *fields: session.asked.append(fields)
    monkeypatch.setattr(sys, "meta_path", [session.finder, *sys.meta_path])
    monkeypatch.setattr(sys, "path_importer_cache", dict(sys.path_importer_cache))
    return session


def opened(questions, folder):
    """Return an opening made of these questions, after a journey."""
    opening = Opening((str(folder) + "/",))
    for question in dict.fromkeys(questions):
        foresee(opening, *question)
    return Received(b"".join(opening.pack()))


def copy_of(fullname, path, session):
    """Execute a module of the standard library once more, led to the session's files. Return it."""
    spec = PathFinder.find_spec(fullname, path)
    session.files.prepare(spec)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "exec_module" not in vars(spec.loader)
    return module


def find_distributions(module, paths):
    context = module.DistributionFinder.Context(path=list(map(str, paths)))
    return module.MetadataPathFinder.find_distributions(context)


def about_distributions(module, paths):
    found = list(find_distributions(module, paths))
    assert all(type(one) is module.PathDistribution for one in found)
    names = ("METADATA", "entry_points.txt", "", "missing.txt", "missing/file", "METADATA/below")
    return [[str(one._path), *(one.read_text(name) for name in names)] for one in found]


def about_modules(module, paths):
    found = list(module.iter_modules(list(map(str, paths)), "prefix."))
    return [(type(one.module_finder), one.module_finder.path, one.name, one.ispkg) for one in found]


def about_data(loader, folder):
    found = []
    for name in ("data.txt", "missing", "empty", "LICENSE/below"):
        try:
            found.append(loader.get_data(str(folder / "package" / name)))
        except OSError as cause:
            found.append((type(cause), cause.args, cause.filename))
    return found


@pytest.fixture(params=["metadata", "pkgutil", "loader"])
def look(request, session, folder):
    """Each way to look at the folder: a function that does it in plain Python's way, and one in ours."""
    if request.param == "metadata":
        module = copy_of("importlib.metadata", importlib.__path__, session)
        paths = (folder, folder / "missing", folder / "bare-2.egg-info")
        module.FastPath("").children()
        return lambda: about_distributions(importlib.metadata, paths), lambda: about_distributions(module, paths)
    if request.param == "pkgutil":
        module = copy_of("pkgutil", None, session)
        paths = (folder, folder / "package", folder / "package" / "inner.libs", folder / "missing")
        return lambda: about_modules(pkgutil, paths), lambda: about_modules(module, paths)
    origin = str(folder / "package" / "__init__.py")
    delivered = DeliveredLoader("package", origin, b"")
    plain = importlib.machinery.SourceFileLoader("package", origin)
    return lambda: about_data(plain, folder), lambda: about_data(delivered, folder)


def forget():
    """Forget what plain Python has in its caches."""
    importlib.metadata.MetadataPathFinder().invalidate_caches()
    sys.path_importer_cache.clear()


def test_answers_are_those_of_the_filesystem_and_come_from_the_opening(session, folder, look, monkeypatch):
    plain, ours = look
    expected = plain()
    forget()
    assert ours() == expected
    session.finder.openings = [opened(session.asked, folder)]
    forget()
    folder.rename(folder.with_name("moved"))
    assert ours() == expected, "from the opening: the folder is gone"
    session.stopped = True
    forget()
    assert ours() == plain() != expected
    session.stopped = False
    assert ours() == expected
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[1:])
    forget()
    assert ours() == plain(), "the finder is not installed"


def test_after_invalidation_the_filesystem_is_asked(session, folder, look):
    plain, ours = look
    ours()
    session.finder.openings = [opened(session.asked, folder)]
    before = ours()
    (folder / "sample-1.0.dist-info").rename(folder / "sample-2.dist-info")
    (folder / "package" / "data.txt").write_text("other")
    (folder / "package" / "more.py").write_text("")
    assert ours() == before
    importlib.invalidate_caches()
    assert ours() == plain() != before


def test_what_is_outside_the_environment_is_not_foreseen(session, folder, tmp_path):
    (tmp_path / "outside").write_text("")
    (folder / "large").write_bytes(bytes(LIMIT_BYTES + 1))
    os.mkfifo(folder / "pipe")
    names = ["../outside", "large", "pipe", "nul\0", "x" * 300, "package/../../outside"]
    paths = [str(tmp_path / "outside"), *("%s/%s" % (folder, name) for name in names)]
    for path in paths:
        assert session.files.read(path) is None
    assert opened([("file", path) for path in paths], folder).files == {}
    assert {path for _, path in session.asked} == {
        "%s/%s" % (folder, name) for name in names if "/../" not in "/" + name
    }
    assert opened([("folder", str(tmp_path)), ("folder", str(folder / ".."))], folder).folders == {}


def test_errors_are_answers(folder):
    names = {"missing": errno.ENOENT, "bare-2.egg-info/METADATA": errno.ENOTDIR, "package": errno.EISDIR}
    opening = opened([("file", "%s/%s" % (folder, name)) for name in names], folder)
    assert [opening.file("%s/%s" % (folder, name)) for name in names] == list(names.values())
    folders = {"missing": errno.ENOENT, "bare-2.egg-info": errno.ENOTDIR, "package/empty": ["data"]}
    opening = opened([("folder", "%s/%s" % (folder, name)) for name in folders], folder)
    assert [opening.folder("%s/%s" % (folder, name)) for name in folders] == list(folders.values())


def test_text_that_is_no_utf8_is_the_same_error(session, folder):
    module = copy_of("importlib.metadata", importlib.__path__, session)
    path = folder / "sample-1.0.dist-info"
    (path / "METADATA").write_bytes(b"Name: \xff\n")
    session.finder.openings = [opened([("file", str(path / "METADATA"))], folder)]
    with pytest.raises(UnicodeDecodeError, match="byte 0xff in position 6"):
        module.Distribution.at(path).read_text("METADATA")


def test_archives_are_found_as_ever(session, folder):
    with zipfile.ZipFile(folder / "archive.egg", "w") as archive:
        archive.writestr("EGG-INFO/PKG-INFO", "Name: archived\nVersion: 3\n")
    module = copy_of("importlib.metadata", importlib.__path__, session)
    session.finder.openings = [opened([("folder", str(folder / "archive.egg"))], folder)]
    (found,) = find_distributions(module, [folder / "archive.egg"])
    assert (found.version, found.metadata["Name"]) == ("3", "archived")


def test_a_foreign_hook_for_folders_is_asked(session, folder, monkeypatch):
    def hook(path):
        raise asked.append(path) or ImportError

    asked = []
    monkeypatch.setattr(sys, "path_hooks", [hook, *sys.path_hooks])
    module = copy_of("pkgutil", None, session)
    session.finder.openings = [opened([("folder", str(folder))], folder)]
    module.get_importer(str(folder))
    assert asked == [str(folder)]


def test_source_and_bytecode_are_read_from_their_files(session, folder):
    loader = DeliveredLoader("package", str(folder / "package" / "__init__.py"), b"")
    loader.get_source("package")
    loader.delivered = None
    loader.get_code("package")
    loader.get_code("package")
    assert session.asked == []
