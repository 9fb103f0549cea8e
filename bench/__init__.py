"""Benchmarks: each says what it times and runs its rival in the same run."""
