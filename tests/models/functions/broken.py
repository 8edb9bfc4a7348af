"""Fails in its setup, which is the import."""

print("looking for the weights")
raise RuntimeError("no weights here")
