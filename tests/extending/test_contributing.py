"""docs/contributing.md shows the code of the tests of this folder, and counts it right."""

import importlib
import inspect
import re

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs/contributing.md").read_text()
EXAMPLES = sorted(
    path.stem for path in (ROOT / "tests/extending").glob("test_*.py") if path.stem != "test_contributing"
)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_each_line_of_code_is_one_of_the_example():
    shown = set()
    for title, text in SECTIONS.items():
        (name,) = set(re.findall(r"tests/extending/(test_\w+)\.py", text))
        example = (ROOT / f"tests/extending/{name}.py").read_text().splitlines()
        blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert blocks, title
        for line in "".join(blocks).splitlines():
            assert not line or line in example, line
        shown.add(name)
    assert sorted(shown) == EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES)
def test_files_and_lines_are_counted(example):
    module = importlib.import_module(f"tests.extending.{example}")
    lines_of_yaml = {(file, len(text.splitlines())) for file, _, text in module.CONFIGS}
    counted = set()
    for _, name, added in module.ENTRIES:
        (row,) = re.findall(rf"^\| `{name}`, .* \| 3 \| (\d+) \| 2 \| (\d+), `configs/(.*)` \|$", PAGE, re.MULTILINE)
        assert int(row[0]) == len(inspect.getsource(added).splitlines())
        counted.add((row[2], int(row[1])))
    assert counted == lines_of_yaml
