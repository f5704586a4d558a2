"""``imagefs explain``: where the time of a start went.

``analysis`` makes an :class:`~imagefs_cli.explain.analysis.Analysis` of a Start document and knows no files, processes or terminals; its
parts are ``waits`` (what one read waited for), ``chain`` (which waits the start's length consists of), ``usage`` (files, directories,
bytes and the link) and ``verdict`` (what to do next). ``text``, ``perfetto`` and ``imagefs_cli.explain_page`` show it; ``command`` is the
command, ``choose`` finds the document.
"""
