"""Links to the repository, once `[project.urls]` of pyproject.toml has its address."""

from importlib import metadata
from typing import Any


def on_config(config: Any) -> Any:
    lines = metadata.metadata("masktorch").get_all("Project-URL") or []
    urls = dict(line.split(", ", 1) for line in lines)
    if "Repository" in urls:
        config.repo_url = urls["Repository"]
        config.repo_name = "Repository"
        config.edit_uri = "edit/main/docs/"
    config.site_url = urls.get("Documentation", config.site_url)
    return config


def on_post_page(output: str, **_: Any) -> str:
    """Stop the theme's script, which asks the host for stars wherever it finds this."""
    return output.replace(' data-md-component="source"', "")
