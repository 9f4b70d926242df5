"""`python train.py` in a clone is the same as the command `stylegan-di train`."""

from stylegan_di.commands.train import main

if __name__ == "__main__":
    main()
