#!lua flags=no-writes
-- Finds the position just before the newest entries of a ring.
-- KEYS: 1 ring. The marker of a run, in the same slot, is looked at only if the ring is marked, or if there is no ring.
-- ARGV: 1 number of entries; with 0, the position is that of the newest entry
-- Returns the position's id, or that of the oldest one if the ring has fewer entries; nothing if there is no ring.
-- With 0 and a marker, it returns {id or '', anchor, reason of the end or '', id of the end or '', id before the end or
-- '', whether the lease is held (1 or 0)}.
-- It does not read the entries in between, whose data may be large.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if ARGV[1] == '0' then
  if newest and newest[2][3] ~= 'r' then return newest[1] end
  local run = redis.call('HMGET', KEYS[1] .. ':run', 'anchor', 'end', 'at', 'before')
  if not run[1] then return newest and newest[1] end
  local held = redis.call('GET', KEYS[1] .. ':lease') and 1 or 0
  return {newest and newest[1] or '', run[1], run[2] or '', run[3] or '', run[4] or '', held}
end
if not newest then return nil end
local offset = math.max(tonumber(string.match(newest[1], '^%d+')) - tonumber(ARGV[1]), 0)
return redis.call('XRANGE', KEYS[1], string.format('%.0f', offset), '+', 'COUNT', 1)[1][1]
