"""`python -m mcgrad` is the command `mcgrad`."""

from mcgrad.cli import main

raise SystemExit(main())
