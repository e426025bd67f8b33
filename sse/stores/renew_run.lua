#!lua
-- Renews the lease of a live run, or sets it again if it has run out, and the life of its ring and marker.
-- KEYS: 1 ring, 2 marker, 3 lease
-- ARGV: 1 token, 2 milliseconds that the lease lives, 3 seconds that the ring and the marker live
-- Returns 1, or 0 if there is no such live run.
local run = redis.call('HMGET', KEYS[2], 'token', 'end')
if run[1] ~= ARGV[1] or run[2] or redis.call('EXPIRE', KEYS[1], ARGV[3]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
return 1
