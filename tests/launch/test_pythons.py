"""mpiimport works with each Python version that it supports; the main one gets all other tests, too."""

import json
import re
from collections import Counter

import pytest
from pythons import VERSIONS, environment_of
from reports import check_agreement, records
from snapshots import assert_same_start

RANKS = 2

STANDARD = """
    import sys
    import asyncio, concurrent.futures, email.message, email.parser, json, sqlite3, xml.dom.minidom

    async def later():
        await asyncio.sleep(0)
        return 2

    values = [
        json.loads("[1]")[0],
        asyncio.run(later()),
        concurrent.futures.ThreadPoolExecutor().submit(int, "3").result(),
        int(email.parser.Parser().parsestr("To: 4").get("To")),
        sqlite3.connect(":memory:").execute("select 5").fetchone()[0],
        int(xml.dom.minidom.parseString("<a>6</a>").firstChild.firstChild.data),
    ]
"""
NUMPY = """
    import numpy.fft
    from mpi4py import MPI
    values.append(round(float(abs(numpy.fft.fft(numpy.ones(7)))[0])))
    values.append(MPI.COMM_WORLD.allreduce(4))
"""
REPORT = """
    def about(module):
        spec = getattr(module, "__spec__", None)
        path = getattr(module, "__path__", None)
        return [
            getattr(module, "__file__", None),
            getattr(module, "__cached__", None),
            getattr(module, "__package__", None),
            None if path is None else list(path),
            None if spec is None else [spec.name, spec.origin, spec.cached, spec.parent, spec.has_location],
        ]

    modules = {name: about(module) for name, module in list(sys.modules.items()) if name != "__main__"}
    stats = sys.mpiimport.stats() if hasattr(sys, "mpiimport") else None
    with open("%s/%s.json" % (sys.argv[1], sys.argv[2]), "w") as file:
        json.dump([values, modules, stats], file)
"""
"""Each rank writes a file: what it computed, where its modules are from, and what mpiimport did."""


@pytest.fixture(scope="module", params=VERSIONS)
def environment(request):
    """An environment of each version in turn, with mpi4py and numpy."""
    return environment_of(request.param)


def reports(environment, folder, executable, program, env):
    """Run a program that ends with `REPORT` on all ranks and return what they wrote."""
    folder.mkdir()
    rank = 'exec "$0" "$1" "$2" "$PMI_RANK"'
    result = environment.run(RANKS, "sh", "-c", rank, executable, program, folder, env=env)
    assert result.returncode == 0, result
    return [json.loads((folder / ("%d.json" % rank)).read_text()) for rank in range(RANKS)]


def assert_same_imports(environment, folder, program, expected_values, *, env=None, not_needed=()):
    """Compare what a program that ends with `REPORT` does with what it does under plain Python, on every rank.

    `not_needed` are modules that plain Python may have imported and we not.
    """
    plain = reports(environment, folder / "plain", environment.python, program, env)
    ours = reports(environment, folder / "ours", environment.python_mpi, program, env)
    for (values, modules, stats), (plain_values, plain_modules, _) in zip(ours, plain):
        assert values == plain_values == expected_values
        assert len(stats["missed"]) <= 15, stats["missed"]
        assert stats["modules"]["opening"] > 50
        assert {*plain_modules} - {*modules} <= {*not_needed}
        common = {*plain_modules} & {*modules}
        assert {name: modules[name] for name in common} == {name: plain_modules[name] for name in common}


def test_the_start_leaves_what_plain_python_leaves(environment, tmp_path):
    assert_same_start(environment, tmp_path, env={"SNAPSHOT_CHILDREN": "1"})


def test_the_standard_library_is_delivered(environment, tmp_path, script):
    assert_same_imports(environment, tmp_path, script(STANDARD + REPORT), [1, 2, 3, 4, 5, 6])


def test_numpy_is_delivered(environment, tmp_path, script):
    reason = environment.bin.parent / "no-numpy"
    if reason.exists():
        pytest.skip("numpy has no wheel for this version: %s" % reason.read_text())
    assert_same_imports(environment, tmp_path, script(STANDARD + NUMPY + REPORT), [1, 2, 3, 4, 5, 6, 7, 4 * RANKS])


RAISES = """
    import json, sys, traceback
    import email.message
    for name in ("broken", "raises", "nothing"):
        try: __import__(name)
        except Exception: traceback.print_exc()
    stats = sys.mpiimport.stats() if hasattr(sys, "mpiimport") else None
    sys.stdout.write(json.dumps(stats) + "\\n")
    sys.stdout.flush()
"""


def test_a_report_agrees_with_what_ranks_say_and_leaves_tracebacks_as_they_are(environment, tmp_path, script):
    program = script(RAISES)
    script("x = (\n", "broken.py")
    script("import raises_too\n", "raises.py")
    script("1 / 0\n", "raises_too.py")
    plain = environment.run(1, environment.python, program)
    env = {"MPIIMPORT_REPORT": str(tmp_path / "report.json")}
    result = environment.run(RANKS, environment.python_mpi, program, env=env)
    assert result.returncode == plain.returncode == 0, result
    frames = [line for line in plain.stderr.splitlines() if line]
    assert Counter(result.stderr.splitlines()) == {line: RANKS * count for line, count in Counter(frames).items()}
    report = json.loads((tmp_path / "report.json").read_text())
    check_agreement(report, [json.loads(line) for line in result.stdout.splitlines()])
    found = {one["name"]: one["error"] for one in records(report, 1) if one["error"]}
    assert found.items() >= {"broken": "SyntaxError", "raises": "ZeroDivisionError"}.items()


ERRORS = {
    "script": ["sample_main.py", "a"],
    "command": ["-c", "import sample_main"],
    "command of several lines": ["-c", "import sample_waits\n\ndef f():\n    return 1 / 0\n\nprint(\n    f())\n"],
    "module": ["-m", "sample_main", "a"],
    "missing": ["-c", "import sample_waits\nimport sample_that_is_missing"],
    "code without a file": ["-c", "import sample_waits; exec('\\n\\n\\n1 / 0')"],
    "script with code without a file": ["sample_exec.py"],
}


@pytest.mark.parametrize("arguments", ERRORS.values(), ids=ERRORS)
def test_an_uncaught_error_reads_as_in_plain_python(environment, tmp_path, script, arguments):
    script("import os, time\nwhile os.environ['PMI_RANK'] != os.environ['FAILS']: time.sleep(0.1)\n", "sample_waits.py")
    script("def fail(depth):\n    return fail(depth - 1) if depth else int('no number')\n", "sample_that_fails.py")
    script("import sample_waits\nimport sample_that_fails\n\nprint(sample_that_fails.fail(2))\n", "sample_main.py")
    script("import sample_waits\nexec('\\n\\n\\n1 / 0')\n", "sample_exec.py")
    plain = environment.run(1, environment.python, *arguments, cwd=tmp_path, env={"FAILS": "0"})
    ours = environment.run(RANKS, environment.python_mpi, *arguments, cwd=tmp_path, env={"FAILS": "1"})
    assert plain.returncode == 1 == ours.returncode
    text, _, rest = ours.stderr.partition("mpiimport: ")
    assert text == plain.stderr
    assert re.match(r"rank 1 on \S+ ended with \w+Error; ending the job with status 1\.\n", rest)
    assert "mpiimport: " not in rest


STARTED = """
    import sys

    sys.pth_lines = getattr(sys, "pth_lines", [])

    def begin():
        sys.pth_lines.append("begin")

    class Class:
        @staticmethod
        def method():
            sys.pth_lines.append("method")

    def fail():
        raise ValueError("of a .start file")
"""


def test_start_files_have_their_effect_on_every_rank(tmp_path, script):
    environment = environment_of("3.15").copied(tmp_path / "environment")
    files = {
        "a.pth": b"extra\nimport sys; sys.pth_lines = ['a line that the .start file replaces']\n",
        "a.start": b"# a comment\n\nsample_of_start:begin\nsample_of_start:Class.method\n",
        "b.pth": b"import sys; sys.pth_lines = ['a line without a .start file']\nmissing\n",
        "c.start": b"sample_of_start:fail\nno entry point\nsample_missing:begin\njson.tool:main.missing\n",
        "d.start": b"\xef\xbb\xbfsample_of_start:begin\n",
        "e.start": b"caf\xe9:begin\n",
        ".f.start": b"sample_of_start:begin\n",
    }
    for name, content in files.items():
        (environment.site_packages / name).write_bytes(content)
    (environment.site_packages / "g.start").symlink_to("nowhere")
    script(STARTED, "environment/lib/python3.15/site-packages/extra/sample_of_start.py")
    ours, said = assert_same_start(environment, tmp_path)
    for snapshot in ours:
        assert snapshot["sys"]["pth_lines"] == ["a line without a .start file", "begin", "method", "begin"]
    assert len(said) == 1, said
    assert "g.start" in said[0]


@pytest.mark.parametrize("statement", ["import", "lazy import"])
def test_lazy_imports_are_delivered(tmp_path, script, statement):
    environment = environment_of("3.15")
    wait = "    import time; time.sleep(0.2 * int(sys.argv[2]))\n"
    lazily = STANDARD.replace("    import asyncio", wait + "    %s asyncio" % statement)
    lazily += "    lazy import sample_missing\n    lazy from xml.dom import pulldom, missing\n"
    env = {"PYTHON_LAZY_IMPORTS": "all" if statement == "import" else "normal"}
    not_needed = ("stat", "_stat")  # a leaf does not look at the files for which `site` needs them
    values = [1, 2, 3, 4, 5, 6]
    assert_same_imports(environment, tmp_path, script(lazily + REPORT), values, env=env, not_needed=not_needed)


LAZY = """
    import importlib.util, json, sys, traceback

    lazy import sample_one, sample_package.part, wave
    lazy from sample_package import other as renamed, missing
    lazy import sample_fails, sample_nothing

    rank = int(sys.argv[2])
    values = []

    def use(action):
        try:
            values.append(str(action()))
        except Exception:
            values.append(traceback.format_exc())
        values.append([name for name in sys.modules if name.startswith("sample") or name == "wave"])

    uses = [
        lambda: sample_one.VALUE,
        lambda: sample_package.part.VALUE,
        lambda: renamed.VALUE,
        lambda: missing,
        lambda: sample_fails.VALUE,
        lambda: sample_nothing.VALUE,
        lambda: wave.__name__,
    ]
    for action in uses[rank:] + uses[:rank] if rank % 2 else uses[4 - rank :: -1]:
        use(action)
"""


def test_lazy_imports_may_be_used_first_in_another_order_by_each_rank(tmp_path, script):
    environment = environment_of("3.15")
    script("import sys\nVALUE = sorted(name for name in sys.modules if name.startswith('sample'))\n", "sample_one.py")
    script("1 / 0\n", "sample_fails.py")
    script("lazy from . import other\nVALUE = 'package'\n", "sample_package/__init__.py")
    script("lazy import sample_one\nVALUE = sample_one.VALUE\n", "sample_package/part.py")
    script("from . import part\nVALUE = part.__name__\n", "sample_package/other.py")
    program = script(LAZY + REPORT)
    plain = [values for values, _, _ in reports(environment, tmp_path / "plain", environment.python, program, {})]
    ours = [values for values, _, _ in reports(environment, tmp_path / "ours", environment.python_mpi, program, {})]
    assert ours == plain
    assert ours[0] != ours[1]
    assert "ZeroDivisionError" in str(ours[0])
