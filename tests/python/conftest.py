"""A running platform is named by WRENN_API_KEY and WRENN_BASE_URL; the client reads them itself."""

import os

import pytest
from wrenn import Capsule


def pytest_configure(config):
    for name in ("WRENN_API_KEY", "WRENN_BASE_URL"):
        if not os.environ.get(name):
            pytest.exit(f"{name} is not set: source the env file of a running platform", returncode=4)


@pytest.fixture(scope="session")
def capsule():
    """One capsule for every test that leaves it usable."""
    with Capsule(template="minimal", wait=True) as made:
        yield made
