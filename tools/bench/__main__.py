"""`python -m tools.bench`, from the root of the repository."""

from tools.bench.run import main

main()
