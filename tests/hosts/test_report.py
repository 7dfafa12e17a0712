"""The report of several hosts, as a page: small, quick to open, and right. TEST_PICTURE=FILE.png keeps a picture."""

import json
import os
import re
from pathlib import Path

import mpi as mpis
import pytest
from browser import PROGRAM as CHROMIUM
from browser import Browser
from reports import check_agreement, data_of

PACKAGES = """
    import json, os, sys
    import scipy.interpolate, pandas, matplotlib.pyplot
    stats = sys.mpiimport.stats()
    with open("stats-%d.json" % stats["rank"], "w") as file:
        json.dump(stats, file)
"""
SMALL = "import decimal\nprint('done')\n"


def test_four_hosts_are_reported_on_one_page(cluster, script, tmp_path):
    page = tmp_path / "report.html"
    launch = cluster.mpi(mpis.MPICH, 2, env={"MPLCONFIGDIR": tmp_path, "OMP_NUM_THREADS": 1})
    cluster.filesystem.set(service_us=20, latency_us=100)
    script(PACKAGES, "simulate.py")
    command = 'cd "$0" && exec python-mpi --report report.html simulate.py'
    result = cluster.run([*launch, "sh", "-c", command, tmp_path])
    assert (result.returncode, result.stderr) == (0, ""), result
    report = data_of(page)
    check_agreement(report, [json.loads((tmp_path / ("stats-%d.json" % rank)).read_text()) for rank in range(8)])
    assert (report["size"], report["hosts"], len(report["details"])) == (8, 4, 8)
    assert page.stat().st_size < 3e6
    delivered = {row[0]: row[2] for row in report["modules"]["rows"]}
    assert delivered["scipy.linalg._fblas"] == "extension"
    extensions = [row for one in report["details"] for row in one["records"]["rows"] if row[13]]
    assert extensions, "native code was copied to the hosts, so that its size is known"
    if CHROMIUM is None:
        pytest.skip("needs Chromium to look at the page, which is right otherwise")
    with Browser(tmp_path / "browser", height=1000) as browser:
        assert browser.open(page) < 2
        assert browser.console == []
        text = browser.value("document.body.innerText")
        assert "8 on 4 hosts" in text
        assert "%d questions" % report["totals"]["missed"] in text
        assert re.search(r"estimated\n%s\n" % format(int(report["operations"]["avoided"]), ","), text)
        if os.environ.get("TEST_PICTURE"):
            browser.picture(Path(os.environ["TEST_PICTURE"]), height=1500)


def test_a_full_disk_is_said_in_one_sentence_when_the_program_has_succeeded(cluster, script):
    def on_first_host(command):
        assert cluster.run(["sh", "-c", command], on="h0").returncode == 0

    on_first_host("mkdir /tmp/small && mount -t tmpfs -o size=64k small /tmp/small")
    try:
        env = {"MPIIMPORT_REPORT": "/tmp/small/report.html"}
        result = cluster.run(
            [*cluster.mpi(mpis.OPENMPI, 1, hosts=cluster.hosts[:2], env=env), "python-mpi", script(SMALL)]
        )
        on_first_host('[ -z "$(ls -A /tmp/small)" ]')
    finally:
        on_first_host("umount /tmp/small && rmdir /tmp/small")
    assert (result.returncode, result.stdout) == (0, "done\ndone\n"), result
    said = "mpiimport: cannot write the report `/tmp/small/report.html`: No space left on device."
    assert result.stderr.count("mpiimport") == result.stderr.count(said) == 1, result
