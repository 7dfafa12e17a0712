"""What the pages show is what happens: their programs are written and their commands run, in the order of each page.

A block of sh is run by a shell in a folder of the page's own, with the variables that earlier ones export. A block of
python is a file, whose name is in its first line. A block of text is what the block of sh before it prints: words with
digits in them may differ, and `...` may be anything. `<!-- not run: why -->` stands above what cannot be run here.
"""

import re

import pytest
from mpi import BIN, MPICH, ROOT, run

PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
ELSEWHERE = ("install",)
"""What tests/launch/test_installation.py runs."""

BLOCK = re.compile(r"(?:^<!-- (not run: [^\n]+) -->\n)?^```(sh|python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RANKS = ("-n 4096 ", "-n 3 ")
"""What the pages say, and what there is room for here."""

SCRIPT = """
import sys
from mpi4py import MPI
if sys.mpiimport.stats()["size"] != MPI.COMM_WORLD.size or MPI.COMM_WORLD.size == 1:
    sys.exit("mpiimport does not know the ranks")
"""
"""The program that pages call script.py."""


def pattern(text):
    """Return a regular expression for what may be printed."""
    varies = (r"(?s:.*)", r"\s*", r"\w+")
    return re.sub(
        r"(\.\.\.)|(\s+)|(\w*\d\w*)|.",
        lambda part: varies[part.lastindex - 1] if part.lastindex else re.escape(part[0]),
        text.strip(),
    )


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in ELSEWHERE], ids=lambda page: page.stem)
def test_what_a_page_shows_is_what_happens(tmp_path, page):
    text = page.read_text()
    blocks = BLOCK.findall(text)
    assert text.count("\n```") == 2 * len(blocks), "a block of another kind"
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {
        **MPICH.env,
        "PATH": "%s:%s/bin:/usr/bin:/bin" % (BIN, MPICH.prefix),
        "HOME": str(tmp_path),
        "MPIIMPORT_PROFILE": "",
        "MPIIMPORT_SCAN": "",
    }
    result, exports = None, ""
    for refused, language, body in blocks:
        if refused:
            continue
        if language == "python":
            (tmp_path / re.match(r"# (\S+)\n", body)[1]).write_text(body)
        elif language == "sh":
            result = run(["sh", "-ec", exports + body.replace(*RANKS)], env=env, cwd=tmp_path)
            exports += "".join(re.findall(r"^export .*\n", body, re.MULTILINE))
            assert result.returncode == 0, (body, result)
            assert not result.stderr or " -v" in body, (body, result)
        else:
            assert re.fullmatch(pattern(body), result.stdout.strip()), (body, result)
