"""What the site shows beside docs/: the README as its first page, the scripts of examples/ as pages."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
OUTSIDE = re.compile(
    r"\[(?P<words>[^\]]*)\]\((?:\.\./)*(?:studies/|CHANGELOG|NOTICE|LICENSE|CONTRIBUTING)[^)]*\)"
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=OUTSIDE.sub(r"\g<words>", readme)))
    for script in sorted((ROOT / "examples").glob("*.py")):
        text = f"# examples/{script.name}\n\n```python\n{script.read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, f"examples/{script.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links that leave docs/ at the pages made of their files; what the site lacks loses its link."""

    def linked(found: re.Match[str]) -> str:
        target, anchor = found["target"], found["anchor"] or ""
        if target.endswith("README.md"):
            return f"](index.md{anchor})"
        if script := re.fullmatch(r"(?:\.\./)*(examples/\w+)\.py", target):
            return f"]({script[1]}.md{anchor})"
        return found[0]

    return LINK.sub(linked, OUTSIDE.sub(r"\g<words>", markdown))
