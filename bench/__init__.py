"""The project's benchmark: `make bench` measures and rewrites docs/reference/performance.md."""
