"""Leases, bounds of the queue and of logs, the terms of a call, keys, secrets and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Adds them."""
    for column in (
        sa.Column("key_id", sa.String(32)),
        sa.Column("payload_size", sa.Integer, nullable=False, server_default="0"),
        sa.Column("lease_until", sa.Float),
        sa.Column("start_by", sa.Float),
        sa.Column("keep_for", sa.Float),
        sa.Column("asked", sa.String(64)),
        sa.Column("orphaned", sa.Float),
        sa.Column("log_lines", sa.Integer, nullable=False, server_default="0"),
        sa.Column("log_characters", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    for name in ("key_id", "asked", "orphaned"):
        op.create_index(f"ix_jobs_{name}", "jobs", [name])
    op.execute(
        "UPDATE jobs SET payload_size = coalesce(length(payload), 0), "
        "log_lines = (SELECT count(*) FROM logs WHERE logs.job_id = jobs.id)"
    )
    op.add_column("files", sa.Column("key_id", sa.String(32)))
    op.create_table(
        "keys",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("max_in_flight", sa.Integer),
        sa.Column("private_webhooks", sa.Integer, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("revoked", sa.Float),
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "webhooks",
        sa.Column("job_id", sa.String(36), primary_key=True),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("private", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_try", sa.Float),
    )
    op.create_index("ix_webhooks_next_try", "webhooks", ["next_try"])
