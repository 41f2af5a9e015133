"""What users write: @function, verbs, roles, the live state and its results; and how a program gets executed."""
