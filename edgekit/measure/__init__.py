"""Measuring: latency, parity and task metrics."""
