"""What Redis does for the nodes, each in one step.

Of a collection it keeps, under keys of one slot:

- `state`, a hash: the epoch; `head`, the last index_version given out; `floor`, from which on `log` and `recent` are
  whole; `term`, another and higher number each time the nodes had to agree on the head anew, and `starts`, the terms and
  the heads they began with; `run`, the life of the server that all this is true for.
- `log`, a stream: a message for each batch, under the batch's last index_version.
- `recent`, a sorted set: the keys of what was written (documents' ids, event ids), by index_version.

Redis may lose some of its memory: by a restart, by a failover to a replica that was behind. All of these give it another
run_id than `state` holds, and nothing is given out before the nodes have said what they hold (`RESTORE`).
"""

from __future__ import annotations

from gateway.bus.link import Script

_RUN = """
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
"""

PROPOSE = Script(
    _RUN
    + """
-- KEYS: state, log, recent
-- ARGV: epoch, prepared at, changes to keep, channel, publishing command, writes {{changes, bytes, key...}...}, proposals,
--       term
local state = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'floor', 'run', 'term')
if state[1] ~= ARGV[1] or state[4] ~= run or state[5] ~= ARGV[8] then return {'unknown'} end
local head, floor, at = tonumber(state[2]), tonumber(state[3]), tonumber(ARGV[2])
if at > head or at < floor then return {'behind', state[2]} end
if head > at and redis.call('EXISTS', KEYS[3]) == 0 then
    -- Something took it away: nobody knows any more what was written after that index_version.
    redis.call('HSET', KEYS[1], 'floor', state[2])
    return {'behind', state[2]}
end
local writes, taken, lost, lost_some = cmsgpack.unpack(ARGV[6]), {}, {}, false
local changes = 0
for i, write in ipairs(writes) do
    local free = true
    for k = 3, #write do
        if lost[write[k]] then free = false end
        if free and head > at then
            local score = redis.call('ZSCORE', KEYS[3], write[k])
            if score and tonumber(score) > at then free = false end
        end
    end
    taken[i] = free and '1' or '0'
    if free then
        changes = changes + write[1]
    else
        lost_some = true
        for k = 3, #write do lost[write[k]] = true end
    end
end
local flags = table.concat(taken)
if changes == 0 then return {'ok', state[2], flags} end
local last = head + changes
local pieces, start, count, keys, n = {}, 1, 0, {}, 0
for i, write in ipairs(writes) do
    if write[1] > 0 and taken[i] == '1' then
        count = count + 1
        if lost_some then pieces[count] = string.sub(ARGV[7], start, start + write[2] - 1) end
        for k = 3, #write do
            keys[n + 1], keys[n + 2] = last, write[k]
            n = n + 2
            if n == 2000 then
                redis.call('ZADD', KEYS[3], unpack(keys))
                keys, n = {}, 0
            end
        end
    end
    start = start + write[2]
end
if n > 0 then redis.call('ZADD', KEYS[3], unpack(keys)) end
local body = lost_some and table.concat(pieces) or ARGV[7]
local message = string.format('%s %s %.0f %.0f\\n', state[1], state[5], head + 1, last)
    .. struct.pack('>BI4', 0xdd, count) .. body
local least = math.max(floor, last - tonumber(ARGV[3]))
redis.call('XADD', KEYS[2], 'MINID', '~', string.format('%.0f', least + 1), string.format('%.0f-0', last), 'm', message)
if least > floor then
    redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', least)
    redis.call('HSET', KEYS[1], 'floor', string.format('%.0f', least))
end
redis.call('HSET', KEYS[1], 'head', string.format('%.0f', last))
-- Who doesn't get it reads the stream.
redis.pcall(ARGV[5], ARGV[4], message)
return {'ok', string.format('%.0f', head), flags}
"""
)
"""Give a batch its place, as far as its documents haven't changed since it was prepared, and tell all nodes.

Replies `ok`, the head before, and for each write 1, or 0 where another came first (a write is also behind those of its
batch that are, on the same documents); `behind` and the head where the node has to catch up before it is known;
`unknown` where nodes have to agree on the state first.
"""

STATE = Script(
    _RUN
    + """
-- KEYS: state
local state = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'floor', 'run', 'term', 'starts')
if not state[1] then return {} end
return {state[1], state[2], state[3], state[4] == run and 1 or 0, state[5], state[6]}
"""
)
"""Return epoch, head, floor, whether it is valid, term and starts; nothing where there is no state."""

RESTORE = Script(
    _RUN
    + """
-- KEYS: state, log, recent, claims
-- ARGV: epoch, nodes that should say something, milliseconds to wait for them; node, its head, term and starts
local function fork(some, others)
    -- Return the first beginning of a term that only one side knows of: up to there both have the same.
    local known, least = {}, math.huge
    for one, start in string.gmatch(some, '(%d+:(%d+))') do known[one] = tonumber(start) end
    for one, start in string.gmatch(others, '(%d+:(%d+))') do
        if known[one] then known[one] = nil else least = math.min(least, tonumber(start)) end
    end
    for _, start in pairs(known) do least = math.min(least, start) end
    return least
end
local state = redis.call('HMGET', KEYS[1], 'epoch', 'head', 'floor', 'run', 'term', 'starts')
if state[1] == ARGV[1] and state[4] == run then return {'done'} end
if redis.call('HGET', KEYS[4], ':run') ~= run .. ARGV[1] then
    redis.call('DEL', KEYS[4])
    local time = redis.call('TIME')
    local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
    redis.call('HSET', KEYS[4], ':run', run .. ARGV[1], ':due', string.format('%.0f', due))
end
redis.call('HSET', KEYS[4], ARGV[4], ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7])
redis.call('PEXPIRE', KEYS[4], 60000 + tonumber(ARGV[3]))
local time = redis.call('TIME')
local now, claims = time[1] * 1000 + math.floor(time[2] / 1000), redis.call('HGETALL', KEYS[4])
local due, said, term, starts, heads = 0, 0, 0, '', {}
for i = 1, #claims, 2 do
    if claims[i] == ':due' then
        due = tonumber(claims[i + 1])
    elseif claims[i] ~= ':run' then
        said = said + 1
        local h, t, s = string.match(claims[i + 1], '^(%d+) (%d+) (.*)$')
        heads[#heads + 1] = {tonumber(h), s}
        if tonumber(t) > term then term, starts = tonumber(t), s end
    end
end
if said < tonumber(ARGV[2]) and now < due then return {'wait'} end
local here = state[1] == ARGV[1]
if here and tonumber(state[5]) >= term then term, starts = tonumber(state[5]), state[6] end
local head, beyond = 0, false
for _, one in ipairs(heads) do
    if one[1] > fork(one[2], starts) then beyond = true elseif one[1] > head then head = one[1] end
end
local floor = string.format('%.0f', head)
if here and tonumber(state[2]) >= head and tonumber(state[2]) <= fork(state[6], starts) then
    -- It lost nothing that a node has.
    head, floor = tonumber(state[2]), state[3]
end
if floor == string.format('%.0f', head) then redis.call('DEL', KEYS[2], KEYS[3]) end
-- A number that nobody else has had, wherever it was forgotten since; odd where some node has more than this, or may have.
term = math.max(term + 1, now)
term = term - term % 2 + 2
if said < tonumber(ARGV[2]) or beyond then term = term + 1 end
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'head', string.format('%.0f', head), 'floor', floor, 'run', run,
    'term', string.format('%.0f', term), 'starts', starts .. string.format('%.0f:%.0f ', term, head))
return {'done'}
"""
)
"""Say what this node holds; once all have, or the time is up, go on from the highest index_version among them.

The terms that were are those which the node of the newest one knows of. By them it is clear who holds something that was
given up, and doesn't count: who has more than what was there when a term began that only one side knows of. What the
others hold are beginnings of one order, and the longest is it. Replies `wait` or `done`.
"""

HEARTBEAT = Script(
    """
-- KEYS: nodes
-- ARGV: node, what it says of itself, milliseconds after which a silent node is forgotten; '' says goodbye
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now) .. ARGV[2])
end
local nodes, alive = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #nodes, 2 do
    local at, said = string.match(nodes[i + 1], '^(%d+) (.*)$')
    local age = now - tonumber(at or 0)
    if age > tonumber(ARGV[3]) then
        redis.call('HDEL', KEYS[1], nodes[i])
    else
        alive[#alive + 1] = nodes[i]
        alive[#alive + 1] = string.format('%.0f', age)
        alive[#alive + 1] = said
    end
end
return alive
"""
)
"""Say that a node is there; return id, milliseconds since it was heard of, and what it says, of all that are known."""

CREATE = Script(
    """
-- KEYS: collections
-- ARGV: name, "epoch spec"[, the collection it belongs to, epoch of that]
if ARGV[3] then
    local owner = redis.call('HGET', KEYS[1], ARGV[3])
    if not owner or string.sub(owner, 1, #ARGV[4] + 1) ~= ARGV[4] .. ' ' then return false end
end
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
"""
)
"""Enter a collection in the register, unless there is one of its name; return what is entered.

One that belongs to a life of another is entered while that is registered; otherwise nothing is returned.
"""

DROP = Script(
    """
-- KEYS: collections, dropped
-- ARGV: name, epoch[, the collection that belongs to it]
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found and string.sub(found, 1, #ARGV[2] + 1) == ARGV[2] .. ' ' then
    redis.call('HDEL', KEYS[1], ARGV[1])
    local belonging = ARGV[3] and redis.call('HGET', KEYS[1], ARGV[3])
    if belonging then
        redis.call('HDEL', KEYS[1], ARGV[3])
        redis.call('SADD', KEYS[2], string.match(belonging, '^%S+'))
    end
end
redis.call('SADD', KEYS[2], ARGV[2])
return 1
"""
)
"""Take a life of a collection from the register, for good, and with it what belongs to it."""

FORGET = Script(
    """
-- KEYS: state, log, recent, claims
-- ARGV: epoch
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4]) end
return 1
"""
)
"""Forget a life of a collection that was dropped; another one stays."""
