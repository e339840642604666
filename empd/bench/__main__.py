"""`python -m empd.bench`."""

from __future__ import annotations

from empd.bench.command import main

if __name__ == "__main__":
    main()
