"""`vmoat dashboard`: one page of this machine, for its user, with every worktree on it.

- ``gate``      who is answered at all: pure functions of a request's head
- ``record``    which dashboard of this user runs
- ``tickets``   what lets a browser in that vmoat starts
- ``timeline``  the stages of a VM, folded from its event logs
- ``facts``     what the page knows of each worktree; only facts of the host
- ``hub``       looks every second, keeps the history, wakes those who watch
- ``logs``      the lines of a worktree, from its event log or from `vmoat logs -f`
- ``actions``   the page's buttons: commands of vmoat, as processes
- ``server``    HTTP: the page's files, one stream of server-sent events, the buttons

The page in ``page/`` is plain modules that a browser loads as they are; lit-html (BSD-3-Clause, in
``page/vendor``, unchanged from its package) keeps the document up to date.
"""
