"""`python -m node.cli` is `holdfast`."""

from node.cli import main

if __name__ == "__main__":
    main()
