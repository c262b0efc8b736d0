"""Door to `meanaudio generate`."""

from meanaudio.cli import main

if __name__ == "__main__":
    main(["generate"])
