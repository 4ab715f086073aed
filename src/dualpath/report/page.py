"""Pages of a report, each one file without any external resource: templates beside this module, filled by Jinja2."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from dualpath.report.css import CSS


def page(template: str, **values: object) -> str:
    """Values are escaped; drawings are made by ``report.svg``, which escapes what it is given, and marked as safe."""
    return _environment().get_template(template).render(css=CSS, **values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("dualpath.report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
