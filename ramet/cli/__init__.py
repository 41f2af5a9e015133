"""The `ramet` command: serve, generate, model, bench. Each subcommand is a module with `run(arguments) -> exit status`."""
