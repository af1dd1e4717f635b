"""Programs whose output stands in docs/benchmarks.md."""
