"""The README's examples run as they stand, each in a namespace of its own."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int) -> None:
    """The example runs without an error."""
    exec(compile(EXAMPLES[number], f"README.md, example {number}", "exec"), {})


def test_there_is_one_for_every_user_group() -> None:
    """Per-sample gradients, MAML, ensembles, loops, interoperation and capsule routing each have an example."""
    assert len(EXAMPLES) == 7


def test_links_lead_somewhere() -> None:
    """Files that the README links to exist."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target


def test_two_commands() -> None:
    """There are exactly two commands to copy."""
    assert len(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)) == 2
