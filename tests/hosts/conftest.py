"""Fixtures for tests on several hosts. Each test's own folder is shared by all nodes, at the same place."""

import os

import pytest
from hosts.cluster import Cluster, unavailable


@pytest.fixture(scope="session")
def new_cluster(tmp_path_factory):
    """Start a cluster that ends with the `with` block; for tests that break it, or need other settings."""
    reason = unavailable()
    if reason and os.environ.get("TEST_HOSTS") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)

    def start(hosts=4, **settings):
        return Cluster(hosts, writable=[tmp_path_factory.getbasetemp()], **settings)

    return start


@pytest.fixture(scope="session")
def _four_hosts(new_cluster):
    with new_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(_four_hosts):
    """Four hosts, for tests that leave them as they found them."""
    _four_hosts.filesystem.reset()
    return _four_hosts
