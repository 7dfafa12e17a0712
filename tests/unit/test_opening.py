"""An opening gives the answers that it was made with, as long as what they rest on is unchanged."""

import importlib.util
import marshal
import os
import shutil
import time
import zipfile

import pytest

from mpiimport import _core, answers
from mpiimport.answers import EXTENSION, LOCAL, MISSING, NAMESPACE, SOURCE
from mpiimport.opening import Opening, Received


@pytest.fixture
def folder(tmp_path):
    """A folder with a module of each kind."""
    (tmp_path / "package").mkdir()
    (tmp_path / "portion").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("kind = 'package'\n")
    (tmp_path / "module.py").write_text("kind = 'module'\n")
    (tmp_path / "wrong.py").write_text("this is no Python\n")
    shutil.copy(importlib.util.find_spec("_ctypes_test").origin, tmp_path)
    return tmp_path


def made(folders, *names, stable=()):
    """Return an opening with the answers for these names, after a journey."""
    folders = list(map(str, folders))
    opening = Opening(stable)
    for folder in folders:
        opening.list_folder(folder)
    for name in names:
        opening.add(name, answers.ask(name, folders, stable, writes_bytecode=False)[0])
    return Received(b"".join(opening.pack()))


def ask(opening, name, *folders):
    """Return the kind of the answer, None if the opening has none."""
    answer = opening.answer(name, list(map(str, folders)))
    return None if answer is None else answer.kind


def write(file, text):
    """Write a file, at a time that differs from before even where the clock is coarse."""
    file.write_text(text)
    for path in (file, file.parent):
        later = path.stat().st_mtime_ns + 10**9
        os.utime(path, ns=(later, later))


def test_every_kind_of_answer_survives_the_journey(folder):
    names = {"module": SOURCE, "package": SOURCE, "_ctypes_test": EXTENSION, "portion": NAMESPACE, "wrong": LOCAL}
    opening = made([folder], *names)
    for name, kind in names.items():
        answer = opening.answer(name, [str(folder)])
        expected = answers.ask(name, [str(folder)], (), writes_bytecode=False)[0]
        assert answer.kind == kind
        assert (answer.origin, answer.locations, answer.path) == (expected.origin, expected.locations, expected.path)
        assert (None if answer.code is None else bytes(answer.code)) == expected.code
    code = _core.decompress(bytes(opening.answer("module", [str(folder)]).code))
    assert marshal.loads(code).co_consts[0] == "module"
    assert opening.answer("package", [str(folder)]).locations == [str(folder / "package")]
    assert opening.answer("portion", [str(folder)]).locations == [str(folder / "portion")]


def test_code_can_stay_behind(folder):
    opening = Opening(())
    opening.extra = ("something", [1, b"2"])
    opening.add("module", answers.ask("module", [str(folder)], (), writes_bytecode=False)[0])
    received = Received(b"".join(opening.pack(with_code=False)))
    answer = received.answer("module", [str(folder)])
    assert (answer.code, answer.origin) == (None, str(folder / "module.py"))
    assert received.extra == opening.extra


def test_a_name_that_is_in_no_listing_is_missing(folder, tmp_path_factory):
    elsewhere, absent = tmp_path_factory.mktemp("elsewhere"), folder / "absent"
    opening = made([folder, absent])
    assert ask(opening, "other", folder, absent) == MISSING
    assert ask(opening, "other.sub", folder) == MISSING
    assert ask(opening, "module", folder) is None
    assert ask(opening, "other", folder, elsewhere) is None


def test_what_is_no_folder_is_not_known(folder):
    archive = folder / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped.py", "")
    (folder / "text").write_text("")
    opening = made([archive, folder / "text"])
    assert ask(opening, "zipped", archive) is None
    assert ask(opening, "zipped", folder / "text") is None


def test_an_answer_is_for_the_folders_that_were_searched(folder, tmp_path_factory):
    first = tmp_path_factory.mktemp("first")
    opening = made([folder], "module")
    assert ask(opening, "module", folder) == SOURCE
    assert ask(opening, "module", first, folder) is None


@pytest.mark.parametrize("name", ["module", "package", "portion"])
def test_a_module_that_comes_to_stand_before_another_is_seen(folder, tmp_path_factory, name):
    first = tmp_path_factory.mktemp("first")
    opening = made([first, folder], name)
    assert ask(opening, name, first, folder) in (SOURCE, NAMESPACE)
    write(first / "unrelated.py", "")
    assert ask(opening, name, first, folder) in (SOURCE, NAMESPACE)
    write(first / (name + ".py"), "")
    assert ask(opening, name, first, folder) is None


def test_a_package_whose_own_folder_is_searched_too_is_not_taken_for_one_of_its_modules(folder, tmp_path_factory):
    first = tmp_path_factory.mktemp("first")
    opening = made([folder / "package", first, folder], "package")
    assert ask(opening, "package", folder / "package", first, folder) == SOURCE
    write(first / "package.py", "")
    assert ask(opening, "package", folder / "package", first, folder) is None


def test_a_changed_file_is_seen(folder):
    opening = made([folder], "module", "package")
    write(folder / "module.py", "kind = 'changed'\n")
    write(folder / "package" / "__init__.py", "kind = 'changed'\n")
    assert ask(opening, "module", folder) is None
    assert ask(opening, "package", folder) is None


def test_a_removed_module_is_seen(folder):
    opening = made([folder], "module", "package")
    (folder / "module.py").unlink()
    shutil.rmtree(folder / "package")
    assert ask(opening, "module", folder) is None
    assert ask(opening, "package", folder) is None


def test_a_missing_module_that_is_written_is_seen(folder):
    opening = made([folder], "module")
    assert ask(opening, "other", folder) == MISSING
    write(folder / "unrelated.py", "")
    assert ask(opening, "other", folder) == MISSING
    write(folder / "other.py", "")
    assert ask(opening, "other", folder) is None


def test_the_environment_is_taken_not_to_change(folder):
    opening = made([folder], "module", stable=(str(folder) + "/",))
    write(folder / "module.py", "kind = 'changed'\n")
    write(folder / "other.py", "")
    assert ask(opening, "module", folder) == SOURCE
    assert ask(opening, "other", folder) == MISSING


class Text(str):
    """A string, but not to marshal."""


def test_the_folders_searched_are_those_that_the_import_system_searches(folder, monkeypatch):
    monkeypatch.chdir(folder)
    relative = ["/absolute", "", "relative/sub", ".", folder, None, Text("/text"), Text("text")]
    absolute = ["/absolute", str(folder), *("%s/%s" % (folder, name) for name in ("relative/sub", ".")), "/text"]
    assert answers.searched(relative) == [*absolute, "%s/text" % folder]
    assert marshal.dumps(answers.searched(relative))
    assert answers.searched(("/absolute", "/other")) == ["/absolute", "/other"]
    monkeypatch.setattr("sys.path", ["/absolute", "relative"])
    assert answers.searched(None) == ["/absolute", "%s/relative" % folder]
    shutil.rmtree(folder)
    assert answers.searched(relative) == ["/absolute", "/text"]


def test_bytecode_is_written_only_where_it_should(folder):
    long_ago = time.time() - 60
    os.utime(folder / "module.py", (long_ago, long_ago))
    for writes in (False, True):
        answers.ask("module", [str(folder)], (), writes_bytecode=writes)
        assert (folder / "__pycache__").exists() is writes
