"""`python -m chatx`: the command, for where its script is not on the PATH."""

try:
    from chatx.cli import main

    status: int = main()
except KeyboardInterrupt:  # while the line above was being loaded
    status = 130
raise SystemExit(status)
