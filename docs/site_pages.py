"""Hook of MkDocs: the pages of the site are the repository's own files, under their paths, so links among them hold."""

from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

PAGES = ("*.md", "docs/*.md", "docs/*.ipynb", "experiments/**/*.md", "pegasus_lightning/pretrained/*.md")
LINKED = ("LICENSE", "CITATION.cff", "docs/**/*.png", "docs/**/*.gif", "experiments/**/*.png", "experiments/**/*.gif")
LINKED += ("experiments/**/*.json", "experiments/**/*.py", "conf/**/*.yaml", ".github/**/*.yml")


@event_priority(100)  # before the plugin that reads notebooks
def on_files(files: Files, config: Any) -> Files:
    """Return the repository's pages, and what they link to, beside the theme's files."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    kept = [file for file in files if file.abs_src_path and docs not in Path(file.abs_src_path).parents]
    paths = sorted({path for pattern in (*PAGES, *LINKED) for path in root.glob(pattern) if path.is_file()})
    where = (str(root), config.site_dir, config.use_directory_urls)
    own = [File(path.relative_to(root).as_posix(), *where) for path in paths]
    return Files([*kept, *own])
