-- Functions of all scripts that store an event. `scripts.py` puts them before the script's own text.
--
-- An entry of a ring has a field `d`, the event. In the ring of a run it has a second field `r`: `e` in the entry that
-- ends the channel, `1` in any other, the anchor included. So a script that has read the newest entry of an ordinary
-- ring knows that there is no marker to look at.
local function tag(prev, nonce)
  return string.format('%.0f', tonumber(string.sub(redis.sha1hex(prev .. ' ' .. nonce), 1, 13), 16) + 1)
end
local function add(ring, prev, nonce, payload, max, mark)
  local id = string.format('%.0f', tonumber(string.match(prev, '^%d+')) + 1) .. '-' .. tag(prev, nonce)
  if mark then return redis.pcall('XADD', ring, id, 'd', payload, 'r', mark) end
  return redis.pcall('XADD', ring, 'MAXLEN', '=', max, id, 'd', payload)
end
-- Appends an event to a ring, after its newest entry `last`, and begins the ring if there is none (`last` is nil).
-- A ring with a `mark` is not trimmed; any other keeps `max` entries. Returns the ids of the entry before it and of its
-- own, or an error in place of the latter; and whether the ring is new.
local function append(ring, last, nonce, payload, max, mark)
  local prev = last and last[1]
  local id = prev and add(ring, prev, nonce, payload, max, mark)
  if not prev or (type(id) == 'table' and string.find(id.err, 'equal or smaller', 1, true)) then
    -- There is no ring, or it was emptied by hand, so a new one begins. No other error may get here.
    redis.call('DEL', ring)
    if mark then
      prev = redis.call('XADD', ring, '0-' .. tag('', nonce), 'd', '', 'r', '1')
    else
      prev = redis.call('XADD', ring, '0-' .. tag('', nonce), 'd', '')
    end
    return prev, add(ring, prev, nonce, payload, max, mark), true
  end
  return prev, id, false
end
