"""``python -m transfiner_refine``: the command line."""

from transfiner_refine.cli import main

if __name__ == "__main__":
    main()
