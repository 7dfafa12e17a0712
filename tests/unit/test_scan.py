"""The scan finds the import statements that are in the bytecode, and no others."""

import dis
import inspect
import opcode
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from mpiimport import scan
from mpiimport.scan import FOR_ATTRIBUTE, IN_FUNCTION, WITH_MODULE

STANDARD_LIBRARY = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def imports_by_dis(code, when=WITH_MODULE):
    """Return what `imports_of` should, as dis sees it."""
    found = []
    loads = []
    skipped_until = -1
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME" and instruction.offset >= skipped_until:
            level, fromlist = loads[-2:]
            found.append((instruction.argval, fromlist, level, when))
        elif instruction.opname.startswith("LOAD_"):
            loads.append(instruction.argval)
        elif instruction.opname in ("POP_JUMP_IF_FALSE", "POP_JUMP_FORWARD_IF_FALSE") and loads[-1] == "TYPE_CHECKING":
            skipped_until = instruction.argval
    if {"__import__", "import_module"}.intersection(code.co_names):
        strings = [one for const in code.co_consts for one in (const if isinstance(const, tuple) else [const])]
        names = [one for one in strings if isinstance(one, str) and re.fullmatch(r"\.*[^\W\d]\w*(\.[^\W\d]\w*)*", one)]
        found += [(one.lstrip("."), None, len(one) - len(one.lstrip(".")), when) for one in names]
    for inner in code.co_consts:
        if type(inner) is type(code):
            inside = when
            if when == WITH_MODULE and inner.co_flags & inspect.CO_OPTIMIZED:
                inside = FOR_ATTRIBUTE if (code.co_name, inner.co_name) == ("<module>", "__getattr__") else IN_FUNCTION
            found += imports_by_dis(inner, inside)
    return found


@pytest.mark.parametrize("part", range(4))
def test_the_standard_library_is_read_as_dis_reads_it(part):
    read = 0
    for file in STANDARD_LIBRARY[part::4]:
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        expected = imports_by_dis(code)
        assert sorted(scan.imports_of(code, with_calls=True), key=repr) == sorted(expected, key=repr), file.name
        read += len(expected)
    assert read > 100


def imports_in(source, **options):
    return sorted(scan.imports_of(compile(source, "<test>", "exec"), **options), key=repr)


def test_every_form_of_import_is_found():
    source = """
import a, b.c as d
from . import e
from ..f import g as h, i
from j import *
class Outer:
    import in_class
    class Inner:
        from deeper import name
    def __getattr__(self, name):
        import for_an_instance
def function():
    import k
    class Class:
        from l.m import n
def __getattr__(name):
    import lazy
    def inner():
        import lazy.too
"""
    assert imports_in(source) == sorted(
        [
            ("a", None, 0, WITH_MODULE),
            ("b.c", None, 0, WITH_MODULE),
            ("", ("e",), 1, WITH_MODULE),
            ("f", ("g", "i"), 2, WITH_MODULE),
            ("j", ("*",), 0, WITH_MODULE),
            ("in_class", None, 0, WITH_MODULE),
            ("deeper", ("name",), 0, WITH_MODULE),
            ("for_an_instance", None, 0, IN_FUNCTION),
            ("k", None, 0, IN_FUNCTION),
            ("l.m", ("n",), 0, IN_FUNCTION),
            ("lazy", None, 0, FOR_ATTRIBUTE),
            ("lazy.too", None, 0, FOR_ATTRIBUTE),
        ],
        key=repr,
    )


def test_names_that_are_given_to_calls_are_found():
    source = """
import importlib
for name in ("needed", "needed.too"):
    __import__(name)
def function():
    "Import what is needed."
    return importlib.import_module(".relative", __package__), importlib.import_module(f"computed.{name}")
def other():
    return "no name of a module"
"""
    functions = ("function", "other")  # constants too, before 3.11
    assert [one[0] for one in imports_in(source)] == ["importlib"]
    assert [one for one in imports_in(source, with_calls=True) if one[0] not in ("importlib", *functions)] == [
        ("needed", None, 0, WITH_MODULE),
        ("needed.too", None, 0, WITH_MODULE),
        ("relative", None, 1, IN_FUNCTION),
    ]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs PEP 695")
def test_the_body_of_a_generic_class_is_executed_with_its_module():
    source = "class Generic[T]:\n    import with_module\n    def method(self):\n        import in_function\n"
    assert [one[0::3] for one in imports_in(source)] == [("in_function", IN_FUNCTION), ("with_module", WITH_MODULE)]


@pytest.mark.parametrize("names_before", [0, 300])
def test_what_is_for_type_checkers_is_left_out(names_before):
    source = "".join("name%d = 0\n" % n for n in range(names_before))
    source += """
import typing
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import checked.a
    from checked import b
if typing.TYPE_CHECKING:
    import checked.c
else:
    import kept.a
if not TYPE_CHECKING:
    import kept.b
class Class:
    if TYPE_CHECKING:
        %s
        import checked.d
    import kept.c
def function():
    print(typing)
    if TYPE_CHECKING:
        import checked.e
    import kept.d
TYPE_CHECKING = print(TYPE_CHECKING)
import kept.e
""" % "; ".join(["print()"] * 300)
    assert [one[0] for one in imports_in(source) if one[0] != "typing"] == ["kept." + name for name in "abcde"]


def test_names_and_constants_beyond_the_first_256_are_found():
    lines = ["name%d = 'constant%d'" % (n, n) for n in range(70000)]
    lines += ["import module%d\nfrom package%d import attribute%d" % (n, n, n) for n in range(3)]
    found = [one[:3] for one in scan.imports_of(compile("\n".join(lines), "<test>", "exec"))]
    assert found == [
        one for n in range(3) for one in (("module%d" % n, None, 0), ("package%d" % n, ("attribute%d" % n,), 0))
    ]


def test_an_argument_that_looks_like_an_import_is_none():
    load, imports = opcode.opmap["LOAD_CONST"], opcode.opmap["IMPORT_NAME"]
    lines = ["name%d = 'constant%d'" % (n, n) for n in range(256)]
    lines.append("name0 = name%d, name%d, name%d" % (load, load, imports))
    assert list(scan.imports_of(compile("\n".join(lines), "<test>", "exec"))) == []
