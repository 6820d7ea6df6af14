"""``python -m mpq`` is ``mpq``, also where ``torchrun -m mpq`` starts it."""

from mpq.cli.__main__ import main

if __name__ == "__main__":
    main()
