"""The import statements of compiled code, read from its bytecode without executing anything.

Only the root needs this, so it is not delivered: `opcode` is a module of the standard library that is read from disk.
"""

import opcode
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any

#: When an import statement is executed: with its module (in a class body too), when the module is asked for an
#: attribute that it does not have (in its `__getattr__`), when some other function is called. Or, in native code: there
#: is the name of a module, and no telling what for.
WITH_MODULE, FOR_ATTRIBUTE, IN_FUNCTION, NAMED = range(4)

_IMPORT_NAME = opcode.opmap["IMPORT_NAME"]
_LOAD_CONST = opcode.opmap["LOAD_CONST"]
_LOAD_SMALL_INT = opcode.opmap.get("LOAD_SMALL_INT")  # from 3.14 on, for the level
_LOAD_COMMON_CONSTANT = opcode.opmap.get("LOAD_COMMON_CONSTANT")  # from 3.15 on, for the None of a plain import
_COMMON_CONSTANTS = getattr(opcode, "_common_constants", ())
_EXTENDED_ARG = opcode.EXTENDED_ARG
_OPTIMIZED = 1  # the flag that functions have and class bodies have not, `inspect.CO_OPTIMIZED`

# How `TYPE_CHECKING` is loaded: by operation, how many low bits of its argument are flags. And how it is tested.
_LOADS = {
    opcode.opmap["LOAD_NAME"]: 0,
    opcode.opmap["LOAD_GLOBAL"]: int(sys.version_info >= (3, 11)),
    opcode.opmap["LOAD_ATTR"]: int(sys.version_info >= (3, 12)),
}
_JUMP = opcode.opmap.get("POP_JUMP_FORWARD_IF_FALSE", opcode.opmap.get("POP_JUMP_IF_FALSE"))  # the former in 3.11
_JUMPS_FROM_HERE = _JUMP in opcode.hasjrel
_JUMP_UNIT = 2 if sys.version_info >= (3, 10) else 1
_AFTER_LOAD = (0, _EXTENDED_ARG, opcode.opmap.get("TO_BOOL"))  # 0 for inline caches; the last from 3.13 on


def _instruction(bytecode: bytes, end: int) -> "tuple[int, int, int]":
    """Decode the instruction that ends at the offset `end`: operation, argument, offset of its first byte."""
    start = end - 2
    operation = bytecode[start]
    argument = bytecode[start + 1]
    shift = 8
    while start >= 2 and bytecode[start - 2] == _EXTENDED_ARG:
        start -= 2
        argument |= bytecode[start + 1] << shift
        shift += 8
    return operation, argument, start


def _flag_bits() -> int:
    """Return how many low bits of IMPORT_NAME's argument say lazy or eager (PEP 810): none before 3.15.

    In the sample, `b` is name 1: the highest bit of the last import's argument is the lowest of the name.
    """
    sample = compile("import a; import b", "<sample>", "exec").co_code
    offsets = [at for at in range(0, len(sample), 2) if sample[at] == _IMPORT_NAME]
    return _instruction(sample, offsets[-1] + 2)[1].bit_length() - 1


_FLAG_BITS = _flag_bits()


def imports_of(
    code: "CodeType", *, with_calls: bool = False
) -> "Iterator[tuple[str, tuple[str, ...] | None, int, int]]":
    """Yield (name, fromlist or None, level, when) of each import statement in `code` and in the code nested in it.

    `when` is `WITH_MODULE`, `FOR_ATTRIBUTE` or `IN_FUNCTION`. What stands below `if TYPE_CHECKING:` is left out. If
    `with_calls`, constants that may be names of modules count too, where `import_module` or `__import__` is called.
    Raises IndexError where no compiler of Python made the bytecode.
    """
    code_type = type(code)
    pending = [(code, WITH_MODULE)]
    for inner, when in pending:  # grows meanwhile
        consts = inner.co_consts
        for const in consts:
            if type(const) is code_type:
                pending.append((const, _when(const, inner) if when == WITH_MODULE else when))
        names = inner.co_names
        if not names:
            continue
        if with_calls and ("import_module" in names or "__import__" in names):
            yield from ((name, None, level, when) for name, level in _names_among(consts))
        bytecode = inner.co_code
        at = bytecode.find(_IMPORT_NAME)
        skipped = _for_type_checkers(bytecode, names) if at >= 0 and "TYPE_CHECKING" in names else ()
        while at >= 0:
            # Instructions are two bytes wide and inline caches are zero in co_code: an even offset is an operation.
            if not at & 1 and not (skipped and any(start <= at < end for start, end in skipped)):
                _, argument, start = _instruction(bytecode, at + 2)
                operands: list[Any] = []
                while len(operands) < 2 and start >= 2:
                    operation, operand, start = _instruction(bytecode, start)
                    if operation == _LOAD_CONST:
                        operands.append(consts[operand])
                    elif operation == _LOAD_SMALL_INT:
                        operands.append(operand)
                    elif operation == _LOAD_COMMON_CONSTANT:
                        operands.append(_COMMON_CONSTANTS[operand])
                    else:
                        break
                if len(operands) == 2:
                    fromlist, level = operands
                    if type(level) is int and (fromlist is None or _are_names(fromlist)):
                        yield names[argument >> _FLAG_BITS], fromlist, level, when
            at = bytecode.find(_IMPORT_NAME, at + 1)


def _are_names(fromlist: object) -> bool:
    return type(fromlist) is tuple and all(type(name) is str for name in fromlist)


def _when(code: "CodeType", outer: "CodeType") -> int:
    """Return when code is executed that stands in `outer`, which is executed with its module.

    The body of a generic class (PEP 695) is in a function that is called at once.
    """
    if not code.co_flags & _OPTIMIZED or code.co_name.startswith("<generic "):
        return WITH_MODULE
    return FOR_ATTRIBUTE if code.co_name == "__getattr__" and outer.co_name == "<module>" else IN_FUNCTION


def _names_among(consts: "tuple[object, ...]") -> "Iterator[tuple[str, int]]":
    """Yield (name, level) of the constants that may be names of modules."""
    for const in consts:
        for name in const if type(const) is tuple else (const,):
            if type(name) is str:
                absolute = name.lstrip(".")
                if all(part.isidentifier() for part in absolute.split(".")):
                    yield absolute, len(name) - len(absolute)


def _for_type_checkers(bytecode: bytes, names: "tuple[str, ...]") -> "list[tuple[int, int]]":
    """List (start, end) of the parts of bytecode that stand below `if TYPE_CHECKING:`, which is False at run time."""
    found = []
    name = names.index("TYPE_CHECKING")
    for operation, flag_bits in _LOADS.items():
        load = bytes((operation, name << flag_bits & 255))
        at = bytecode.find(load)
        while at >= 0:
            if not at & 1 and _instruction(bytecode, at + 2)[1] == name << flag_bits:
                found.append(_jump(bytecode, at + 2))
            at = bytecode.find(load, at + 1)
    return found


def _jump(bytecode: bytes, at: int) -> "tuple[int, int]":
    """Return what the condition before the offset `at` jumps over if it is false: (start, end), equal if nothing."""
    argument = 0
    while bytecode[at] in _AFTER_LOAD:
        argument = (argument | bytecode[at + 1]) << 8 if bytecode[at] == _EXTENDED_ARG else 0
        at += 2
    start = at + 2
    if bytecode[at] != _JUMP:
        return start, start
    argument = (argument | bytecode[at + 1]) * _JUMP_UNIT
    return start, start + argument if _JUMPS_FROM_HERE else argument
