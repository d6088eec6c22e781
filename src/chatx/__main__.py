"""`python -m chatx`: the command, for where its script is not on the PATH."""

from chatx.cli import main

raise SystemExit(main())
