"""A report says what the ranks did, costs nothing where it is not wanted, and changes nothing in the program."""

import collections
import hashlib
import json
import os
import re
import shutil
import sys

import mpi as mpis
import pytest
from browser import PROGRAM as CHROMIUM
from browser import Browser
from found import write
from reports import check_agreement, data_of, records, rows

STATS = """
def stats():
    counts = sys.mpiimport.stats()
    sys.stdout.write(json.dumps(counts) + "\\n")
    sys.stdout.flush()
"""
IMPORTS = """\
import importlib, importlib.util, json, sys, threading
import decimal, plain, package.inner, _ctypes_test
for name in ("portion.of", "package.absent", "nothing", "broken", "raises"):
    try: importlib.import_module(name)
    except Exception: pass
importlib.util.find_spec("package.gone")
thread = threading.Thread(target=lambda: __import__("xml.dom.minidom"))
thread.start()
thread.join()
if sys.mpiimport.stats()["rank"] == 1: import wave
importlib.reload(plain)
"""
HEADINGS = ["Where the time went, per rank", "How questions were answered, per rank", "Slowest ranks"]
HEADINGS += ["Slowest modules, imports inside them left out", "Not foreseen"]
HOSTILE = "</script><script>document['title']='bad'</script><!--\u2028\N{SNOWMAN}"
AS_NAME = HOSTILE.replace("/", "|")


@pytest.fixture
def modules(tree):
    """The environment of the program that imports all kinds of modules, and finds some of them broken."""
    write(tree / "second/broken.py", "x = (\n")
    write(tree / "second/raises.py", "import colorsys\nimport warnings\nwarnings.warn('told', stacklevel=2)\n1 / 0\n")
    return {"PYTHONPATH": str(tree / "second"), "MPIIMPORT_STABLE": str(tree)}


def run_json(mpi, ranks, *argv, file, env, launcher="python-mpi"):
    """Run a program; return the report and what the ranks said of themselves."""
    result = mpi.run(ranks, launcher, *argv, env={**env, "MPIIMPORT_REPORT": str(file)})
    assert result.returncode == 0, result
    assert "mpiimport" not in result.stderr, result
    return json.loads(file.read_text()), [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("mpi", "policy"),
    [*((mpi, "opening") for mpi in mpis.ALL), (mpis.MPICH, "lockstep"), (mpis.MPICH, "locate")],
    ids=str,
)
def test_the_figures_are_those_that_each_rank_gives(mpi, policy, modules, script, tmp_path):
    text = IMPORTS if policy != "lockstep" else IMPORTS.replace('if sys.mpiimport.stats()["rank"] == 1: ', "")
    env = {**modules, "MPIIMPORT_POLICY": policy, "PYTHONHASHSEED": "0", "MPIIMPORT_STORE": "always"}
    report, stats = run_json(mpi, 3, script(text + STATS + "stats()"), file=tmp_path / "report.json", env=env)
    check_agreement(report, stats)
    assert (report["format"], report["version"], report["policy"]) == ("mpiimport report", 1, policy)
    assert (report["size"], report["hosts"], len(report["details"])) == (3, 1, 3)
    of_leaf = {one["name"]: one for one in records(report, 1) if one["is_import"]}
    errors = {name: one["error"] for name, one in of_leaf.items() if one["error"]}
    expected = {"package.absent": "ModuleNotFoundError", "nothing": "ModuleNotFoundError", "broken": "SyntaxError"}
    assert errors.items() >= {**expected, "raises": "ZeroDivisionError"}.items()
    assert of_leaf["xml.dom.minidom"]["thread"] != of_leaf["decimal"]["thread"]
    kinds = {name: of_leaf[name]["kind"] for name in ("plain", "_ctypes_test", "portion", "sys") if name in of_leaf}
    assert kinds == {"plain": "source", "_ctypes_test": "extension", "portion": "namespace"}
    delivered = {"opening": "opening", "locate": "opening", "lockstep": "lockstep"}[policy]
    assert of_leaf["plain"]["answer"] == delivered
    assert of_leaf["plain"]["origin"].endswith("second/plain.py")
    assert of_leaf["_ctypes_test"]["dlopen_us"] > 0
    assert [of_leaf["plain"][name] for name in ("wait_us", "unmarshal_us")] != [0, 0] or policy == "locate"
    found = [one["name"] for one in records(report, 1) if not one["is_import"]]
    assert {"package.gone", "plain"} <= set(found), "find_spec and reload"
    slowest = report["slowest_modules"]
    assert [one["worst_us"] for one in slowest] == sorted((one["worst_us"] for one in slowest), reverse=True)


def test_what_was_missed_is_in_the_next_opening_if_there_is_a_profile(modules, script, tmp_path):
    path = script("import json, sys\n__import__('wa' + 've')\n" + STATS + "stats()")
    env = {**modules, "MPIIMPORT_PROFILE": str(tmp_path / "profile")}
    run = {"file": tmp_path / "report.json", "env": env}
    first, _ = run_json(mpis.MPICH, 2, path, **run)
    missed = {one["name"]: one for one in first["missed"]}
    assert missed["wave"]["ranks"] == [0, 1]
    assert all(one["in_next_opening"] for one in missed.values())
    second, _ = run_json(mpis.MPICH, 2, path, **run)
    assert second["missed"] == []
    third, _ = run_json(mpis.MPICH, 2, "--profile", "off", path, **run)
    assert not any(one["in_next_opening"] for one in third["missed"])


def test_what_a_bundle_delivers_is_reported_too(script, tmp_path):
    path = script("import decimal, json, sys\n" + STATS + "stats()")
    bundle = tmp_path / "program.mpib"
    made = mpis.run(["mpiimport", "bundle", "-o", bundle, path])
    assert made.returncode == 0, made
    argv = ["--bundle", bundle, "--validate", "none", path]
    report, stats = run_json(mpis.MPICH, 2, *argv, file=tmp_path / "report.json", env={})
    check_agreement(report, stats)
    answers = {one["name"]: one["answer"] for one in records(report, 0)}
    assert answers["decimal"] == "opening"


def test_of_many_ranks_all_are_counted_and_eight_told_in_detail(script, tmp_path):
    text = (
        "import json, sys, time\nif sys.mpiimport.stats()['rank'] == 5: __import__('wa' + 've')\n" + STATS + "stats()"
    )
    report, stats = run_json(mpis.MPICH, 11, script(text), file=tmp_path / "report.json", env={})
    check_agreement(report, stats)
    seconds = {row["rank"]: row["import_s"] for row in rows(report["ranks"]) if row["rank"] > 0}
    order = sorted(seconds, key=seconds.get)
    told = [one["rank"] for one in report["details"]]
    assert len(told) == 8
    assert {0, order[0], order[-1]} <= set(told)
    assert set(order[4:6]) & set(told), "the median"


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which CI has")
def test_the_operations_that_were_avoided_are_those_of_plain_python(script, tmp_path):
    sys.path.append(str(mpis.ROOT / "benchmarks"))
    import operations

    source = operations.PROGRAMS["matplotlib"]
    floors = operations.floors_of(mpis.MPICH, tmp_path)
    plain = operations.measure(mpis.MPICH, source, floors, tmp_path / "plain", ranks=("plain",))["plain"].counts
    path = script("import json, sys\n" + source + STATS + "stats()")
    report, _ = run_json(mpis.MPICH, 2, path, file=tmp_path / "report.json", env={})
    _, leaf = rows(report["ranks"])
    assert leaf["operations_avoided"] == report["operations"]["avoided"]
    assert 0.8 < leaf["operations_avoided"] / (plain["code"] + plain["folders"]) < 1.1


# What the program sees

SEES = """
import importlib, re, sys, traceback, warnings
warnings.simplefilter("always")
for name in ("broken", "raises", "nothing", "package.absent", "null", "bad_encoding", "not_native"):
    try: importlib.import_module(name)
    except Exception: traceback.print_exc()
try: import raises
except Exception: traceback.print_exc()
try: from package import absent
except ImportError: traceback.print_exc()
try: importlib.reload(sys.modules["warnings"]); import raises
except Exception: traceback.print_exc()
import shows
"""


SHOWS = """
import sys
frame = sys._getframe()
while frame:
    sys.stderr.write("%s %s\\n" % (frame.f_code.co_filename, frame.f_code.co_name))
    frame = frame.f_back
"""


def test_tracebacks_warnings_and_frames_are_those_of_plain_python(modules, tree, script, tmp_path):
    write(tree / "second/bad_encoding.py", "# coding: nothing-like-this\n")
    write(tree / "second/not_native.so", "no library")
    write(tree / "second/shows.py", SHOWS)
    (tree / "second/null.py").write_bytes(b"x = 1\0\n")
    path = script(SEES)
    env = {**modules, "PYTHONDONTWRITEBYTECODE": "1"}
    plain = mpis.run(["python", path], env=env)
    with_report = mpis.MPICH.run(2, "python-mpi", "--report", tmp_path / "x.json", path, env=env)
    without = mpis.MPICH.run(2, "python-mpi", path, env=env)
    assert with_report.returncode == plain.returncode == 0

    def seen(result):
        # Each rank writes for itself; importlib's own frames are as many as there are wrappers, at the end.
        lines = result.stderr.splitlines()
        return collections.Counter(line for line in lines if "<frozen " not in line and "<string>" not in line)

    assert "ZeroDivisionError" in plain.stderr
    assert "shows.py" in plain.stderr
    assert "mpiimport" not in with_report.stderr
    assert seen(with_report) == seen(without)
    assert {line: 2 * count for line, count in seen(plain).items()} == {
        line: count for line, count in seen(with_report).items() if "site_mpi" not in line
    }


def test_nothing_is_recorded_without_a_report(script):
    path = script(
        "import sys, _frozen_importlib as one, _frozen_importlib_external as two\n"
        "import importlib.machinery as three\n"
        "assert 'mpiimport.recorder' not in sys.modules\n"
        "functions = [*vars(one).values(), *vars(two).values(), *vars(two.SourceLoader).values()]\n"
        "assert not [f for f in functions if 'Recorder' in getattr(f, '__qualname__', '')]\n"
        "own = sys.modules['mpiimport.session'].current\n"
        "assert not {'tell', 'claim', 'forecast'} & {*vars(own), *vars(own.finder), *vars(own.misses)}\n"
    )
    result = mpis.MPICH.run(2, "python-mpi", path)
    assert result.returncode == 0, result


# Where it is written, and when it is not

ENDINGS = {
    "finalize": (["python-mpi"], "from mpi4py import MPI\nMPI.Finalize()\nimport wave\n", True),
    "install": (["python"], "from mpi4py import MPI\nimport mpiimport\nmpiimport.install()\nimport wave\n", True),
    "site_mpi": (["python", "-S"], "import site_mpi\nimport wave\n", True),
    "exit": (["python-mpi"], "import sys\nsys.exit(0)\n", True),
    "children": (["python-mpi"], "import os\nif os.fork() == 0: import wave; raise SystemExit\nos.wait()\n", True),
    "no-children": (["python-mpi"], "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n", True),
    "exception": (["python-mpi"], "import wave\n1 / 0\n", False),
    # It ends while rank 0 waits for it: where both end at the same moment, MPICH's exit code is the one or the other's.
    "exit-of-one": (
        ["python-mpi"],
        "import os, sys, time\nif sys.mpiimport.stats()['rank']:\n    time.sleep(0.5)\n    os._exit(3)\n",
        False,
    ),
}


@pytest.mark.parametrize(("launcher", "text", "is_made"), ENDINGS.values(), ids=ENDINGS)
def test_a_job_that_ends_well_makes_a_report(two_mpis, launcher, text, is_made, script, tmp_path):
    path = script(text)
    file = tmp_path / "report.json"
    env = {}
    if launcher == ["python", "-S"]:
        env["PYTHONPATH"] = mpis.run(
            ["python", "-c", "import site_mpi; print(site_mpi.PYTHONPATH)"], cwd="/"
        ).stdout.strip()
    with_report = two_mpis.run(2, *launcher, path, env={**env, "MPIIMPORT_REPORT": str(file)})
    assert file.exists() == is_made, with_report
    assert with_report.seconds < 30
    if is_made:
        assert with_report.returncode == 0, with_report
        assert with_report.stderr == ""
        report = json.loads(file.read_text())
        assert report["size"] == 2
        assert sum(one["is_import"] for one in records(report, 1)) > 0
    else:
        assert with_report.returncode == two_mpis.run(2, *launcher, path).returncode != 0
    assert [one.name for one in tmp_path.iterdir() if "report" in one.name] == ["report.json"] * is_made


@pytest.mark.parametrize("ranks", [None, 1, 2], ids=["no-launcher", "one-rank", "local"])
def test_a_process_without_others_reports_on_itself(ranks, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["python-mpi", "--report", "report.json", *["--policy=local"] * (ranks == 2), script("import decimal")]
    result = mpis.run(argv) if ranks is None else mpis.MPICH.run(ranks, *argv)
    assert (result.returncode, result.stderr) == (0, ""), result
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["size"], report["policy"], report["library"]) == (1, "local", None)
    found = {one["name"]: one for one in records(report, 0)}
    assert found["decimal"]["answer"] == "local"
    assert found["decimal"]["kind"] == "source"
    assert found["decimal"]["read_us"] > 0


PROBLEMS = {
    "no-folder": ("absent/report.json", "cannot write the report `absent/report.json`: No such file or directory"),
    "not-a-folder": ("program.py/x.json", "cannot write the report `program.py/x.json`: Not a directory"),
    "a-folder": ("folder.json", "cannot write the report `folder.json`: that is no file"),
    "a-pipe": ("pipe.json", "cannot write the report `pipe.json`: that is no file"),
    "no-right": ("/proc/report.json", "cannot write the report `/proc/report.json`: No such file or directory"),
    "name": ("report.pdf", "cannot write the report `report.pdf`: its name must end in .html, .json or .txt"),
    "bytes": (b"absent\xff/report.json", "cannot write the report `absent"),
}


@pytest.mark.parametrize("mpi", [None, mpis.MPICH, mpis.OPENMPI], ids=["no-launcher", "mpich", "openmpi"])
@pytest.mark.parametrize(("path", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_report_that_cannot_be_written_is_refused_before_the_program_runs(
    mpi, path, message, script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    env = {"MPIIMPORT_REPORT": path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path}
    argv = ["python-mpi", script("print('ran')")]
    result = mpis.run(argv, env=env) if mpi is None else mpi.run(2, *argv, env=env)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert len(re.findall("mpiimport: .*" + re.escape(message), result.stderr)) == 1, result
    assert "Traceback" not in result.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder.json", "pipe.json", "program.py"]


def test_a_disk_that_is_full_at_the_end_is_said_and_the_program_has_succeeded(script, tmp_path):
    (tmp_path / "report.html").write_text("old")
    path = script("import decimal\nprint('done')\n")
    limited = ["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", "python-mpi", "--report", tmp_path / "report.html", path]
    result = mpis.run(limited)
    assert (result.returncode, result.stdout) == (0, "done\n"), result
    assert result.stderr == "mpiimport: cannot write the report `%s/report.html`: File too large.\n" % tmp_path
    assert sorted(one.name for one in tmp_path.iterdir()) == ["program.py", "report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_report_is_written_where_a_link_leads(script, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to("folder/report.json")
    assert mpis.run(["python-mpi", "--report", tmp_path / "link.json", script("")]).returncode == 0
    assert json.loads((tmp_path / "folder/report.json").read_text())["size"] == 1
    assert (tmp_path / "link.json").is_symlink()


# Text and page


def test_a_text_fits_a_terminal_and_hostile_names_do_it_no_harm(modules, tree, script, tmp_path):
    name = "\x1b[31mred\n" + "long" * 40
    write(tree / "second" / (name + ".py"), "")
    path = script("import sys, time\n__import__(sys.argv[1])\n")
    result = mpis.MPICH.run(2, "python-mpi", "--report", tmp_path / "report.txt", path, name, env=modules)
    assert (result.returncode, result.stderr) == (0, ""), result
    text = (tmp_path / "report.txt").read_text()
    assert [line for line in text.splitlines() if len(line) > 100 or not line.isprintable()] == []
    assert [line for line in text.splitlines() if line in HEADINGS] == HEADINGS
    assert re.search(r"^2 ranks on 1 host, policy opening, MPICH", text, re.M)
    assert re.search(r"^  by an opening +\d+", text, re.M)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page and the JSON of the same program, whose names are hostile."""
    folder = tmp_path_factory.mktemp("page")
    (folder / (AS_NAME + ".py")).write_text("import decimal\n")
    (folder / "program.py").write_text("import sys, wave, colorsys\n__import__(sys.argv[1].replace('/', '|'))\n")
    argv = ["python-mpi", folder / "program.py", HOSTILE]
    reports = []
    for name in ("report.json", "report.html"):
        result = mpis.MPICH.run(3, *argv, env={"MPIIMPORT_REPORT": str(folder / name), "PYTHONPATH": str(folder)})
        assert (result.returncode, result.stderr) == (0, ""), result
        reports.append(folder / name)
    return reports


def test_the_page_is_one_file_and_holds_the_json_however_hostile_its_names(page):
    file, page = page
    of_page, report = data_of(page), json.loads(file.read_text())
    assert page.stat().st_size < 3e6
    assert of_page.keys() == report.keys()
    assert of_page["arguments"][-1] == report["arguments"][-1] == HOSTILE
    names = [{one["name"] for one in records(each, 1)} for each in (of_page, report)]
    assert names[0] == names[1]
    assert AS_NAME in names[0]
    assert page.read_text().count("</script>") == 3
    assert "default-src 'none'" in page.read_text()


def test_the_chart_library_is_the_one_that_was_published_with_its_licences():
    folder = mpis.ROOT / "mpiimport/page"
    digest, name = (folder / "echarts.sha256").read_text().splitlines()[-1].split()
    assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    version = re.search(r"ECHARTS := (\S+)", (mpis.ROOT / "Makefile").read_text())[1]
    assert "ECharts %s," % version in (folder / "echarts.sha256").read_text()
    assert "</script" not in (folder / name).read_text()
    assert {one.name for one in (folder / "licenses").iterdir()} == {"echarts", "echarts-notice", "d3", "zrender"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_works_without_network_in_light_and_dark_and_by_keyboard(page, tmp_path):
    page = page[1]
    report = data_of(page)
    with Browser(tmp_path) as browser:
        browser.open(page)
        assert browser.value("document.title") == "mpiimport report"
        text = browser.value("document.body.innerText")
        assert " ".join(report["arguments"]).split("\u2028")[0] in text
        assert "3 on 1 host" in text
        assert "%d questions" % report["totals"]["missed"] in text
        assert re.search(
            "operations avoided, estimated\n%s\n" % format(int(report["operations"]["avoided"]), ","), text
        )

        def shown(table):
            return browser.value("[...document.querySelectorAll('#%s tbody tr')].map(row => row.innerText)" % table)

        assert len(shown("ranks")) == 3
        assert [line.split("\t")[0].strip() for line in shown("missed")] == [one["name"] for one in report["missed"]]
        modules = {line.split("\t")[0].strip() for line in shown("modules")}
        expected = {one["name"] for one in records(report, 0)}
        assert len(modules) == min(200, len(expected))
        assert browser.value("document.querySelectorAll('#timeline canvas').length") > 0

        selected = "document.getElementById('selected').textContent"
        browser.value("document.getElementById('timeline').focus()")
        browser.press("ArrowRight", "ArrowDown")
        first = browser.value(selected)
        assert first.split(" · ")[0] == records(report, 0)[0]["name"]
        browser.press("ArrowRight", "Enter", "+", "-", "Escape")
        second = browser.value(selected)
        assert second != first
        browser.press("ArrowLeft")
        assert browser.value(selected) == first
        browser.press("/")
        assert browser.value("document.activeElement.id") == "search"
        browser.ask("Input.insertText", text="WAVE")
        assert {line.split("\t")[0].strip() for line in shown("modules")} == {"wave"}
        assert browser.value("location.hash").endswith("search=WAVE")
        browser.value("[...document.querySelectorAll('#modules button')].find(one => one.innerText == 'wave').click()")
        assert browser.value(selected).startswith("wave · ")

        browser.open(page, "#rank=2&beside=1")
        assert browser.value("document.getElementById('rank').value") == "2"
        assert "own time, rank 1" in browser.value("document.getElementById('modules').innerText")
        browser.open(page, "#rank=2")
        assert "own time, rank 1" not in browser.value("document.getElementById('modules').innerText")
        colours = []
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            style = "getComputedStyle(document.body)"
            colours.append([browser.value("%s.%s" % (style, name)) for name in ("backgroundColor", "color")])
        assert [[sum(map(int, re.findall(r"\d+", one))) > 380 for one in pair] for pair in colours] == [
            [True, False],
            [False, True],
        ]
        assert browser.console == []
        assert [one for one in browser.requests if not one.startswith(("file://%s" % page, "data:"))] == []
        assert browser.value("document.title") == "mpiimport report"
