"""Scenarios of the whole daemon, measured: the room behind `empd bench`.

scenarios  the table of them; scenario/ has a file for each       run       measures a plan, one line a figure
running    a daemon that runs      daemon    one of the bench's own     floors, echo    what the machine itself can do
figures    a value and its bound   histogram HDR                        verdict         whether two differ
compare    files, commits          report, plots    one page of HTML    machine         where it was measured
"""
