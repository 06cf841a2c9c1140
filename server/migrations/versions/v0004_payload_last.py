"""How often a job may be tried, its payload as the last column, an index of all that is asked of those who wait."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Adds the one, moves the other and makes the third."""
    op.add_column("jobs", sa.Column("max_attempts", sa.Integer))
    op.add_column("jobs", sa.Column("moved", sa.LargeBinary))
    op.execute("UPDATE jobs SET moved = payload WHERE payload IS NOT NULL")
    op.drop_column("jobs", "payload")
    op.execute("ALTER TABLE jobs RENAME COLUMN moved TO payload")
    op.drop_index("ix_jobs_status", "jobs")
    op.create_index("ix_jobs_waiting", "jobs", ["status", "priority", "seq", "payload_size"])
