"""Scenarios of the whole daemon, measured: `python -m empd.bench`.

command    the command line: which scenarios, in which size
scenarios  the table of them
throughput, latency, backlog, claim, recovery, broker_loss, idle, startup    one scenario each
daemon     starts a daemon of its own       floors     what the machine itself can do, in the same run
figures    a measured value, and statistics report     JSON lines and a table
machine    where it was measured
"""
