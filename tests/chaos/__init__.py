"""Nothing lost and nothing doubled, shown by breaking it: a program that breaks services, brokers, disks and topics.

kinds.py            the kinds of faults, how long each lasts and what must not happen meanwhile
plan.py             which fault hits whom and when: a pure function of a seed
scales.py           how many of each, and how much else
inputs.py           uploads, deletes, queries and refused records, and what each must lead to
clock.py            the time of the plan, which a busy machine stretches
publisher.py        puts the inputs on the bus at their times
brokers.py          three brokers, which can be killed, frozen and robbed of their data
segments.py         the files of a partition, cut at the end
services.py         the service's processes, each started again whenever it ends
stores.py           a store that is a cluster, with a password and names of its own
scene.py            what a fault acts upon: brokers, services, topics, groups, the store
faults.py           carries a plan out, and says of each fault whether it really struck
service_faults.py   what is done to services
false_time.c        what shifts a process's clock
machine_faults.py   what is done to the machine under them, and to the store's file
machine.py          a small disk, and limits for other processes
client_faults.py    what clients of the metrics port do, and sources of clips
sources.py          web servers that serve clips
store_faults.py     what is done to the nodes of a store that is a cluster
broker_faults.py    what is done to brokers and their disks
topic_faults.py     what is done to topics, offsets and privileges
signs.py            what services show of a fault
watch.py            what /readyz says meanwhile
ledger.py           what a fault entitles to: records that may come out again, or never
groups.py           how far a consumer group has come
oracle.py           which clips the log says are alive
verify.py           what came out, against what went in
scores.py           the scores of the answers, worked out again
uncommitted.py      what aborted transactions left in a topic
report.py           the tables and the JSON file
run.py              the whole story
"""
