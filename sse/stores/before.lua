#!lua flags=no-writes
-- KEYS: 1 ring   ARGV: 1 a number of entries
-- Returns the id just before the newest so many entries, for 0 the newest one's, and nothing where there is no ring.
-- The entries' data, which may be large, stays in Redis.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not newest or ARGV[1] == '0' then return newest and newest[1] end
local offset = math.max(tonumber(string.match(newest[1], '^%d+')) - tonumber(ARGV[1]), 0)
return redis.call('XRANGE', KEYS[1], string.format('%.0f', offset), '+', 'COUNT', 1)[1][1]
