"""What runs on the server: one key each, so that they work while a cluster moves the key's slot.

What wins is decided in :mod:`streamer.store.record_format`, as for every engine, from what was read; a server only sees
to it that this is still there when it is replaced. The head of a record holds its version, its position and the
checksum of all of it, so it stands for the record. Scripts are sent whole, a few hundred bytes beside a record of
thousands: there is nothing to load, and nothing to lose when another server takes over.
"""

from __future__ import annotations

from streamer.store.record_format import CHECKED_FROM, HEADER_BYTES

REPLACED = 1
"""The reply where a value was put."""

REPLACE = f"""\
if redis.call('GETRANGE', KEYS[1], 0, {HEADER_BYTES - 1}) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return {REPLACED}
"""
"""Put the value ARGV[2] for ARGV[3] milliseconds (0: for ever) where what is there has the head ARGV[1].

Else return what is there. Nothing has the empty head.
"""

UNCHANGED = 1
"""The reply for a record of which the reader has the bytes."""

READ_UNLESS = f"""\
local t={{}}
for i,k in ipairs(KEYS) do
if redis.call('GETRANGE',k,0,{CHECKED_FROM - 1})==ARGV[i] then t[i]={UNCHANGED} else t[i]=redis.call('GET',k) end
end
return t"""
"""Return the records of KEYS, but only a mark for each whose magic and checksum are those of ARGV."""
