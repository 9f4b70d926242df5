"""`python tools/style_mixing.py` in a clone is the same as the command `stylegan-di style-mix`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from a clone that is not installed

from stylegan_di.commands.style_mix import main

if __name__ == "__main__":
    main()
