"""Incremental parsers of a reply's text: thoughts, answer, tool calls. Pure text; the result does not depend on how the text is cut."""
