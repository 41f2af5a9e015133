"""The one serialised form of a program and of its values."""
