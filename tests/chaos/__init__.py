"""Exactly once, shown by breaking it: a program that kills, freezes and starves the service, and counts afterwards.

plan.py         which fault hits whom and when: a pure function of a seed
inputs.py       uploads, deletes, queries and refused records, and what each must lead to
clock.py        the time of the plan, which a busy machine stretches
publisher.py    puts the inputs on the bus at their times
brokers.py      three brokers, of which never two are away
services.py     the service's processes, each started again whenever it ends
faults.py       carries a plan out, and says of each fault whether it really struck
groups.py       how far a consumer group has come
oracle.py       which clips the log says are alive
verify.py       what came out, against what went in
uncommitted.py  what aborted transactions left in a topic
report.py       the tables and the JSON file
run.py          the whole story
"""
