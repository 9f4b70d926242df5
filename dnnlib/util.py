"""Small helpers that know nothing of the rest of the project: the user's-mistake error, downloads, the log."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that its user can mend. The message names the option or file, the value, what is accepted, the remedy.

    Scripts print it as one line and exit with status 2; it never reaches a user as a traceback.
    """
