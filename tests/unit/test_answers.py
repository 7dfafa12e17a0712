"""Compiling what may never be imported leaves nothing behind, and breaks nothing."""

import sys
import textwrap

from mpi import run

PROGRAM = """
    import gc, sys
    from mpiimport import answers

    for name in ("first", "second"):
        assert answers.ask(name, [sys.argv[1]], (), writes_bytecode=False)[1] is not None
        gc.collect()
        assert "unicodedata" not in sys.modules
        assert eval(r"'\\N{MINUS SIGN}'") == chr(0x2212)
        sys.modules.pop("unicodedata", None)
    import unicodedata
    assert unicodedata.name(eval(r"'\\N{MINUS SIGN}'")) == "MINUS SIGN"
"""


def test_names_of_characters_are_known_after_source_was_compiled(tmp_path):
    for name in ("first", "second"):
        (tmp_path / (name + ".py")).write_text("sign = '\\N{MINUS SIGN}'\nGröße = 1\n", encoding="utf-8")
    result = run([sys.executable, "-B", "-I", "-c", textwrap.dedent(PROGRAM), tmp_path])
    assert result.returncode == 0, result
