"""A page on which one network or two are looked at, served from here or exported with the networks in it.

`looks` draws, `server` answers a page that asks it, `export` writes a page that draws for itself. What the page is made
of lies in `assets/`.
"""
