"""The examples in docstrings are true."""

import doctest
import importlib
import pkgutil

import pytest

import nearid_ray
import schemas


def _modules_with_examples() -> list[str]:
    names = []
    for package in (nearid_ray, schemas):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            specification = importlib.util.find_spec(module.name)
            source = specification.loader.get_source(module.name) if specification and specification.loader else ""
            if "\n    >>> " in (source or ""):
                names.append(module.name)
    return names


def test_the_metrics_have_examples():
    assert {"nearid_ray.evaluation.margins", "nearid_ray.evaluation.correlations"} <= set(_modules_with_examples())


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples(name):
    outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0
