"""Fails where a file of the repository names a machine's own path or the host of a package registry."""

import re
import subprocess
import sys
from pathlib import Path

# Each pattern is written so that it does not match itself.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:work|root|tmp|opt|home/\w+|Users/\w+)(?=/)"),
    "the host of a package registry": re.compile(
        r"(?:[p]ypi\.org|[p]ythonhosted\.org|[n]pmjs\.(?:org|com)|[d]eb\.debian\.org|[c]rates\.io|[p]roxy\.golang\.org)"
    ),
}


def findings(text: str) -> list[tuple[int, str, str]]:
    """The line number, the kind and the matched text of everything in `text` that must not be committed."""
    return [
        (number, kind, match.group())
        for number, line in enumerate(text.splitlines(), 1)
        for kind, pattern in FORBIDDEN.items()
        for match in pattern.finditer(line)
    ]


def main() -> int:
    """Prints each finding in the tracked and the not yet ignored files; 1 when there is one, else 0."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    found = False
    for name in sorted(set(filter(None, names))):
        path = Path(name)
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for number, kind, matched in findings(text):
            print(f"{name}:{number}: {matched!r} is {kind}; take it out")
            found = True
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
