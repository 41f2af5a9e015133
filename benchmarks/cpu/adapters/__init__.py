"""One file per engine, each run in a process of its own and, for peers, in a virtual environment of their own."""
