"""`python calc_metrics.py` in a clone is the same as the command `stylegan-di metrics`."""

from stylegan_di.commands.metrics import main

if __name__ == "__main__":
    main()
