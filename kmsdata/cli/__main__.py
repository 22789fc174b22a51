"""Run the command line: ``python -m kmsdata.cli``."""

from kmsdata.cli.app import main

if __name__ == "__main__":
    main()
