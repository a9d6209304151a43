"""The embedded database: all durable state, loaded at the start, one transaction a turn.

Owns STATE/jobd.db. One connection in one process: SQLite in WAL mode with synchronous=FULL, so a
commit that returned survives a power cut. Knows the records of core.model, not the rules. Called by
the daemon only. The parts: `schema` (the tables, version by version), `opening` (from a file to a
checked database of today's version), `rows` (records to rows and back), `store` (writing and reading).
"""

from supervisor.store.opening import StoreError
from supervisor.store.schema import SCHEMA_VERSION
from supervisor.store.store import MAX_ANSWERS, MAX_ROWS, StorageError, Store

__all__ = ["MAX_ANSWERS", "MAX_ROWS", "SCHEMA_VERSION", "StorageError", "Store", "StoreError"]
