"""Run the command line: ``python -m esa``."""

from esa.cli.main import main

if __name__ == "__main__":
    main()
