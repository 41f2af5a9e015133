"""Load generation and its report. Talks HTTP or to an in-process engine; brings no torch of its own."""
