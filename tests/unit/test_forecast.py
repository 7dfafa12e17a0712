"""The forecast foresees what code may import, without executing it."""

import random
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from mpiimport import answers
from mpiimport.forecast import Forecast, standard_names
from mpiimport.opening import Opening


@pytest.fixture
def foresee(tmp_path, monkeypatch):
    """Return a function that foresees what code may import, given the texts of modules by their paths."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def foresee(program, limit_s=60.0, *, installed=False, **texts):
        for path, text in texts.items():
            file = tmp_path / (path + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        environment = (sys.prefix + "/", sys.base_prefix + "/")
        forecast = Forecast(Opening((*environment, str(tmp_path) + "/") if installed else environment), limit_s)
        forecast.follow_code(compile(program, "<test>", "exec"), "")
        forecast.finish()
        return {fullname for _, fullname in forecast.opening.answers}

    return foresee


def not_standard(names):
    return {name for name in names if name.partition(".")[0] not in standard_names()}


def test_imports_in_functions_and_from_packages_are_followed(foresee):
    found = foresee(
        "import one",
        one="def f():\n    from package import sub, name\n    import package.other\nraise SystemExit('executed')\n",
        **{
            "package/__init__": "from .relative import *\nname = 1\n",
            "package/relative": "from . import sibling\n",
            "package/sibling": "from .. import beyond\n",
            "package/sub": "import absent, sys\n",
            "package/other": "",
            "package/unused": "",
        },
    )
    assert not_standard(found) == {
        "one",
        "package",
        "package.relative",
        "package.sibling",
        "package.sub",
        "package.other",
    }


@pytest.mark.parametrize("installed", [True, False])
def test_what_an_installed_package_imports_optionally_is_left_out(foresee, installed):
    found = foresee(
        "import package\ndef f():\n    import wanted\n",
        installed=installed,
        wanted="",
        needed="",
        optional="",
        **{
            "package/__init__": "import needed\ndef f():\n    import package.own, wave, optional\n",
            "package/own": "",
        },
    )
    assert "wave" in found
    assert not_standard(found) == {"package", "package.own", "needed", "wanted", *([] if installed else ["optional"])}


def test_what_an_installed_package_imports_is_left_out_where_it_is_not_likely(foresee):
    found = foresee(
        "import package",
        installed=True,
        another="",
        likely="",
        **{
            "package/__init__": "import package.part\ndef __getattr__(name):\n    import package.lazy\n",
            "package/part": "def f():\n    import package.possible\n",
            "package/possible": "import package.below, wave, another\ndef f():\n    import package.never\n",
            "package/below": "",
            "package/never": "",
            "package/lazy": "import likely\ndef f():\n    import package.possible_too\n",
            "package/possible_too": "",
        },
    )
    assert "wave" in found
    assert not_standard(found) == {
        "package",
        "package.part",
        "package.possible",
        "package.below",
        "package.lazy",
        "likely",
        "package.possible_too",
    }


def test_what_sysconfig_imports_by_a_computed_name_is_foreseen(foresee):
    assert sysconfig._get_sysconfigdata_name() in foresee("import sysconfig")


@pytest.mark.parametrize("program", ["import known, package._native", "import package._native, known"])
def test_what_native_code_names_is_foreseen_if_its_package_is_likely(foresee, tmp_path, program):
    (tmp_path / "package").mkdir()
    names = (
        "package._named",
        "package.absent",
        "package._native.member",
        "known.named",
        "other.named",
        "see package._it",
    )
    code = "const char *names[] = {%s};" % ", ".join('"%s"' % name for name in names)
    native = tmp_path / "package" / ("_native" + EXTENSION_SUFFIXES[0])
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", native], input=code, text=True, check=True, timeout=60
    )
    found = foresee(
        program,
        installed=True,
        wave_too="",
        **{
            "package/__init__": "def f():\n    import package._rarely\n",
            "package/_named": "import wave_too",
            "package/_it": "",
            "package/_rarely": "",
            "known/__init__": "",
            "known/named": "",
            "other/__init__": "",
            "other/named": "",
        },
    )
    assert not_standard(found) == {
        "package",
        "package._native",
        "package._named",
        "package._rarely",
        "wave_too",
        "known",
        "known.named",
    }


@pytest.mark.parametrize("program", ["import package, later", "import later, package"])
def test_what_turns_out_to_be_likely_is_followed_as_such(foresee, program):
    found = foresee(
        program,
        installed=True,
        another="",
        **{
            "package/__init__": "def f():\n    import package.part, other.sub\n",
            "package/part": "import another\ndef f():\n    import package.possible\n",
            "package/possible": "",
            "later": "import between",
            "between": "import package.part, other",
            "other/__init__": "",
            "other/sub": "",
        },
    )
    assert not_standard(found) == {
        *("package", "package.part", "package.possible", "another", "later", "between", "other", "other.sub")
    }


def test_imports_may_be_nested_deeper_than_calls(foresee):
    deep = sys.getrecursionlimit()
    texts = {"deep%d" % n: "def f():\n    import deep%d\n" % (n + 1) for n in range(deep)}
    for above in (0, 1):  # whether a call more or less is what is too much
        found = nested(above, lambda: foresee("import deep0", **texts))
        assert len(not_standard(found)) == deep


def nested(depth, function):
    return function() if depth == 0 else nested(depth - 1, function)


def test_bytecode_that_no_compiler_made_is_no_error():
    chance = random.Random(1)
    code = compile("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a import b, c\n", "<test>", "exec")
    for _ in range(2000):
        altered = bytearray(code.co_code)
        for _ in range(chance.randrange(1, 5)):
            altered[chance.randrange(1, len(altered), 2)] = chance.randrange(256)  # an argument; Python trusts these
        Forecast(Opening(()), 60.0).follow_code(code.replace(co_code=bytes(altered)), "")


def test_an_unreadable_module_is_left_to_each_rank(foresee):
    foresee("import wrong, right", wrong="this is no Python", right="")
    forecast = Forecast(Opening(()), 60.0)
    forecast.follow_name("wrong")
    forecast.finish()
    assert {name: found.kind for (_, name), found in forecast.opening.answers.items()}["wrong"] == answers.LOCAL


def test_a_python_without_bytecode_foresees_too(foresee, monkeypatch):
    monkeypatch.setattr(sys.implementation, "cache_tag", None)
    assert not_standard(foresee("import one", one="import two", two="")) == {"one", "two"}


def test_it_stops_at_its_time_limit(foresee):
    assert foresee("import one", limit_s=0.0, one="") == set()
