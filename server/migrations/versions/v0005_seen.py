"""When the caller of a waiting call was last seen, before the payload, which stays the last column."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Adds it and moves the payload behind it."""
    op.add_column("jobs", sa.Column("seen", sa.Float))
    op.add_column("jobs", sa.Column("moved", sa.LargeBinary))
    op.execute("UPDATE jobs SET moved = payload WHERE payload IS NOT NULL")
    op.drop_column("jobs", "payload")
    op.execute("ALTER TABLE jobs RENAME COLUMN moved TO payload")
