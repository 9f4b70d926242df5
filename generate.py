"""`python generate.py` in a clone is the same as the command `stylegan-di generate`."""

from stylegan_di.commands.generate import main

if __name__ == "__main__":
    main()
