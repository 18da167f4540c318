"""Python's redis library, unchanged, against the server on the port that is given."""

import sys

import redis

port = int(sys.argv[1])
client = redis.Redis(port=port, db=5, decode_responses=True)

assert client.ping()
assert client.set("k", "v", ex=100) and client.get("k") == "v" and 0 < client.ttl("k") <= 100
assert client.set("k", "w", nx=True) is None and client.set("k", "w", xx=True, get=True) == "v"
assert client.incrby("n", 5) == 5 and client.decr("n") == 4 and client.append("k", "x") == 2
assert client.mset({"a": 1, "b": 2}) and client.mget("a", "missing", "b") == ["1", None, "2"]
assert client.exists("a", "b", "missing") == 2 and client.delete("a", "b") == 2
assert sorted(client.scan_iter(match="[kn]")) == ["k", "n"] and sorted(client.keys("*")) == ["k", "n"]
assert client.getdel("k") == "wx" and client.dbsize() == 1
assert client.config_get("maxmemory")["maxmemory"] == str(64 << 20)
assert client.info("tenants")["db5"]["keys"] == 1 and client.info("memory")["mem_allocator"] == "memcg"
assert client.info("keyspace")["db5"] == {"keys": 1, "expires": 0, "avg_ttl": 0}
assert client.memory_usage("n") > 0 and client.memory_stats()["keys.count"] == 1 and client.memory_purge()
assert client.client_setname("me") and client.client_getname() == "me" and client.client_id() > 0
assert "get" in client.command() and client.command_count() == len(client.command())

pipeline = client.pipeline(transaction=False)
for number in range(1000):
    pipeline.set(f"p{number}", "x" * 1000)
assert all(pipeline.execute())

small = redis.Redis(port=port, db=3)
try:
    small.set("large", b"x" * (4 << 20))
    raise AssertionError("a value of 4 MiB fits a tenant of 1 MiB")
except redis.exceptions.ResponseError as error:
    assert "maxmemory" in str(error), error
    print(f"refused: {error}")
assert small.ping() and small.get("greeting") == b"hello"

assert client.flushdb() and client.dbsize() == 0
print(f"redis-py {redis.__version__}: all as expected")
