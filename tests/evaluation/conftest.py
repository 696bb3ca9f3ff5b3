"""One private Ray session for the tests of this folder that need one."""

import pytest

from nearid_ray.cluster import ray_session


@pytest.fixture(scope="package")
def ray_here():
    with ray_session(num_cpus=4):
        yield
