"""``python -m nasopt`` is the command ``nasopt``."""

from nasopt.cli import main

raise SystemExit(main())
