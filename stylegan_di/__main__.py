"""python -m stylegan_di: the same as the command stylegan-di."""

from __future__ import annotations

from stylegan_di.commands import main

if __name__ == "__main__":
    main(prog_name="stylegan-di")
