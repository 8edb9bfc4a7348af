"""The harness of `cogflare verify`: servers, workers and clients under seeded faults, and a check of all they saw."""
