"""Other job systems beside empd, each behind one interface: `make bench-peers`.

interface  what a peer is          servers   redis, NATS and beanstalkd on loopback
*_peer     one file for each       network   one of its own, for who listens on all addresses
measure    one peer in one setting, as lines
__main__   all of them, in turn, each in a process of its own and bounded in time
"""
