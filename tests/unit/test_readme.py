"""The README says what is true.

``python tests/unit/test_readme.py`` writes anew what is made from the code.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from vmoat import parser
from vmoat.config.reference import reference
from vmoat.errors import Code

README = Path(__file__).parents[2] / "README.md"
REGENERATE = "python tests/unit/test_readme.py"


def made() -> dict[str, str]:
    """The sections that are made from the code."""
    return {
        "commands": f"```text\n{parser.overview()}```\n",
        "config reference": "\n" + reference() + "\n",
    }


def section(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"README.md has no section `{name}`"
    return found[1]


def line(text: str, name: str) -> str:
    """The command in the code block right after a comment; what .ci/run extracts."""
    found = re.search(rf"<!-- {name}-line -->\n```sh\n(.*?)\n```", text)
    assert found, f"README.md has no block after <!-- {name}-line -->"
    return found[1]


def regenerate() -> None:
    text = README.read_text()
    for name, body in made().items():
        text = text.replace(
            f"<!-- {name} -->\n{section(text, name)}<!-- /{name} -->",
            f"<!-- {name} -->\n{body}<!-- /{name} -->",
        )
    README.write_text(text)


@pytest.mark.parametrize("name", list(made()))
def test_made_sections_are_fresh(name: str) -> None:
    body = made()[name]
    assert section(README.read_text(), name) == body, f"run: {REGENERATE}"


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_lines_are_one_line_of_shell(name: str) -> None:
    command = line(README.read_text(), name)
    assert "\n" not in command
    subprocess.run(["sh", "-n", "-c", command], check=True, timeout=60)


@pytest.mark.parametrize("name", ["demo", "test"])
def test_the_lines_work_on_a_bare_debian(name: str) -> None:
    """Root has no sudo, a user has; there is no venv module; pip refuses outside one (PEP 668)."""
    command = line(README.read_text(), name)
    words = command.split(" && ")
    assert words[0].endswith("apt-get update")
    assert "python3-venv" in words[1]
    assert all(step.startswith("$(command -v sudo) ") for step in words if "apt-get" in step)
    assert "python3 -m venv .venv" in words
    assert all(step.startswith(".venv/bin/") for step in words if "pip " in step)
    assert ".venv/bin/vmoat doctor --fix --yes" in words


def test_what_the_lines_end_in() -> None:
    text = README.read_text()
    assert line(text, "demo").endswith(".venv/bin/vmoat demo")
    assert line(text, "test").endswith(".venv/bin/python -m pytest tests/integration")


def test_every_exit_code_is_told() -> None:
    table = README.read_text().partition("| exit code |")[2].partition("\n\n")[0]
    missing = [code for code in Code if not re.search(rf"\b{int(code)}\b", table)]
    assert not missing


def test_commands_that_the_text_names_exist() -> None:
    named = set(re.findall(r"`vmoat ([a-z-]+)", README.read_text()))
    assert named <= set(parser.BY_NAME), named - set(parser.BY_NAME)


def test_the_config_example_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmoat.config import settings

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    example = re.search(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    assert example
    (tmp_path / "vmoat.toml").write_text(example[1])
    read = settings.load(
        tmp_path, tmp_path, env={}, flags={}, host=settings.HostSize(8, 32), common_dir=tmp_path
    )
    assert read.provision_seed == (".env",)
    assert [stage.name for stage in read.stages] == ["deps"]


if __name__ == "__main__":
    regenerate()
