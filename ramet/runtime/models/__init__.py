"""Which models there are, as data, and the one decoder that the data drives."""
