"""The import statements of compiled code, read from its bytecode without executing anything.

Only the root needs this, so it is not delivered: `opcode` is a module of the standard library that is read from disk.
"""

import opcode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any

_IMPORT_NAME = opcode.opmap["IMPORT_NAME"]
_LOAD_CONST = opcode.opmap["LOAD_CONST"]
_LOAD_SMALL_INT = opcode.opmap.get("LOAD_SMALL_INT")  # from 3.14 on, for the level
_LOAD_COMMON_CONSTANT = opcode.opmap.get("LOAD_COMMON_CONSTANT")  # from 3.15 on, for the None of a plain import
_COMMON_CONSTANTS = getattr(opcode, "_common_constants", ())
_EXTENDED_ARG = opcode.EXTENDED_ARG


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


def imports_of(code: "CodeType") -> "Iterator[tuple[str, tuple[str, ...] | None, int, bool]]":
    """Yield (name, fromlist or None, level, nested) of each import statement in `code` and in the code nested in it.

    `nested` is False for what is executed with `code` itself, True for what stands in a function or class.
    """
    code_type = type(code)
    pending = [code]
    for inner in pending:  # grows meanwhile
        consts = inner.co_consts
        pending += [const for const in consts if type(const) is code_type]
        names = inner.co_names
        if not names:
            continue
        bytecode = inner.co_code
        at = bytecode.find(_IMPORT_NAME)
        while at >= 0:
            # Instructions are two bytes wide and inline caches are zero in co_code: an even offset is an operation.
            if not at & 1:
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
                    yield names[argument >> _FLAG_BITS], operands[0], operands[1], inner is not code
            at = bytecode.find(_IMPORT_NAME, at + 1)
