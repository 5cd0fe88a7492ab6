"""All sections of a report -> one HTML file that needs nothing beside it."""

from __future__ import annotations

import os
from pathlib import Path

from flan_tune.reports.comparison import comparison_section
from flan_tune.reports.headline import headline_section, lead
from flan_tune.reports.inputs import ReportInputs
from flan_tune.reports.loss_curves import loss_section
from flan_tune.reports.page import assemble
from flan_tune.reports.provenance import provenance_section
from flan_tune.reports.samples import samples_section


def write_report(inputs: ReportInputs, output_html: Path) -> Path:
    """Writes the report and returns its path. The file appears whole or not at all.

    The page loads nothing: style and figures are inside. What `inputs` lacks is said in its place.
    """
    sections = [
        headline_section(inputs),
        comparison_section(inputs),
        loss_section(inputs),
        samples_section(inputs),
        provenance_section(inputs),
    ]
    output_html.parent.mkdir(parents=True, exist_ok=True)
    staging = output_html.with_name(f".{output_html.name}.{os.getpid()}.tmp")
    staging.write_text(assemble(inputs.title, lead(inputs), sections), encoding="utf-8")
    os.replace(staging, output_html)
    return output_html
