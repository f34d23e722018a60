"""`python -m e3va COMMAND ...`, the same as `e3va COMMAND ...` of an installed wheel."""
from .command.main import main

if __name__ == '__main__':
    main()
