"""What a release says of itself: one version everywhere, a valid citation, and the Pythons that CI tests."""

import json
import re
import tomllib
from datetime import date
from pathlib import Path

import jsonschema
import yaml

import mgc

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CITATION = yaml.load((ROOT / "CITATION.cff").read_text(), yaml.BaseLoader)  # a date stays a text, as in JSON


def test_the_citation_is_one():
    schema = json.loads((ROOT / "tests" / "data" / "cff_1.2.0.schema.json").read_text())
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(CITATION)
    broken = CITATION | {"authors": []}
    assert list(jsonschema.Draft7Validator(schema).iter_errors(broken))


def test_there_is_one_version():
    assert "version" not in PROJECT["project"]
    releases = re.findall(r"^## \[(.+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == (mgc.__version__, CITATION["date-released"])
    assert CITATION["version"] == mgc.__version__
    dates = [date.fromisoformat(released) for _, released in releases]
    assert dates == sorted(dates, reverse=True)
    images = "".join(file.read_text() for file in (ROOT / "cluster").rglob("*") if file.is_file())
    images += (ROOT / "docs" / "cluster.md").read_text()
    assert set(re.findall(r"/mgc:([\d.]+)-", images)) == {mgc.__version__}


def test_the_citation_and_the_package_name_one_licence_and_the_same_authors():
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert [each["name"] for each in CITATION["authors"]] == [each["name"] for each in PROJECT["project"]["authors"]]


def test_the_pythons_that_the_package_names_are_those_that_the_workflow_tests():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    for job in workflow["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["project"]["requires-python"] == f">={named[0]}"
