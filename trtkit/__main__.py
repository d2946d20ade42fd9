"""`python -m trtkit`: the command line."""

from trtkit.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
