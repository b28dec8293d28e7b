"""``python -m core``: every action of every page, from the command line."""

from core.cli import main

raise SystemExit(main())
