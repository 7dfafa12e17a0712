"""What the pages of docs/how-to show does what they say: every program on them is run as they say."""

import re

import mpi as mpis
import pytest

PAGES = sorted((mpis.ROOT / "docs" / "how-to").glob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_programs_of_a_page_run(two_mpis, tmp_path, page):
    env = {"PATH": "%s:%s/bin:/usr/bin:/bin" % (mpis.BIN, two_mpis.prefix), **two_mpis.env, "MPIIMPORT_TIMEOUT": "10"}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            (tmp_path / re.match(r"# (\S+)\n", text)[1]).write_text(text)
        else:
            result = mpis.run(["sh", "-ec", text], env=env, cwd=tmp_path)
            assert (result.returncode, result.stdout, result.stderr) == (0, "3\n" * 3, ""), (text, result)
