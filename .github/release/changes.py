"""What a release needs of CHANGELOG.md.

python .github/release/changes.py check vX.Y.Z    the tag, the version and the heading agree
python .github/release/changes.py notes vX.Y.Z    that version's section, on stdout
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"^## \[(?P<version>[^]]+)\] - (?P<date>.+)$", re.MULTILINE)
"""As in https://keepachangelog.com/en/1.1.0/; the date of one to come is `unreleased`."""


def version() -> str:
    """The one place that holds it; read, not imported: nothing need be installed."""
    text = (ROOT / "vmoat/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    assert found
    return found[1]


def sections(changelog: str) -> dict[str, tuple[str, str]]:
    """Each version's date and text, the newest first."""
    heads = list(HEADING.finditer(changelog))
    ends = [*(head.start() for head in heads[1:]), len(changelog)]
    return {
        head["version"]: (head["date"], changelog[head.end() : end].strip())
        for head, end in zip(heads, ends, strict=False)  # without a head there is no section
    }


def check(tag: str, current: str, changelog: str) -> str:
    """What is in the way of releasing this tag; "" when nothing is."""
    if tag != f"v{current}":
        return f"the tag is {tag}, but vmoat/__init__.py says {current}"
    found = sections(changelog)
    if current not in found:
        return f"CHANGELOG.md has no section `## [{current}] - YYYY-MM-DD`"
    if next(iter(found)) != current:
        return f"{next(iter(found))} stands above {current} in CHANGELOG.md"
    date, text = found[current]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        return f"CHANGELOG.md says that {current} is {date}: write the date of the release"
    return "" if text else f"CHANGELOG.md says nothing of {current}"


def main(words: list[str]) -> None:
    if len(words) != 2 or words[0] not in ("check", "notes"):
        raise SystemExit(__doc__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    wrong = check(words[1], version(), changelog)
    if wrong:
        raise SystemExit(wrong)
    if words[0] == "notes":
        print(sections(changelog)[version()][1])


if __name__ == "__main__":
    main(sys.argv[1:])
