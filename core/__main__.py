"""``python -m core``: every action of every page, from the command line."""

from core.commands.main import main

raise SystemExit(main())
