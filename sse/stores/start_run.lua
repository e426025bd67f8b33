#!lua
-- Begins a run: its ring, its marker and its lease.
-- KEYS: 1 ring, 2 marker, 3 lease
-- ARGV: 1 number (1 to 2^52) for a new anchor, 2 token, 3 1 to begin a run anew, else 0, 4 bytes that the ring may hold,
-- 5 milliseconds that the lease lives, 6 seconds that the ring and the marker live, 7 PUBLISH or SPUBLISH, 8 pub/sub
-- channel
-- Returns 'started', 'exists' or 'refused'.
local token = redis.call('HMGET', KEYS[2], 'token')[1]
if token == ARGV[2] then return 'started' end   -- the call is repeated
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local is_marked = last and last[2][3] == 'r'
if token or is_marked then
  if ARGV[3] == '0' then return 'exists' end
elseif redis.call('GET', KEYS[3]) or (last and not string.match(last[1], '^0%-')) then
  return 'refused'
end
-- An anchor that subscribers wait at stays, but its entry is marked now. With the ring of an earlier run, they are to
-- hear a reset.
local anchor = last and not token and not is_marked and last[1] or '0-' .. ARGV[1]
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('XADD', KEYS[1], anchor, 'd', '', 'r', '1')
redis.call('HSET', KEYS[2], 'token', ARGV[2], 'anchor', anchor, 'written', '0', 'held', '0', 'max', ARGV[4])
redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[5])
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.pcall(ARGV[7], ARGV[8], 'state')
return 'started'
