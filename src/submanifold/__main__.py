"""The command line as ``python -m submanifold``."""

from submanifold.cli import main

if __name__ == "__main__":
    main()
