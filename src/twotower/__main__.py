"""`python -m twotower` is the command `twotower`."""

from twotower.cli.app import main

if __name__ == "__main__":
    main()
