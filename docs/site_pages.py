"""mkdocs hook: pages that lie outside docs/, and links that lead there."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "benchmarks/README.md": "results.md",
    "ckpt/README.md": "selectors.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
IMAGE = re.compile(r'src="(?!https?:)([^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of OUTSIDE under their names in the site."""
    for source, name in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages.

    A link to a file that is no page becomes its text.
    """
    names = {name: source for source, name in OUTSIDE.items()}
    folder = PurePosixPath(names.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def in_site(target: str) -> str | None:
        path = normpath(folder / target)
        name = OUTSIDE.get(path, path.removeprefix("docs/"))
        return name if files.get_file_from_path(name) else None

    def link(match: re.Match) -> str:
        text, target, anchor = match.groups(default="")
        name = in_site(target)
        return f"[{text}]({name}{anchor})" if name else text

    markdown = LINK.sub(link, markdown)
    return IMAGE.sub(lambda match: f'src="{in_site(match[1])}"', markdown)
