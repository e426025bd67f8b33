#!lua flags=no-writes
-- Finds the position just before the newest entries of a ring.
-- KEYS: 1 ring
-- ARGV: 1 number of entries; with 0, the position is that of the newest entry
-- Returns the position's id, or that of the oldest one if the ring has fewer entries; nothing if there is no ring.
-- It does not read the entries in between, whose data may be large.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest or ARGV[1] == '0' then return newest and newest[1] end
local offset = math.max(tonumber(string.match(newest[1], '^%d+')) - tonumber(ARGV[1]), 0)
return redis.call('XRANGE', KEYS[1], string.format('%.0f', offset), '+', 'COUNT', 1)[1][1]
