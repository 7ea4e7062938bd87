"""Lua scripts for the server; each uses one key, so that it works while a cluster migrates the key's slot.

Which record wins is decided in :mod:`streamer.store.record_format`, as for every engine, from the record that was read;
the server only ensures that this record is still stored when it is replaced (compare and set). A record's header has
its version, its position and the checksum of all of it, so it identifies the record. Scripts are sent whole, a few
hundred bytes compared with thousands for a record: nothing has to be loaded, and nothing is lost in a failover.

A server at its ``maxmemory`` that does not evict refuses every command that may take memory, in a script as well,
unless the script has already executed a write that takes none: then all of the script runs, because it is atomic (so
Redis documents ``EVAL``, and all its releases and Valkey do it). Deletes must pass there, because they make room. So
the scripts for tombstones and for a store's few own keys begin their writes with one that changes nothing that matters,
PERSIST. It must not be a deletion: in a slot that migrates, a key that was just deleted cannot be set any more. The
scripts for clips have no such write.
"""

from __future__ import annotations

from streamer.store.record_format import CHECKED_FROM, HEADER_BYTES

REPLACED = 1
"""The reply if the value was replaced."""

_UNLESS_CHANGED = f"""\
if redis.call('GETRANGE', KEYS[1], 0, {HEADER_BYTES - 1}) ~= ARGV[1] then return redis.call('GET', KEYS[1]) end
"""
_TAKES_NONE = "redis.call('PERSIST', KEYS[1])\n"
_SET = f"""\
if ARGV[3] == '0' then redis.call('SET', KEYS[1], ARGV[2]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return {REPLACED}
"""

REPLACE = _UNLESS_CHANGED + _SET
"""Set the value ARGV[2] with a lifetime of ARGV[3] milliseconds (0: for ever) if the stored value has the header
ARGV[1].

Otherwise return the stored value. An absent value has the empty header.
"""

BURY = _UNLESS_CHANGED + _TAKES_NONE + _SET
"""As :data:`REPLACE`, also on a server at its memory limit: for tombstones."""

_UNLESS_PARTS_CHANGED = f"""\
if redis.call('GETRANGE', KEYS[1], 0, {HEADER_BYTES - 1}) ~= ARGV[1] then
return {{redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])}}
end
"""

REPLACE_PARTS = f"""\
{_UNLESS_PARTS_CHANGED}redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[3]) end
return {REPLACED}
"""
"""As :data:`REPLACE` for a clip, with its second part ARGV[3] (empty: none) under KEYS[2].

Otherwise returns both stored parts.
"""

BURY_PARTS = _UNLESS_PARTS_CHANGED + _TAKES_NONE + "redis.call('DEL', KEYS[2])\n" + _SET
"""As :data:`BURY`, of a record that may have a second part under KEYS[2]; returns both stored parts."""

ENSURE = f"""\
local stored = redis.call('GET', KEYS[1])
if stored then return stored end
{_TAKES_NONE}redis.call('SET', KEYS[1], ARGV[1])
return ARGV[1]
"""
"""Set the value ARGV[1] if there is none, also on a server at its memory limit. Return the stored value."""

REGISTER = f"""\
for i = 1, #ARGV, 2 do
if not redis.call('HGET', KEYS[1], ARGV[i]) then
{_TAKES_NONE}redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + 1])
end
end
"""
"""Set the fields ARGV[1], ARGV[3]... of a hash that it lacks to ARGV[2], ARGV[4]..., also on a server at its limit."""

TOUCH = _TAKES_NONE + "redis.call('SET', KEYS[1], ARGV[1])"
"""Set the value ARGV[1], also on a server at its memory limit."""

UNCHANGED = 1
"""The reply for a record that the reader has cached."""

READ_UNLESS = f"""\
local t,n={{}},#ARGV
for i,k in ipairs(KEYS) do
if i>n then t[i]=t[i-n]~={UNCHANGED} and redis.call('GET',k)
elseif redis.call('GETRANGE',k,0,{CHECKED_FROM - 1})==ARGV[i] then t[i]={UNCHANGED} else t[i]=redis.call('GET',k) end
end
return t"""
"""Return the records of KEYS, but only a marker for those whose magic and checksum equal ARGV.

If KEYS are twice as many as ARGV, the second half are the keys of second parts.
"""
