"""Make the site of what lies in the repository, so that every page and link serves there and in a forge alike.

README.md is the first page. Files outside of docs/ that pages link to are part of the site, sources as pages. The table
of options is made from `site_mpi/boot.py`. A page that would fetch anything from elsewhere ends the build.
"""

import importlib.util
import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
FETCHED = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*"  # of a page
    r"|url\([\"']?https?:[^)]*"  # of a style
)
AS_THEY_ARE = (".md", ".png", ".svg")
LANGUAGES = {".py": "python", ".rs": "rust", ".toml": "toml", ".yaml": "yaml"}


def on_files(files, config):
    """Add README.md, and whatever pages outside of docs/ and sources they and the others lead to."""
    waiting = ["README.md", "CHANGELOG.md", *("docs/" + file.src_uri for file in files.documentation_pages())]
    known = set(waiting)
    for path in waiting:  # it grows
        if not is_in_docs(path):
            files.append(added(path, config))
        if path.endswith(".md"):
            linked = {target for target in map(resolved(path), LINK.findall((ROOT / path).read_text())) if target}
            waiting += sorted(target for target in linked - known if not is_in_docs(target))
            known |= linked
    return files


def on_page_markdown(markdown, page, **_):
    """Let links lead to where the site has what they mean, and put in what the sources know."""
    path = repository_path(page.file.src_uri)
    if path.endswith(".md"):
        find = resolved(path)
        folder = posixpath.dirname(page.file.src_uri) or "."

        def moved(link):
            target = find(link[0])
            return posixpath.relpath(site_path(target), folder) if target else link[0]

        markdown = LINK.sub(moved, markdown)
    return markdown.replace("<!-- options -->", options())


def on_post_build(config):
    """Refuse a page or style that fetches anything from elsewhere."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css"):
            found = FETCHED.search(file.read_text())
            if found:
                raise PluginError("%s would fetch from elsewhere: %s" % (file, found[0]))


def added(path, config):
    """Return a file of the repository as one of the site's."""
    if path.endswith(AS_THEY_ARE):
        return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))
    text = "---\nsearch: {exclude: true}\n---\n# `%s`\n\n~~~~~~ %s\n%s\n~~~~~~\n"
    language = LANGUAGES.get(posixpath.splitext(path)[1], "sh")
    return File.generated(config, site_path(path), content=text % (path, language, (ROOT / path).read_text()))


def is_in_docs(path):
    """Whether a file of the repository is part of the site without our doing."""
    return path.startswith("docs/") and path.endswith(AS_THEY_ARE)


def site_path(path):
    """Return where the site has a file of the repository."""
    if path == "README.md":
        return "index.md"
    if is_in_docs(path):
        return path[len("docs/") :]
    return path if path.endswith(AS_THEY_ARE) else path + ".md"


def repository_path(src_uri):
    """Return which file of the repository a page of the site is, or would be in docs/."""
    if src_uri == "index.md":
        return "README.md"
    for path in (src_uri, src_uri[: -len(".md")]):
        if (ROOT / path).is_file():
            return path
    return "docs/" + src_uri


def resolved(path):
    """Return a function that finds the file of the repository that a link on this page means, or None."""

    def find(target):
        if "://" in target:
            return None
        joined = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        return joined if not joined.startswith("..") and (ROOT / joined).is_file() else None

    return find


def options():
    """Return the table of all settings."""
    spec = importlib.util.spec_from_file_location("boot", ROOT / "site_mpi" / "boot.py")
    boot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(boot)
    lines = ["| option | variable | default | |", "|---|---|---|---|"]
    for name, short, value_name, default, text in boot.OPTIONS:
        form = "`--%s%s`" % (name, " " + value_name if value_name else "")
        if short:
            form = "`-%s`, %s" % (short, form)
        variable = "" if name in boot.ONLY_OPTIONS else "`MPIIMPORT_%s`" % name.replace("-", "_").upper()
        shown = "`%s`" % default if value_name and default else ""
        lines.append("| %s | %s | %s | %s |" % (form, variable, shown, text))
    return "\n".join(lines)
