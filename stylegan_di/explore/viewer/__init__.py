"""A page on which one network or two are looked at: with a server of ours behind it, or exported with the networks in it.

`looks` draws, `server` answers a page that asks it, `export` writes a page that draws for itself. The page is in `assets/`.
"""
