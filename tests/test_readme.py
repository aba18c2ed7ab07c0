"""README.md is short and its Python runs; all links of it and of the pages lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.conftest import make_model
from tests.pages import PAGES, ROOT, prose

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = [
    (page, link)
    for page in [*PAGES, ROOT / "CHANGELOG.md"]
    for link in re.findall(r"\]\((?!http)([^)]+)\)", prose(page))
]


def test_the_ten_lines_run(tmp_path, tokenizer, capsys):
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    exec(code.replace("Qwen/Qwen2.5-0.5B", str(tmp_path)), {})
    assert capsys.readouterr().out.strip()


def test_the_readme_is_one_screen_after_the_other():
    assert len(README.splitlines()) <= 90


def test_each_page_is_linked_from_the_readme_or_from_a_page_of_it():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page, link in LINKS if page.parent == ROOT}
    alone = {page.stem for page in PAGES if page.parent == ROOT / "docs" and page not in linked}
    assert not alone


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda part: getattr(part, "stem", part))
def test_links_lead_to_a_file_and_a_heading(page: Path, link: str):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), f"{page.name}: {link}"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
