"""The scan finds the import statements that are in the bytecode, and no others."""

import dis
import opcode
import sysconfig
from pathlib import Path

import pytest

from mpiimport import scan

STANDARD_LIBRARY = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def imports_by_dis(code, *, nested=False):
    """Return what `imports_of` should, as dis sees it."""
    found = []
    loads = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            level, fromlist = loads[-2:]
            found.append((instruction.argval, fromlist, level, nested))
        elif instruction.opname.startswith("LOAD_"):
            loads.append(instruction.argval)
    for constant in code.co_consts:
        if type(constant) is type(code):
            found += imports_by_dis(constant, nested=True)
    return found


@pytest.mark.parametrize("part", range(4))
def test_the_standard_library_is_read_as_dis_reads_it(part):
    read = 0
    for file in STANDARD_LIBRARY[part::4]:
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        expected = imports_by_dis(code)
        assert sorted(scan.imports_of(code), key=repr) == sorted(expected, key=repr), file.name
        read += len(expected)
    assert read > 100


def test_every_form_of_import_is_found():
    source = """
import a, b.c as d
from . import e
from ..f import g as h, i
from j import *
def function():
    import k
    class Class:
        from l.m import n
        lambda: __import__("not an import statement")
"""
    assert sorted(scan.imports_of(compile(source, "<test>", "exec")), key=repr) == sorted(
        [
            ("a", None, 0, False),
            ("b.c", None, 0, False),
            ("", ("e",), 1, False),
            ("f", ("g", "i"), 2, False),
            ("j", ("*",), 0, False),
            ("k", None, 0, True),
            ("l.m", ("n",), 0, True),
        ],
        key=repr,
    )


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
