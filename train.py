"""Door to `meanaudio train`."""

from meanaudio.cli import main

if __name__ == "__main__":
    main(["train"])
