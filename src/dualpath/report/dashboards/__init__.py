"""What people watch a system with who have Prometheus and Grafana: a dashboard and alert rules over our series."""
