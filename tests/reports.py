"""What a report says, read for tests."""

import collections
import json
import re

import pytest


def rows(table):
    """Return a table as dicts."""
    return [dict(zip(table["columns"], row)) for row in table["rows"]]


def records(report, rank):
    """Return the records of a rank in detail, each with its module."""
    (detail,) = (one for one in report["details"] if one["rank"] == rank)
    of_modules = rows(report["modules"])
    found = [{**of_modules[record["module"]], **record} for record in rows(detail["records"])]
    assert len(found) == rows(report["ranks"])[rank]["rows"]
    return found


def check_agreement(report, stats):
    """Check that the report of a job says what its ranks said themselves, and that it makes sense."""
    assert [row["rank"] for row in rows(report["ranks"])] == list(range(len(stats)))
    for row, said in zip(rows(report["ranks"]), sorted(stats, key=lambda one: one["rank"])):
        assert {name: row[name] for name in said["modules"]} == said["modules"]
        assert row["missed"] == len(said["missed"])
        same = ("host", "extensions", "sources_read", "foreseen", "broadcast_bytes")
        assert {name: row[name] for name in same} == {name: said[name] for name in same}
        if row["rank"] not in [one["rank"] for one in report["details"]]:
            continue
        found = records(report, row["rank"])
        assert sorted(one["name"] for one in found if one["missed"]) == sorted(said["missed"])
        counts = collections.Counter("missing" if one["kind"] == "missing" else one["answer"] for one in found)
        counts = {how: counts[how] for how in said["modules"]}
        assert counts == said["modules"]
        spent = {}
        for phase in ("find", "wait", "read", "unmarshal", "dlopen", "execute", "other"):
            spent[phase] = sum(one[phase + "_us"] for one in found) / 1e6
            assert row[phase + "_s"] == pytest.approx(spent[phase], abs=1e-6 * len(found))
        assert row["import_s"] == pytest.approx(sum(spent.values()), abs=1e-5 * len(found))
        assert row["failed"] == sum(one["error"] is not None for one in found)
        assert row["code_bytes"] == sum(one["bytes"] or 0 for one in found)
        assert (row["operations_avoided"] == 0) == (row["rank"] == 0)
        for one in found:
            assert 0 <= one["begin_us"] <= one["end_us"]
            if one["parent"] is not None:
                around = found[one["parent"]]
                assert around["begin_us"] <= one["begin_us"]
                assert one["end_us"] <= around["end_us"]
                assert one["thread"] == around["thread"]
    for name, total in report["totals"].items():
        assert total == pytest.approx(sum(row[name] for row in rows(report["ranks"])))


def data_of(page):
    """Return the JSON that a page holds."""
    text = page.read_text()
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(data)
