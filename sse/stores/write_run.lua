#!lua
-- Stores and announces an event of a run.
-- KEYS: 1 ring, 2 marker, 3 lease
-- ARGV: 1 nonce, 2 token, 3 key of this write, 4 payload, 5 bytes that it counts for, 6 bytes that the run has written,
-- 7 milliseconds that the lease lives, 8 seconds that the ring and the marker live, 9 PUBLISH or SPUBLISH, 10 pub/sub
-- channel
-- Returns {id, outcome, error}. The outcome is 'new' or 'again'; the error says why announcing failed. It is 'stopped'
-- if the run is over, 'incomplete' if a part of it is lost, and 'large' if the ring has no room; then there are {'',
-- outcome, bytes that the ring holds, bytes that it may hold}.
local run = redis.call('HMGET', KEYS[2], 'token', 'key', 'last', 'end', 'written', 'held', 'max', 'anchor')
if not run[1] then return {'', 'incomplete', ''} end
if run[1] == ARGV[2] and run[2] == ARGV[3] then return {run[3], 'again', ''} end
if run[1] ~= ARGV[2] or run[4] then return {'', 'stopped', ''} end
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not redis.call('GET', KEYS[3]) then   -- it ran out, and no other run has begun
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[7])
  redis.call('EXPIRE', KEYS[1], ARGV[8])
  redis.call('EXPIRE', KEYS[2], ARGV[8])
end
if run[5] ~= ARGV[6] or not first or first[1] ~= run[8] then return {'', 'incomplete', ''} end
local held = tonumber(run[6]) + tonumber(ARGV[5])
if held > tonumber(run[7]) then return {'', 'large', run[6], run[7]} end
local prev = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]
local id = add(KEYS[1], prev, ARGV[1], ARGV[4], 0, '1')
if type(id) == 'table' then
  if string.find(id.err, 'equal or smaller', 1, true) then return {'', 'incomplete', ''} end   -- cut by hand
  return redis.error_reply(id.err)
end
redis.call('HSET', KEYS[2], 'key', ARGV[3], 'last', id, 'held', string.format('%.0f', held),
  'written', string.format('%.0f', tonumber(run[5]) + tonumber(ARGV[5])))
local sent = redis.pcall(ARGV[9], ARGV[10], prev .. ' ' .. id .. '\n' .. ARGV[4])
return {id, 'new', type(sent) == 'table' and sent.err or ''}
