"""The command line of every package: `main` parses, `commands` does, `estimate` says what it
costs."""
