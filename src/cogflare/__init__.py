"""Cogflare: one HTTP API in front of every GPU you can reach."""

__version__ = "0.1.0"
