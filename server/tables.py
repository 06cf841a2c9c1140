"""The tables of jobs, logs and files. A change here needs a new file in `server/migrations/versions/`."""

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()

JOBS = Table(
    "jobs",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("key_id", String(32), index=True),  # whose job it is; null: submitted while there were no keys
    Column("status", String(11), nullable=False),
    Column("priority", Integer, nullable=False),  # 0 normal, 1 low
    Column("payload_size", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, default=0),
    Column("owner", String(64)),
    Column("lease_until", Float),  # by the database's clock
    Column("cancel_requested", Integer, nullable=False, default=0),
    Column("result", Text),
    Column("failure", Text),
    Column("http_status", Integer),
    Column("units", Integer, nullable=False, default=0),
    Column("inference_seconds", Float),
    Column("start_by", Float),  # one that has not begun by then fails
    Column("max_attempts", Integer),  # how often it is tried, if its caller chose
    Column("keep_for", Float),  # seconds its file is kept, if its caller chose
    Column("asked", String(64), index=True),  # digest of what a call asks that waits for its answer
    Column("orphaned", Float, index=True),  # from when on that call counts as lost
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float, index=True),
    Column("log_lines", Integer, nullable=False, server_default="0"),
    Column("log_characters", Integer, nullable=False, server_default="0"),
    Column("seen", Float),  # when that call's caller was last known to wait
    # dropped when the job ends. Last, for SQLite reads a row from its front, and megabytes would be in the way
    Column("payload", LargeBinary),
    # counts those that wait, their bytes and who is before whom without a look at the rows
    Index("ix_jobs_waiting", "status", "priority", "seq", "payload_size"),
    sqlite_autoincrement=True,
)

LOGS = Table(
    "logs",
    METADATA,
    Column("job_id", String(36), primary_key=True),
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
)

FILES = Table(
    "files",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("job_id", String(36), index=True),
    Column("name", String(255), nullable=False),
    Column("content_type", String(127), nullable=False),
    Column("size", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False, index=True),
    Column("key_id", String(32)),  # who uploaded it
)

PARTS = Table(
    "parts",
    METADATA,
    Column("file_id", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("size", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created", Float, nullable=False, index=True),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("max_in_flight", Integer),  # null: any number
    Column("private_webhooks", Integer, nullable=False, default=0),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)

SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

WEBHOOKS = Table(
    "webhooks",
    METADATA,
    Column("job_id", String(36), primary_key=True),
    Column("url", Text, nullable=False),
    Column("origin", Text, nullable=False),  # what file URLs in the payload begin with
    Column("private", Integer, nullable=False),  # whether it may lead into a private network
    Column("tries", Integer, nullable=False, default=0),
    Column("next_try", Float, index=True),  # null: delivered or given up
)
