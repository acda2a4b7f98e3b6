"""What operators watch: figures read from the live objects when Prometheus asks."""
