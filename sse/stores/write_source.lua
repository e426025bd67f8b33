#!lua
-- Stores and announces an event of a source, and trims the ring. The lease may be taken as soon as it is free again.
-- KEYS: 1 ring, 2 record of the source, 3 lease
-- ARGV: 1 nonce, 2 token, 3 key of this write, 4 payload, 5 entries that the ring keeps, with the one before the oldest
-- event, 6 seconds that the ring lives, 7 seconds that the record lives, 8 PUBLISH or SPUBLISH, 9 pub/sub channel
-- Returns {id, outcome, error}. The outcome is 'new', 'again', or 'lost' if the lease does not hold the token.
local source = redis.call('HMGET', KEYS[2], 'key', 'last')
if source[1] == ARGV[3] then return {source[2], 'again', ''} end
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return {'', 'lost', ''} end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local prev, id = append(KEYS[1], last, ARGV[1], ARGV[4], ARGV[5])
if type(id) == 'table' then return redis.error_reply(id.err) end
redis.call('EXPIRE', KEYS[1], ARGV[6])
local time = redis.call('TIME')
redis.call('HSET', KEYS[2], 'key', ARGV[3], 'last', id, 'writer', ARGV[2], 'written', time[1], 'due', '0')
redis.call('EXPIRE', KEYS[2], ARGV[7])
local sent = redis.pcall(ARGV[8], ARGV[9], prev .. ' ' .. id .. '\n' .. ARGV[4])
return {id, 'new', type(sent) == 'table' and sent.err or ''}
