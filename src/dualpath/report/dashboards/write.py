"""The files: a Grafana dashboard, alert rules, and a Prometheus configuration that scrapes a gateway."""

from __future__ import annotations

import json
from pathlib import Path

from dualpath.core.errors import ConfigError
from dualpath.report.dashboards.alerts import alert_rules
from dualpath.report.dashboards.grafana import dashboard

DASHBOARD, RULES, PROMETHEUS = "dualpath-dashboard.json", "dualpath-alerts.yaml", "prometheus.yaml"


def write_dashboards(out: Path, target: str) -> list[Path]:
    """``target``: HOST:PORT of a gateway. Raises ConfigError where ``out`` cannot be written."""
    import yaml  # comes with transformers

    scrape = {"job_name": "dualpath", "scrape_interval": "5s", "static_configs": [{"targets": [target]}]}
    prometheus = {
        "global": {"scrape_interval": "15s", "evaluation_interval": "15s"},
        "rule_files": [RULES],
        "scrape_configs": [scrape],
    }
    texts = {
        DASHBOARD: json.dumps(dashboard(), indent=2) + "\n",
        RULES: yaml.safe_dump(alert_rules(), sort_keys=False, width=1000),
        PROMETHEUS: yaml.safe_dump(prometheus, sort_keys=False),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: {out}: {error.strerror or error}") from None
    return [out / name for name in texts]
