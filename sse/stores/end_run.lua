#!lua
-- Ends a live run: stores and announces its end, and removes its lease.
-- KEYS: 1 ring, 2 marker, 3 lease
-- ARGV: 1 nonce, 2 token of the run that is to end, empty for any, 3 reason, 4 payload of the end, 5 seconds that the
-- ring lives, 6 seconds that the marker lives, 7 PUBLISH or SPUBLISH, 8 pub/sub channel
-- Returns the id of the end; nothing if there is no such live run, or if it is not 'lost' because its lease is held.
local run = redis.call('HMGET', KEYS[2], 'token', 'end', 'at', 'nonce')
if run[2] and run[4] == ARGV[1] then return run[3] end   -- the call is repeated
if not run[1] or run[2] or (ARGV[2] ~= '' and ARGV[2] ~= run[1]) then return nil end
if ARGV[2] == '' and ARGV[3] == 'lost' and redis.call('GET', KEYS[3]) then return nil end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev, id = append(KEYS[1], last, ARGV[1], ARGV[4], 0, 'e')
if type(id) == 'table' then return redis.error_reply(id.err) end
redis.call('HSET', KEYS[2], 'end', ARGV[3], 'at', id, 'before', prev, 'nonce', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('DEL', KEYS[3])
redis.pcall(ARGV[7], ARGV[8], prev .. ' ' .. id .. '\n' .. ARGV[4])
redis.pcall(ARGV[7], ARGV[8], 'state')
return id
