"""The forecast foresees what code may import, without executing it."""

import sys

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


def test_imports_may_be_nested_deeper_than_calls(foresee):
    deep = sys.getrecursionlimit()
    texts = {"deep%d" % n: "def f():\n    import deep%d\n" % (n + 1) for n in range(deep)}
    for above in (0, 1):  # whether a call more or less is what is too much
        found = nested(above, lambda: foresee("import deep0", **texts))
        assert len(not_standard(found)) == deep


def nested(depth, function):
    return function() if depth == 0 else nested(depth - 1, function)


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
