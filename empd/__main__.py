"""`python -m empd` is the command line."""

from __future__ import annotations

from empd.cli.main import main

if __name__ == "__main__":
    main()
