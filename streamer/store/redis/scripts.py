"""Lua scripts for the server; each uses one key, so that it works while a cluster migrates the key's slot.

Which record wins is decided in :mod:`streamer.store.record_format`, as for every engine, from the record that was read;
the server only ensures that this record is still stored when it is replaced (compare and set). A record's header has
its version, its position and the checksum of all of it, so it identifies the record. Scripts are sent whole, a few
hundred bytes compared with thousands for a record: nothing has to be loaded, and nothing is lost in a failover.
"""

from __future__ import annotations

from streamer.store.record_format import CHECKED_FROM, HEADER_BYTES

REPLACED = 1
"""The reply if the value was replaced."""

REPLACE = f"""\
if redis.call('GETRANGE', KEYS[1], 0, {HEADER_BYTES - 1}) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return {REPLACED}
"""
"""Set the value ARGV[2] with a lifetime of ARGV[3] milliseconds (0: for ever) if the stored value has the header
ARGV[1].

Otherwise return the stored value. An absent value has the empty header.
"""

UNCHANGED = 1
"""The reply for a record that the reader has cached."""

READ_UNLESS = f"""\
local t={{}}
for i,k in ipairs(KEYS) do
if redis.call('GETRANGE',k,0,{CHECKED_FROM - 1})==ARGV[i] then t[i]={UNCHANGED} else t[i]=redis.call('GET',k) end
end
return t"""
"""Return the records of KEYS, but only a marker for those whose magic and checksum equal ARGV."""
