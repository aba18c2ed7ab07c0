"""README.md and its neighbours outside of docs/ are pages of the site, and links to them are the site's.

mkdocs calls these functions by their names.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    markdown = markdown.replace("](docs/", "](")
    for name, page in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{name}", f"]({page}", markdown)
    return markdown
